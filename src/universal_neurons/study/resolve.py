"""A `StudyConfig` resolved before anything is written: what `auto` means here, which stages apply, which models.

What cannot be studied is refused here, by name.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from universal_neurons.config import (
    BUNDLED,
    DEFAULT_GROUP_SIZE,
    DEFAULT_NULL_DRAWS,
    IN_MEMORY,
    OF_SEVERAL,
    PERMUTATION_DRAWS,
    STAGES,
    Settings,
    Stage,
    StudyConfig,
    is_nameable,
)
from universal_neurons.errors import ConfigError, ContextError, MissingExtraError, NothingToCompareError, TokenizerError
from universal_neurons.features import Latents, Studied, load_studied
from universal_neurons.labels import find_pipeline
from universal_neurons.matching import draws_within
from universal_neurons.models import (
    DTYPES,
    NEURONS,
    OF,
    Described,
    bundled_models,
    expand_bundled,
    find_tokenizer,
    require_places,
    require_safetensors,
    resolve_sources,
    split_features,
    tokenizer_difference,
    tokenizer_digest,
    verify,
)

PAPER_CONTEXT = 512
LONGEST_FOLDER = 180  # bytes of its name: that of its site, while it is written, is somewhat longer, and 255 the most
CLUSTER_LANES = 8


def from_objects(config: StudyConfig, models: Sequence[Studied]) -> StudyConfig:
    """The configuration as models that were given as objects make it; each is checked as a loaded one is."""
    if config.names:
        raise ConfigError("models in memory have names", given=", ".join(config.names), wanted="no names beside them")
    for network in {id(model.network): model.network for model in models}.values():
        verify(network)
    devices = {str(model.device) for model in models}
    dtypes = {str(model.dtype).removeprefix("torch.") for model in models}
    if len(devices) > 1 or len(dtypes) > 1 or not dtypes <= DTYPES.keys():
        raise ConfigError(
            "the models differ in device or precision, or have one that is not supported",
            given=f"{sorted(devices)}, {sorted(dtypes)}",
            wanted="one device, and one of " + ", ".join(DTYPES),
            fix="move them with .to(...)",
        )
    names = tuple(f"{IN_MEMORY}:{model.name}" for model in models)
    for name in names:
        if not is_nameable(name):
            raise ConfigError("a model's name cannot be written", given=name, wanted="a short name in UTF-8")
    return config.model_copy(update={"models": names, "device": devices.pop(), "dtype": dtypes.pop()})


def identity(config: StudyConfig, models: Sequence[Described]) -> dict[str, Any]:
    """What, with the tokens, tells one study from another."""
    own = config.dtype == "file"
    return {
        "config": config.stored(),
        "models": [model.describe() | (_own_precision(model) if own else {}) for model in models],
    }


def _own_precision(model: Described) -> dict[str, str]:
    """The precision of a model's forward pass, where each has its own."""
    return {"dtype": str(model.dtype).removeprefix("torch.")} if isinstance(model, Studied) else {}


def decide(config: StudyConfig, n_models: int | None = None) -> StudyConfig:
    """The configuration with all decided that does not wait for its models: those it names, or `n_models` objects.

    Raises `ConfigError` for what cannot be studied here.
    """
    known = ["cpu"]
    if torch.cuda.is_available():
        known += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    device = config.device
    if device == "auto":
        device = "cuda" if "cuda" in known else "cpu"
    if device not in known:
        raise ConfigError(f"device {device!r} is not there", wanted="one of " + ", ".join(known))
    kind = torch.device(device).type
    native = "bfloat16" if kind == "cuda" else "float32"
    if config.gemm_dtype == "tf32" and kind != "cuda":
        raise ConfigError("--gemm-dtype tf32 is for CUDA", given=device, wanted="float32, int8 or bfloat16")
    if config.gemm_dtype == "int8" and kind != "cpu":
        raise ConfigError("--gemm-dtype int8 is for a CPU", given=device, wanted="float32, tf32 or bfloat16")
    models = tuple(expand_bundled(config.models))
    if n_models is None and config.names and len(models) != len(config.names):
        raise ConfigError(
            "names are of all models, in their order",
            given=f"{len(config.names)} names of {len(models)} models",
            wanted="a name of each; an empty one is the default",
        )
    single = (n_models or len(models)) == 1
    stages = config.stages or tuple(stage for stage in STAGES if not (single and stage in OF_SEVERAL))
    if "roles" in stages and not {"weights", "statistics"} <= set(stages):
        raise ConfigError("roles need weights and statistics", given=", ".join(stages), fix="add them to --stages")
    if config.only_subset and set(stages) == {"weights"}:
        raise ConfigError("--only-subset is of text, and weights alone need none", wanted="no --only-subset")
    if "sinks" in config.mask and set(stages) == {"weights"}:
        raise ConfigError("--mask sinks is of text, and weights alone need none", wanted="no sinks in --mask")
    if "universality" not in stages:
        alone = {
            "search": config.search != "exact",
            "panels": config.panels,
            "sums": config.sums != "auto",
            "null": config.null,
            "sinks": None if "sinks" in config.mask else config.sinks,
        }
        for name in (name for name, given in alone.items() if given):
            wanted = f"the stage universality, or no --{name}"
            raise ConfigError(f"--{name} is for universality", given=", ".join(stages), wanted=wanted)
    return config.model_copy(
        update={
            "models": models,
            "device": device,
            "dtype": native if config.dtype == "auto" else config.dtype,
            "gemm_dtype": native if config.gemm_dtype == "auto" else config.gemm_dtype,
            "batch_tokens": config.batch_tokens or (16_384 if kind == "cuda" else 2_048),
            "lanes": config.lanes or (CLUSTER_LANES if config.cluster else 1),
            "threads": config.threads or (1 if config.cluster else None),
            "null_draws": config.null_draws or (DEFAULT_NULL_DRAWS if config.null else None),
            "group_size": config.group_size if config.search == "exact" else config.group_size or DEFAULT_GROUP_SIZE,
            "stages": tuple(stage for stage in STAGES if stage in stages),
            "nlp": _pipeline(config) if "labels" in stages else None,
        }
    )


def _pipeline(config: StudyConfig) -> str | None:
    """The pipeline of the syntax labels; None where they are not asked for, or only by default and not there."""
    if config.nlp is None or "syntax" not in config.label_groups:
        return None
    pipeline = find_pipeline(config.nlp)
    if pipeline is None and "syntax" in config.labels:
        raise MissingExtraError(
            "--labels syntax: no English spaCy pipeline is installed",
            wanted="the extra nlp",
            fix="pip install 'universal-neurons[nlp]', or name another pipeline with --nlp",
        )
    return pipeline


def load_models(config: StudyConfig) -> list[Studied]:
    """The models of a resolved configuration, and what else of them is studied."""
    if any(Path(model).suffix == ".safetensors" for model in config.models):
        raise ConfigError("sketches are no models", given=", ".join(config.models), wanted="folders or hub ids")
    if any(model.startswith(IN_MEMORY) for model in config.models):
        raise ConfigError("this study was made of models in memory", wanted="folders or hub ids", fix="name --models")
    names = config.names or ("",) * len(config.models)
    sources = [replace(s, name=name or s.name) for s, name in zip(resolve_sources(config.models), names)]
    require_safetensors(sources)
    limits: dict[str | int, str | int] = {
        device: size for device, _, size in (limit.partition("=") for limit in config.max_memory)
    }
    how = {"device": config.device, "dtype": config.dtype, "device_map": config.device_map}
    return load_studied(sources, **how, max_memory=limits or None)


def require_kin(models: Sequence[Described], config: StudyConfig, *, several: bool) -> str | None:
    """Check that models can be studied together, of one tokenizer or `several` (see `differ`).

    Returns the digest of the tokenizer that they share, if any has one.
    """
    of_dictionaries = [model.name for model in models if isinstance(model, Latents)]
    if of_dictionaries and config.null:
        raise ConfigError(
            f"--null {config.null} is of networks, and dictionaries are of the network they were trained on",
            given=of_dictionaries[0],
            wanted="no --null",
            fix="leave it out, or study residual streams",
        )
    if len(models) < 2 and set(OF_SEVERAL) & set(config.stages):
        raise NothingToCompareError(
            "one model alone has nothing to be compared with",
            given=models[0].name,
            wanted="two models or more",
            fix="repeat --models, or ask for other --stages",
        )
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError("two models have the same name", given=", ".join(names), fix="give them different names")
    if not config.reads_tokens:
        return None
    if several:
        _require_spans(models, config)
        return None
    return require_same_tokenizer(tokenizers_of(models, config))


def differ(config: StudyConfig, models: Sequence[Described]) -> bool:
    """Whether the models' own tokenizers differ, so that positions are spans."""
    tokenizers = [model.tokenizer for model in models if model.tokenizer is not None]
    return config.tokenizer is None and len(set(map(tokenizer_digest, tokenizers))) > 1


def _require_spans(models: Sequence[Described], config: StudyConfig) -> None:
    """Refuse what cannot be asked of spans."""
    require_tokenizers(models)
    if config.data == IN_MEMORY:
        raise TokenizerError(
            "ready-made tokens are those of one tokenizer, and the models' differ",
            wanted="text that every model reads by its own tokenizer",
            fix="name the text with data, and give no tokens",
        )
    if config.pooling == "max" and config.baseline != "permutation" and "universality" in config.stages:
        raise ConfigError(
            "--pooling max has no rotated baseline: the largest of rotated neurons is no rotation of the largest",
            wanted="mean or last",
            fix="leave --pooling out, or take --baseline permutation",
        )
    for model in models:
        require_places(model.tokenizer, model.name)


def require_tokenizers(models: Sequence[Described]) -> None:
    """Raise `TokenizerError` where a model has none: of spans every model's boundaries are needed."""
    without = [model.name for model in models if model.tokenizer is None]
    if without:
        raise TokenizerError(
            f"{without[0]} has no tokenizer, and the others' differ",
            wanted="a tokenizer of every model: their shared boundaries are looked for",
            fix="put its tokenizer into its folder",
        )


def tokenizers_of(models: Sequence[Described], config: StudyConfig) -> dict[str, Any]:
    """The tokenizers of the models that bring one, by name, and the one that is asked for beside them."""
    tokenizers = {model.name: model.tokenizer for model in models if model.tokenizer is not None}
    if config.tokenizer is not None:
        tokenizers[f"--tokenizer {config.tokenizer}"] = find_tokenizer(config, models)
    return tokenizers


def require_same_tokenizer(readers: Mapping[str, Any]) -> str | None:
    """The digest that all these tokenizers, by whose they are, have; None where there is none."""
    digests = {name: tokenizer_digest(tokenizer) for name, tokenizer in readers.items()}
    first = next(iter(digests), None)
    for name, digest in digests.items():
        if first is not None and digest != digests[first]:
            raise TokenizerError(
                "different tokenizers",
                given=f"{first} and {name} differ in vocabulary or merges: "
                f"{tokenizer_difference(readers[first], readers[name])}",
                wanted="models that read the same tokens",
                fix="leave one out; correlations are over token positions, which must be the same",
            )
    return digests[first] if first else None


def resolve(config: StudyConfig, models: Sequence[Described]) -> Settings:
    """The settings that a decided configuration (`decide`) and its models make.

    The context is the one asked for, else 512, the paper's, or the shortest that the models can read.  Raises
    `ContextError` where a model cannot read rows so long.
    """
    shortest = min(models, key=lambda model: model.context)
    context = config.context or min(PAPER_CONTEXT, shortest.context)
    if context > shortest.context:
        raise ContextError(
            f"{shortest.name} cannot read rows of {context} tokens",
            given=f"--context {context}",
            wanted=f"at most {shortest.context}",
            fix=f"--context {shortest.context}",
        )
    pooling = (config.pooling or "mean") if config.reads_tokens and differ(config, models) else None
    if config.pooling is not None and pooling is None:
        raise ConfigError(
            "--pooling is for models of different tokenizers",
            given="one tokenizer, whose tokens are positions as they are",
            wanted="no --pooling",
            fix="leave it out",
        )
    stages = config.stages if pooling is None else _stages_of_spans(config.stages)
    decided = dict(config) | {
        "context": context,
        "group_size": config.group_size or DEFAULT_GROUP_SIZE,
        "draws": config.draws or _draws(config, models),
        "pooling": pooling,
        "stages": _stages_of_spread(_stages_of_features(stages, config, models), config, models),
    }
    return Settings.model_construct(config.model_fields_set, **decided)


def _draws(config: StudyConfig, models: Sequence[Described]) -> int:
    """How many draws of the baseline where none were asked for."""
    if config.baseline == "permutation":
        return PERMUTATION_DRAWS
    return draws_within(config.max_tokens, max(model.d_mlp for model in models))


def _stages_of_spans(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """All stages but roles: these are of each model's own tokens, and so of a study of its own."""
    if "roles" in stages and stages != STAGES:
        raise ConfigError(
            "roles are of each model's own tokens, and the tokenizers differ",
            given=", ".join(stages),
            wanted="other stages",
            fix="study the roles of each model by itself: uneurons run --models ONE",
        )
    return tuple(stage for stage in stages if stage != "roles")


def _stages_of_features(
    stages: tuple[Stage, ...], config: StudyConfig, models: Sequence[Described]
) -> tuple[Stage, ...]:
    """All stages but those of neurons: roles, where not all units are, weights, where none have any."""
    others = [model.name for model in models if not model.of_neurons]
    none = not any(model.has_weights for model in models)
    lacking = [stage for stage in stages if others and (stage == "roles" or (stage == "weights" and none))]
    if lacking and not set(STAGES) - {"universality"} <= set(config.stages):
        raise ConfigError(
            f"{others[0]} has no {' and no '.join(lacking)}: these are of neurons",
            given=", ".join(stages),
            wanted="the stages statistics, labels, universality",
            fix="name these with --stages, or study neurons by themselves",
        )
    return tuple(stage for stage in stages if stage not in lacking)


def _stages_of_spread(stages: tuple[Stage, ...], config: StudyConfig, models: Sequence[Described]) -> tuple[Stage, ...]:
    """All stages but those that read weights, where a model's are not on one device."""
    spread = [model.name for model in models if isinstance(model, Studied) and model.network.spread]
    whole = [stage for stage in stages if stage in ("weights", "roles")]
    if not spread or (not whole and config.null is None):
        return stages
    if config.null is not None or not set(STAGES) - set(OF_SEVERAL) <= set(stages):
        raise ConfigError(
            f"{spread[0]} is spread over devices, and {', '.join(whole) or 'the untrained null'} need it on one",
            given=", ".join(stages),
            wanted="the stages statistics, labels, universality, similarity",
            fix="name these with --stages, and leave --null out",
        )
    return tuple(stage for stage in stages if stage not in whole)


def require_neurons(models: Sequence[str], what: str) -> None:
    """Raise `ConfigError` where features beside neurons are named, and `what` is of neurons."""
    others = [model for model in models if split_features(model)[1] != NEURONS]
    if others:
        raise ConfigError(
            f"{what} is of neurons", given=others[0], wanted="models alone", fix="leave :: and the features out"
        )


def require_no_masked_sinks(config: StudyConfig, what: str, why: str) -> None:
    """Raise `ConfigError` where sinks are to be masked in what cannot find them."""
    if "sinks" in config.mask:
        raise ConfigError(
            f"{what} cannot mask sinks: {why}",
            given="--mask " + " ".join(map(str, config.mask)),
            wanted="a mask that needs no model: bos, eos, newline or ids",
            fix="leave sinks out, or use `uneurons run`",
        )


def settings_of_null(config: Settings) -> Settings:
    """The settings of the untrained null's passes: the study's, universality alone."""
    alone = {"stages": ("universality",), "subset": (), "nlp": None, "null": None, "null_draws": None}
    return config.model_copy(update=alone)


def default_out(config: StudyConfig, models: Sequence[Described]) -> str:
    """runs/NAME: `bundled`, or the models' names and the corpus's."""
    if list(config.models) == bundled_models():
        return run_folder(BUNDLED, config.data)
    others = [] if len(models) == 1 else [models[1].name if len(models) == 2 else f"{len(models) - 1}-models"]
    return run_folder("-vs-".join([models[0].name, *others]), config.data)


def run_folder(name: str, data: str) -> str:
    """runs/NAME, or runs/NAME-on-CORPUS; cut where no file may have so long a name, and then told from others by a
    digest of the whole."""
    whole = name if data == BUNDLED else f"{name}-on-{Path(data).name.split('.')[0]}"
    whole = whole.replace(OF, "-").replace("/", "-").replace("\0", "-")
    if len(whole.encode()) > LONGEST_FOLDER:
        kept = whole.encode()[:LONGEST_FOLDER].decode(errors="ignore")
        whole = f"{kept}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
    return str(Path("runs") / whole)
