"""The configuration of a study: one frozen object, saved with the results, that replays them.

The command line's flags and the keys of a YAML file are this class's field names (`_` written `-`).
"""

import re
from os import PathLike, fspath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from universal_neurons.role_settings import MOST, RoleSettings

BUNDLED = "bundled"
CONFIG_BYTES = 1 << 23
LONGEST_NAME = 4096
UNNAMEABLE = re.compile("[\0\ud800-\udfff]")
IN_MEMORY = "in-memory"  # what stands in the place of a path where an object was given
Precision = Literal["auto", "float32", "bfloat16", "float16", "file"]
MaskRule = Literal["bos", "eos", "newline", "sinks"] | Annotated[int, Field(ge=0, lt=2**31)]
Stage = Literal["weights", "statistics", "labels", "universality", "similarity", "roles"]
Plan = Literal["auto", "balanced", "sequential"]  # of devices
PoolingKind = Literal["mean", "last", "max"]
NO_LABELS = "labels are none, and functions in their place are for run_study alone"
STAGES: tuple[Stage, ...] = ("weights", "statistics", "labels", "universality", "similarity", "roles")
OF_SEVERAL: tuple[Stage, ...] = ("universality", "similarity")  # that compare models
LABEL_GROUPS = ("tokens", "unigrams", "syntax", "subsets", "position", "topics")
DYNAMICS_FILE = "dynamics.json"
DIFF_FILE = "diff.json"
NOT_OF_DYNAMICS = (  # settings of `run` alone
    "pairs", "subset", "examples", "roles", "published", "null", "null_draws", "pooling", "device_map", "max_memory",
    "names",
)  # fmt: skip
DEFAULT_GROUP_SIZE = 64
PERMUTATION_DRAWS = 2
DEFAULT_NULL_DRAWS = 5
DEFAULT_SINKS = 10.0


def is_nameable(text: str) -> bool:
    """Whether files and tables can hold a name or path: not too long, UTF-8, and no NUL but in that of an object."""
    path = text.replace("\0", "") if text.startswith(f"{IN_MEMORY}:") else text
    return len(text) <= LONGEST_NAME and not UNNAMEABLE.search(path)


class Published(BaseModel):
    """What a publication reports for the same run, to be put beside ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(description="What was published, and where in it.")
    neurons: int = Field(ge=1, lt=MOST, description="Neurons of the reference.")
    universal: int = Field(ge=0, lt=MOST, description="Universal ones among them.")
    universal_per_layer: tuple[Annotated[int, Field(ge=0, lt=MOST)], ...] = Field(
        (), description="The same in each layer, from the first."
    )


TEXT_SETTINGS = (  # what decides which tokens are read
    "data", "data_config", "data_split", "text_column", "subset_column", "only_subset", "min_characters", "max_tokens",
    "context", "mask", "heldout_tokens",
)  # fmt: skip


class ModelInParts(BaseModel):
    """A model as files may name it: `{model, revision, features, name}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    revision: str = ""
    features: str = ""
    name: str = ""

    @property
    def spelled(self) -> str:
        """As the command line names it."""
        revision = f"@{self.revision}" if self.revision else ""
        return self.model + revision + (f"::{self.features}" if self.features else "")


class StudyConfig(BaseModel):
    """What a study compares, on what, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    models: tuple[str, ...] = Field(
        (BUNDLED,),
        description="A local folder, hub id or id@revision, ::FEATURES behind; repeat it. The first is the reference.",
    )
    names: tuple[str, ...] = Field(
        (), description="What the models are called, in their order; repeat it. Else by their paths or ids."
    )
    data: str = Field(
        BUNDLED, min_length=1, description="A text, jsonl or parquet file, a saved `datasets` folder or a hub data set."
    )
    data_config: str | None = Field(None, description="Configuration of a hub data set.")
    data_split: str | None = Field(None, description="Split of a hub or saved data set; else test, validation, train.")
    text_column: str = Field("text", description="Column (or dotted path) of the text.")
    subset_column: str = Field("subset", description="Column (or dotted path) of the subset's name.")
    only_subset: tuple[str, ...] = Field((), description="Read the documents of this subset alone; repeat it.")
    min_characters: int = Field(50, ge=0, le=10**6, description="Documents of at most so many characters are dropped.")
    tokenizer: str | None = Field(None, description="A tokenizer's folder or hub id; else the reference model's own.")
    out: str | None = Field(None, description="Folder of the results; else runs/NAME.")
    max_tokens: int = Field(250_000, ge=1, lt=MOST, description="Read at most so many token positions; else 250 000.")
    context: int | None = Field(
        None, ge=2, le=2**20, description="Tokens per row, BOS included; else 512 or the models' own."
    )
    pooling: PoolingKind | None = Field(
        None, description="What the activations of a span's tokens become where tokenizers differ; else mean."
    )
    mask: tuple[MaskRule, ...] = Field(
        ("bos", "eos", "newline"), description="Left out of every statistic: bos, eos, newline, an id, or sinks."
    )
    sinks: float | None = Field(
        None, gt=1, le=10**6, description="A sink's residual norm exceeds so many times its row's median; else 10."
    )
    stages: tuple[Stage, ...] = Field(
        (),
        description="What to find out, repeated: weights, statistics, labels, universality, similarity, roles; "
        "else all.",
    )
    pairs: Literal["reference", "all"] = Field(
        "reference", description="Ask about the reference's neurons, or about every model's."
    )
    search: Literal["exact", "screened", "sketch"] = Field(
        "exact",
        description="Compute all correlations, or those that a sketch cannot rule out (certified), or estimate them.",
    )
    group_size: int | None = Field(
        None, ge=2, le=2**20, description="Token positions added up in each sum of a sketch; else 64."
    )
    subset: tuple[str, ...] = Field((), description="Correlate within this subset too; repeat it, or 'all'.")
    baseline: Literal["rotation", "gaussian", "permutation"] = Field(
        "rotation",
        description="Orthogonal rotations, the authors' Gaussian rows (both from the co-moments), or shuffled tokens.",
    )
    draws: int | None = Field(
        None, ge=2, le=10_000, description="Draws of the baseline; else 20 at most (permutation: 2)."
    )
    null: Literal["untrained"] | None = Field(
        None, description="Hold the excess against that of untrained networks of the same architecture."
    )
    null_draws: int | None = Field(
        None, ge=1, le=1000, description="Untrained networks drawn for each model, a study of them each; else 5."
    )
    top_k: int = Field(10, ge=1, le=10_000, description="Matches kept per neuron and model.")
    threshold: float = Field(
        0.5, allow_inf_nan=False, description="A neuron is universal above this excess correlation."
    )
    heldout_tokens: int | None = Field(
        None, ge=1, lt=MOST, description="Tokens held out for intervals; else a fifth of them, at most a million."
    )
    labels: tuple[str, ...] = Field(
        ("default",),
        description="Labels that neurons are tested for, repeated: default, one of tokens, unigrams, syntax, subsets, "
        "position, topics, or a file of your own (.py, .yaml, .json, .parquet).",
    )
    nlp: str | None = Field("auto", description="spaCy pipeline of the syntax labels; auto: English, if installed.")
    topics: int = Field(20, ge=0, le=1000, description="Topics of the corpus that become labels, at most.")
    unexplained: float = Field(
        0.05, ge=0, le=1, description="A label that explains less of a neuron's variance explains nothing."
    )
    examples: int = Field(
        5, ge=1, le=1000, description="Examples kept per neuron and band: the highest, and four quantile bands."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Precision = Field("auto", description="Of forward passes; auto: bfloat16 on CUDA; file: each model's own.")
    device_map: Plan | None = Field(None, description="Spread models larger than the device, by accelerate's plan.")
    max_memory: tuple[str, ...] = Field((), description="With --device-map: 0=20GiB, cpu=60GiB; repeat it.")
    gemm_dtype: Literal["auto", "float32", "tf32", "bfloat16", "int8"] = Field(
        "auto",
        description="Precision of the correlation's inputs; auto: bfloat16 on CUDA, else float32, or int8 if large.",
    )
    sums: Literal["auto", "float64", "compensated"] = Field(
        "auto", description="Co-moments in float64, or in 6 bytes (float32 and a remainder); auto: as memory allows."
    )
    panels: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Cut the co-moments into so many panels, a pass each; else as memory demands.",
    )
    batch_tokens: int | None = Field(None, ge=1, le=2**22, description="Token positions per forward pass.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; else torch's choice (OMP_NUM_THREADS, all cores)."
    )
    lanes: int | None = Field(
        None, ge=1, le=1024, description="Parts of the text added up apart, side by side on a cluster; else 1, there 8."
    )
    cluster: str | None = Field(None, description="Spread the passes over a Ray cluster: auto, or its address.")
    seed: int = Field(0, ge=0, lt=2**128, description="Seed of the baseline's draws and the sketch's signs.")
    roles: RoleSettings = Field(RoleSettings(), description="Thresholds of the roles.")
    published: Published | None = Field(None, description="Published counts to print beside ours.")

    @field_validator("*")
    @classmethod
    def _names_that_can_be(cls, value: Any) -> Any:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not is_nameable(text):
                raise ValueError(f"names and paths of at most {LONGEST_NAME} characters, in UTF-8 and without NUL")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _paths_as_text(cls, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(fspath(part) if isinstance(part, PathLike) else part for part in value)
        return fspath(value) if isinstance(value, PathLike) else value

    @model_validator(mode="before")
    @classmethod
    def _models_in_parts(cls, given: Any) -> Any:
        """Models that are written `{model, revision, features, name}`, as their names and `names`."""
        models = given.get("models") if isinstance(given, dict) else None
        if not isinstance(models, list | tuple) or not any(isinstance(model, dict) for model in models):
            return given
        if given.get("names"):
            raise ValueError("names stand beside the models, or in `names`")
        parts = [ModelInParts(**m) if isinstance(m, dict) else ModelInParts(model=m) for m in models]
        return given | {"models": [p.spelled for p in parts], "names": [p.name for p in parts]}

    @field_validator("models", "names", "subset", "only_subset", "labels", "stages", "max_memory", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, PathLike)) else value

    @field_validator("models")
    @classmethod
    def _some_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() for name in value) or not value:
            raise ValueError("no model is named")
        return value

    @model_validator(mode="after")
    def _no_contradiction(self) -> "StudyConfig":
        labels = self.labels != ("default",) or self.nlp not in (None, "auto")
        contradictions = {
            "subset 'all' stands alone": "all" in self.subset and len(self.subset) > 1,
            "nlp without the syntax labels": self.nlp not in (None, "auto") and "syntax" not in self.label_groups,
            "the permutation baseline needs --search exact": self.baseline == "permutation" and self.search != "exact",
            "labels or nlp without the stage labels": labels and self.stages and "labels" not in self.stages,
            "null_draws without null (--null untrained)": self.null_draws is not None and self.null is None,
            "null untrained runs on one machine, not on a cluster": self.null and self.cluster is not None,
            "max_memory without device_map": self.max_memory and self.device_map is None,
            "device_map spreads models on one machine, not on a cluster": self.device_map and self.cluster is not None,
        }
        for contradiction, is_one in contradictions.items():
            if is_one:
                raise ValueError(contradiction)
        return self

    @model_validator(mode="after")
    def _group_size_of_a_sketch(self) -> "StudyConfig":
        if self.group_size is not None and self.search == "exact":
            raise ValueError("group_size without a sketch (--search screened or sketch)")
        return self

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if "." not in name and name not in (*LABEL_GROUPS, "default")]
        if unknown:
            raise ValueError(f"default, {', '.join(LABEL_GROUPS)} or a file")
        return value

    @property
    def label_groups(self) -> tuple[str, ...]:
        """The groups of labels that are asked for."""
        return LABEL_GROUPS if "default" in self.labels else tuple(g for g in LABEL_GROUPS if g in self.labels)

    @property
    def label_files(self) -> tuple[str, ...]:
        """The files of one's own labels."""
        return tuple(name for name in self.labels if name not in (*LABEL_GROUPS, "default"))

    @property
    def reads_tokens(self) -> bool:
        """Whether models are run on text; the weights alone need none."""
        return set(self.stages) != {"weights"}

    @property
    def sink_factor(self) -> float:
        """Times its row's median above which a residual norm is a sink's, the default resolved."""
        return self.sinks or DEFAULT_SINKS

    def stored(self) -> dict[str, Any]:
        """As study.json keeps it: all but where it is written and spread, and four that may be left out."""
        not_given = [name for name in ("names", "only_subset", "sinks") if not getattr(self, name)]
        left_out: dict[str, Any] = dict.fromkeys(("out", "cluster", "device_map", "max_memory", *not_given), True)
        if self.roles.frequencies is None:
            left_out["roles"] = {"frequencies"}
        return self.model_dump(mode="json", exclude=left_out)


class Settings(StudyConfig):
    """A study's settings with everything decided: what `study` makes of a `StudyConfig` and its models."""

    context: int
    group_size: int
    draws: int
    batch_tokens: int
    lanes: int

    @model_validator(mode="after")
    def _group_size_of_a_sketch(self) -> "Settings":
        return self  # one is settled whatever the search


class DynamicsConfig(StudyConfig):
    """What training dynamics are studied on: `models` are the seeds, studied together at every checkpoint."""

    models: tuple[str, ...] = Field(
        (BUNDLED,),
        description="A seed: a folder with checkpoints, or a hub id with revisions. The first is the reference.",
    )
    stages: tuple[Stage, ...] = Field(
        ("labels", "universality"), description="What to find out at every checkpoint: universality, and labels or not."
    )
    revisions: tuple[str, ...] = Field(
        (), description="Revisions of the hub ids (of folders: subfolders), in the order of training."
    )
    final_step: int | None = Field(
        None, ge=0, lt=2**53, description="Step of the final model, where its name and trainer_state.json do not tell."
    )

    @field_validator("revisions", mode="before")
    @classmethod
    def _one_revision_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, PathLike)) else value

    @model_validator(mode="after")
    def _a_study_of_the_reference(self) -> "DynamicsConfig":
        beside = [stage for stage in self.stages if stage not in ("labels", "universality")]
        if beside or "universality" not in self.stages:
            raise ValueError("stages are universality, and labels or not")
        if not self.labels:
            raise ValueError(NO_LABELS)
        for name in NOT_OF_DYNAMICS:
            if getattr(self, name) != StudyConfig.model_fields[name].default:
                raise ValueError(f"{name} is not a setting of dynamics: use `uneurons run` on one checkpoint's models")
        return self

    def study(self, **changes: Any) -> StudyConfig:
        """The configuration of one checkpoint's study, with these changes."""
        settings = {name: getattr(self, name) for name in StudyConfig.model_fields}
        return StudyConfig(**settings | changes)
