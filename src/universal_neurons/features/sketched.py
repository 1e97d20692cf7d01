"""Portable sketches in the place of models: what a study reads of a file, and the models again for a second pass."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from universal_neurons.config import TEXT_SETTINGS, Settings, StudyConfig
from universal_neurons.errors import ConfigError, MissingFileError, SketchError
from universal_neurons.features.inputs import Inputs
from universal_neurons.features.latents import verify_latents
from universal_neurons.features.loaded import Studied, load_studied
from universal_neurons.features.neurons import NeuronSource, basis_of
from universal_neurons.features.pooling import Places
from universal_neurons.features.source import Provisional, Source
from universal_neurons.models import Described, Model, find_tokenizer, is_signless, resolve_sources
from universal_neurons.statistics import Accumulator, Block, Key, Recipe, SignedSums, What, sums_block
from universal_neurons.storage import SKETCH, STATISTICS, SketchFile, require_one_text, sum_rows
from universal_neurons.text import Passages, Rows, Shard, TokenDataset
from universal_neurons.units import Units

FIXED = (
    *TEXT_SETTINGS, "group_size", "tokenizer", "subset", "lanes", "cluster", "dtype", "batch_tokens", "device_map",
    "max_memory",
)  # fmt: skip


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


class SketchedModel(Described):
    """A model as its sketch describes it: a name and shapes, no weights."""

    def __init__(self, path: str, device: str) -> None:
        self.file = SketchFile(path)
        about = self.file.about["model"]
        super().__init__(about["name"])
        self.units, self.d_model = Units.of_facts(about), about["d_model"]
        self.vocab_size, self.context, self.digest = about["vocabulary"], about["context"], about["sha256"]
        self.gated, self.of_neurons = is_signless(about, str(self.file.path)), "features" not in about
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        """Where its sums go."""
        return self._device

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps."""
        about = self.file.about
        return about["model"] | {"name": self.name, "sketch": about["signs"] | {"rounding": about["rounding"]}}

    def original(self) -> Studied:
        """The model itself, or what of it was sketched, from where it was when the sketch was made."""
        origin = self.file.about["origin"]
        try:
            source = replace(resolve_sources([origin])[0], name=self.name)
            (model,) = load_studied([source], device=str(self.device), dtype=self.file.about["dtype"])
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
        return f"SketchedModel({self.name!r}, {self.units}, {str(self.file.path)!r})"


class SketchSource:
    """A sketch as a source: of every shard its signed sums, of held-out stretches centred ones."""

    rounding = "bfloat16"
    pre = unrounded = streams = False
    network: Model | None = None

    def __init__(self, model: SketchedModel) -> None:
        self.name, self.units, self.device = model.name, model.units, model.device
        self.file = model.file
        self.storage = torch.bfloat16 if model.device.type == "cuda" else torch.float32
        mean = self.file.get("mean")
        self.provisional: Provisional | None = None
        self.settle(Provisional(mean, torch.zeros_like(mean), torch.zeros(0, len(mean))))
        moments = self.file.state("moments")
        self.shift = (moments["sum"] / moments["count"]).to(model.device)
        self.places = self._places()

    def _places(self) -> dict[int, tuple[str, int, int]]:
        """By a shard's first row, which of the file's tensors holds its sums, from which row to which."""
        tokens = self.file.token_rows()
        chosen, stretches = tokens.split(self.file.about["heldout_tokens"])
        heldout = [Shard(number, rows) for number, rows in enumerate(stretches)]
        places = {}
        for name, shards in (("sums", tokens.shards(chosen)), ("heldout", heldout)):
            starts, end = sum_rows(shards, self.file.signs, tokens.context)
            stops = [*list(starts.values())[1:], end]
            for shard, start, stop in zip(shards, starts.values(), stops):
                places[int(shard.rows[0])] = name, start, stop
        return places

    @property
    def basis(self) -> str:
        """Tells its provisional means from others."""
        return self._basis

    @property
    def as_they_are(self) -> Key:
        """Its sums, which are all there is."""
        return Key(self.name)

    def signed_sums(self) -> SignedSums:
        """None are collected: they are in the file."""
        raise AssertionError("a sketch's sums are at hand")

    def settle(self, provisional: Provisional) -> None:
        """The means that its file was made with."""
        self.provisional = provisional.to(self.device)
        self._basis = basis_of(provisional.mean)

    def ready(self, shard: Shard) -> dict[Key, Block]:
        """The shard's sums."""
        name, start, stop = self.places[int(shard.rows[0])]
        values = self.file.rows(name, start, stop).to(self.device, self.storage)
        if name == "sums":
            n = self.file.rows("n", start, stop).double().numpy()
            return {Key(self.name, What.SUMS): sums_block(values, n, self.basis, self.rounding)}
        signs = self.file.rows("heldout_n", start, stop).to(values.device)
        return {Key(self.name): Block((values.double() - signs[:, None] * self.shift).float(), self.basis)}

    def reading(self, inputs: Inputs) -> AbstractContextManager[dict[Key, Block]]:
        """No batch is ever read."""
        raise AssertionError("a sketch has no tokens to read")

    def provisional_of(self, ids: Tensor, attention: Tensor, keep: Places) -> Provisional:
        """No batch is ever read."""
        raise AssertionError("a sketch has its provisional means")


class Sketches:
    """The reader of a study of sketches; a second pass reads the models and the text again."""

    complete = True
    networks: list[Model]
    studied: list[Studied]

    def __init__(self, models: Sequence[SketchedModel]) -> None:
        self.models = {model.name: model for model in models}
        self.networks, self.studied = [], []

    def source(self, model: Described, rounding: str, *, pre: bool = False) -> Source:
        """Its sketch; the file decides the rounding."""
        return SketchSource(self.models[model.name])

    def text(self, settings: Settings, folder: Path) -> Rows:
        """The rows that the models read, without their tokens."""
        return next(iter(self.models.values())).file.token_rows()

    def recipes(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """Statistics of single models come from their files, as these hold them of all tokens."""
        files = {name: model.file for name, model in self.models.items()}
        return [partial(_filled, recipe, files) for recipe in recipes]

    def again(self, settings: Settings, tokens: Rows, folder: Path) -> tuple[list[Source], Rows]:
        """The models and the text from where they were.  Raises `SketchError` where either has changed."""
        first = next(iter(self.models.values()))
        networks = [model.original() for model in self.models.values()]
        text = original_tokens(settings, networks, tokens, folder, first.file.about.get("spans"))
        verify_latents(networks, text)
        return [NeuronSource(model, first.file.about["rounding"]) for model in networks], text


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
    if config.names:
        raise ConfigError("names are in the sketches' files", given=", ".join(config.names), fix="leave --names out")
    for name, wanted in {"null": "models that can be built anew", "sinks": "models that read single positions"}.items():
        if getattr(config, name) is not None:
            setting = f"--{name} {getattr(config, name)}"
            raise ConfigError(f"{setting} needs models", given="sketches", wanted=wanted, fix="leave it out")
    search = config.search if config.search != "exact" else "sketch"
    return config.model_copy(update={"stages": ("universality",), "search": search})


def open_sketches(config: StudyConfig) -> tuple[StudyConfig, list[SketchedModel]]:
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
    text |= {"mask": tuple(text["mask"]), "only_subset": tuple(text.get("only_subset", ()))}
    text |= {"gemm_dtype": "bfloat16", "dtype": about["dtype"]}
    return config.model_copy(update=text), models


def original_tokens(
    config: Settings, models: Sequence[Studied], there: Rows, folder: Path, spans: dict[str, Any] | None = None
) -> Rows:
    """The text of sketches again, for a second pass; `spans` where they are of these.

    Raises `SketchError` where it has changed.
    """
    tokens: Rows
    if spans is None:
        tokens = TokenDataset.load(config, find_tokenizer(config, models), context=config.context, folder=folder)
    else:
        readers, pooling = {model.name: model.tokenizer for model in models}, spans["pooling"]
        tokens = Passages.load(config, readers, context=config.context, folder=folder, pooling=pooling)
    if tokens.fingerprint != there.fingerprint:
        raise SketchError(
            f"{config.data}: not the text the sketches were made of", given=tokens.fingerprint, wanted=there.fingerprint
        )
    return tokens
