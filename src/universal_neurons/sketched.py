"""Portable sketches in the place of models: what a study reads of a file, and the models again for a second pass."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from universal_neurons.accumulators import Accumulator, Block, Recipe
from universal_neurons.config import TEXT_SETTINGS, Settings, StudyConfig
from universal_neurons.errors import ConfigError, MissingFileError, SketchError
from universal_neurons.keys import Key, What
from universal_neurons.manifest import SKETCH
from universal_neurons.models import Model, load_model
from universal_neurons.neuron_source import NeuronSource, Provisional
from universal_neurons.sketch import sums_block
from universal_neurons.sketch_file import STATISTICS, SketchFile, require_one_text, sum_rows
from universal_neurons.tokenizer import find_tokenizer
from universal_neurons.tokens import Shard, TokenDataset
from universal_neurons.units import Units

FIXED = (*TEXT_SETTINGS, "group_size", "tokenizer", "subset", "lanes", "cluster", "dtype", "batch_tokens")


def are_sketches(models: Sequence[str]) -> bool:
    """Whether a study's models are files of sketches; some and some not is a `ConfigError`."""
    files = [Path(model).suffix == SKETCH for model in models]
    if any(files) and not all(files):
        raise ConfigError(
            "sketches and models together",
            given=", ".join(models),
            wanted="one or the other",
            fix="make a sketch of each model with `uneurons sketch`",
        )
    return any(files)


class SketchedModel(Model):
    """A model as its sketch describes it: a name and shapes, no weights."""

    def __init__(self, path: str, device: str) -> None:
        self.file = SketchFile(path)
        about = self.file.about["model"]
        self.name = about["name"]
        self.units, self.d_model = Units.equal(about["layers"], about["d_mlp"]), about["d_model"]
        self.vocab_size, self.context, self.digest = about["vocabulary"], about["context"], about["sha256"]
        self.tokenizer = None
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        """Where its sums go."""
        return self._device

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps."""
        about = self.file.about
        return about["model"] | {"name": self.name, "sketch": about["signs"] | {"rounding": about["rounding"]}}

    def original(self) -> Model:
        """The model itself, from where it was when the sketch was made."""
        origin = self.file.about["origin"]
        try:
            model = load_model(origin, device=str(self.device), dtype=self.file.about["dtype"], name=self.name)
        except MissingFileError as error:
            raise SketchError(
                f"{self.file.path}: screened search reads the model again, which is not where it was",
                given=origin,
                wanted="the model the sketch was made of",
                fix="bring it back there, or --search sketch",
            ) from error
        if model.digest != self.digest:
            raise SketchError(
                f"{origin}: not the model that {self.file.path} was made of",
                given=model.digest,
                wanted=self.digest,
            )
        return model

    def __repr__(self) -> str:
        return f"SketchedModel({self.name!r}, {self.n_layers} x {self.d_mlp} neurons, {str(self.file.path)!r})"


class SketchSource(NeuronSource):
    """A sketch as a source: of every shard its signed sums, of held-out stretches centred ones."""

    def __init__(self, model: SketchedModel) -> None:
        self.model: SketchedModel = model
        self.file = model.file
        self.rounding = "bfloat16"
        self.pre = False
        self.storage = torch.bfloat16 if model.device.type == "cuda" else torch.float32
        self._basis: dict[What, str] = {}
        mean = self.file.get("mean")
        self.settle(Provisional(mean, torch.zeros_like(mean), torch.zeros(0, len(mean))))
        moments = self.file.state("moments")
        self.shift = (moments["sum"] / moments["count"]).to(model.device)
        tokens = self.file.token_rows()
        chosen, stretches = tokens.split(self.file.about["heldout_tokens"])
        heldout = [Shard(number, rows) for number, rows in enumerate(stretches)]
        self.places: dict[int, tuple[str, int, int]] = {}
        for name, shards in (("sums", tokens.shards(chosen)), ("heldout", heldout)):
            starts, end = sum_rows(shards, self.file.signs, tokens.context)
            stops = [*list(starts.values())[1:], end]
            for shard, start, stop in zip(shards, starts.values(), stops):
                self.places[int(shard.rows[0])] = name, start, stop

    def ready(self, shard: Shard) -> dict[Key, Block]:
        """The shard's sums."""
        name, start, stop = self.places[int(shard.rows[0])]
        values = self.file.rows(name, start, stop).to(self.model.device, self.storage)
        if name == "sums":
            n = self.file.rows("n", start, stop).double().numpy()
            return {Key(self.model.name, What.SUMS): sums_block(values, n, self.basis, self.rounding)}
        signs = self.file.rows("heldout_n", start, stop).to(values.device)
        return {Key(self.model.name): Block((values.double() - signs[:, None] * self.shift).float(), self.basis)}


def source_of(model: Model, rounding: str, *, pre: bool = False) -> NeuronSource:
    """A model, or its sketch, as a source."""
    return SketchSource(model) if isinstance(model, SketchedModel) else NeuronSource(model, rounding, pre=pre)


def filled(recipes: Sequence[Recipe], models: Sequence[Model]) -> list[Recipe]:
    """Recipes whose statistics of sketched models come from their files, as these hold them of all tokens."""
    files = {model.name: model.file for model in models if isinstance(model, SketchedModel)}
    return [partial(_filled, recipe, files) for recipe in recipes] if files else list(recipes)


def _filled(recipe: Recipe, files: dict[str, SketchFile], device: Any) -> Accumulator:
    made = recipe(device=device)
    kind = STATISTICS.get(type(made))
    (key, *_) = made.reads
    if kind is not None and key.what == What.ACTIVATION and key.source in files:
        made.restore(files[key.source].state(kind))
    return made


def settings_of(config: StudyConfig) -> StudyConfig:
    """The configuration of a study of sketches: what the files decide may not be set, and the search is no exact one.

    Raises `ConfigError`.
    """
    given = [name for name in FIXED if name in config.model_fields_set]
    if given:
        raise ConfigError(
            f"{given[0]} is decided by the sketches", wanted=f"no --{given[0].replace('_', '-')}", fix="leave it out"
        )
    if config.stages not in ((), ("universality",)):
        raise ConfigError("of sketches only universality can be studied", given=config.stages, wanted="universality")
    if "search" in config.model_fields_set and config.search == "exact":
        raise ConfigError("--search exact needs models", given="sketches", wanted="screened or sketch")
    search = config.search if config.search != "exact" else "sketch"
    return config.model_copy(update={"stages": ("universality",), "search": search})


def open_sketches(config: StudyConfig) -> tuple[StudyConfig, list[Model]]:
    """The sketched models of a resolved configuration, and the configuration as their files complete it.

    Raises `SketchError` where they do not belong together.
    """
    models = [SketchedModel(path, config.device) for path in config.models]
    require_one_text([model.file for model in models])
    names = [model.name for model in models]
    for model, name in zip(models, names):
        if names.count(name) > 1:
            model.name = model.file.path.stem
    about = models[0].file.about
    text = about["text"] | {"context": about["tokens"]["context"], "group_size": about["signs"]["group_size"]}
    text |= {"mask": tuple(text["mask"]), "gemm_dtype": "bfloat16", "dtype": about["dtype"]}
    return config.model_copy(update=text), [*models]


def text_of_sketches(models: Sequence[Model]) -> TokenDataset:
    """The rows that sketched models read, without their tokens."""
    assert isinstance(models[0], SketchedModel)
    return models[0].file.token_rows()


def original_tokens(config: Settings, models: Sequence[Model], there: TokenDataset, folder: Path) -> TokenDataset:
    """The text of sketches again, for a second pass.  Raises `SketchError` where it has changed."""
    tokens = TokenDataset.load(config, find_tokenizer(config, models), context=config.context, folder=folder)
    if tokens.fingerprint != there.fingerprint:
        raise SketchError(
            f"{config.data}: not the text the sketches were made of", given=tokens.fingerprint, wanted=there.fingerprint
        )
    return tokens
