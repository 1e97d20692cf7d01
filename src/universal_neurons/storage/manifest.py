"""study.json, dynamics.json, diff.json, the manifests: what must stand in them; nothing in them is taken on trust."""

import json
import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from universal_neurons.config import DIFF_FILE, DYNAMICS_FILE
from universal_neurons.disk import local_path, open_regular
from universal_neurons.errors import MissingFileError, StoreConflictError
from universal_neurons.units import EXPERT, Units

MANIFEST = "study.json"
HISTOGRAMS = "histograms"  # the one table that is no parquet file
SKETCH = ".safetensors"  # how the name of a portable sketch ends
REWRITING = "rewriting"  # the key of a study whose tables are being replaced: which
MOST_BYTES = 1 << 26
MOST_EXPERTS = 2**31 // EXPERT - 2  # whose neurons' places fit in 32 bits
MOST_LAYERS, MOST_NEURONS = 1 << 16, 1 << 31  # far above any model's; numbers of neurons stay within 64 bits

TableName = Annotated[str, StringConstraints(pattern=r"\A[A-Za-z0-9_-]{1,100}\z")]
Digest = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
Name = Annotated[str, StringConstraints(min_length=1)]


def _holding(name: str) -> Callable[[dict[str, str]], dict[str, str]]:
    """A check that a table, which is always written, is among the tables."""

    def check(tables: dict[str, str]) -> dict[str, str]:
        if name not in tables:
            raise ValueError(f"no table {name!r}")
        return tables

    return check


class Facts(BaseModel):
    """A part of a manifest: these keys, of these very types, and any others."""

    model_config = ConfigDict(strict=True, extra="allow")


Experts = Annotated[int, Field(ge=0, lt=EXPERT)]


class ModelFacts(Facts):
    """A model's name, SHA-256 of its weights, architecture, layers and neurons in each (`Units.of_facts`); sizes."""

    name: Name
    sha256: str
    architecture: str
    layers: int = Field(ge=1, le=MOST_LAYERS)
    d_mlp: int = Field(ge=1, le=MOST_NEURONS)
    features: Literal["residual", "attention", "dictionaries"] | None = None
    widths: list[Annotated[int, Field(ge=0, le=MOST_NEURONS)]] | None = None
    experts: list[Annotated[list[Experts], Field(min_length=2, max_length=2)]] = []
    d_model: int = 0
    vocabulary: int = 0
    context: int = 0

    @model_validator(mode="after")
    def _of_its_layers(self) -> "ModelFacts":
        """Layers of these widths, which hold their experts."""
        widths = self.widths or []
        if self.widths is not None and (len(widths) != self.layers or max(widths) != self.d_mlp):
            raise ValueError("widths of other layers")
        if self.experts and len(self.experts) != len(widths):
            raise ValueError("experts of other layers")
        units = Units.of_facts(self.model_dump(include={"layers", "d_mlp", "widths", "experts"}, exclude_none=True))
        counts = [count for count, _ in self.experts]
        if max(counts, default=0) > MOST_EXPERTS or not all(0 <= plain <= EXPERT for plain in units.plain):
            raise ValueError("more experts than fit, or more neurons outside experts than have names")
        return self


class LeftOutFacts(Facts):
    """How many positions were left out as sinks."""

    left_out: int


class SinkFacts(Facts):
    """Times the row's median that makes a sink, how many held-out positions were looked at, how many are sinks."""

    factor: float
    positions: int
    sinks: int


class WithinTokensFacts(Facts):
    """The share of positions that correlations within single tokens are of."""

    coverage: float


class NullFacts(Facts):
    """How many untrained networks were drawn of each model."""

    draws: int = Field(ge=1)


class TokenFacts(Facts):
    """The text's fingerprint, its rows, tokens and held-out rows; what was left out of it."""

    fingerprint: str
    rows: int
    tokens: int
    heldout_rows: int
    sinks: LeftOutFacts | None = None


class FrequencyFacts(Facts):
    """Whose token counts the roles go by, the SHA-256 of their file, and how many tokens they count."""

    of: str
    sha256: Digest
    tokens: int


class LabelFacts(Facts):
    """Names of the user's own labels."""

    own: list[str] = []


class DictionaryFacts(Facts):
    """What a dictionary does on the study's text."""

    explained: float
    l0: float
    scale: float


class ProductFacts(Facts):
    """How a CPU's units for small numbers make the products, and the largest error of ρ that was measured."""

    gemm_dtype: str
    units: list[str]
    largest_error: float
    positions: int
    refused: str | None = None


class LayoutFacts(Facts):
    """How the co-moments are made."""

    model_config = ConfigDict(strict=True, extra="forbid")

    passes: int = Field(1, ge=1)
    compensated: bool = False


class Environment(Facts):
    """With what a study was made."""

    universal_neurons: str


class Exact(Facts):
    """Of a search that computed all correlations."""

    search: Literal["exact"]


class Screened(Facts):
    """How many best matches a screened search certified."""

    search: Literal["screened"]
    certified: int
    matches: int


class Sketched(Facts):
    """How far a sketch may be off."""

    search: Literal["sketch"]
    standard_error: float
    lowered: float


class Unfinished(Facts):
    """A manifest at any time."""

    complete: bool
    config: dict[str, Any]
    models: list[ModelFacts] = []
    tokens: TokenFacts | None = None
    layout: LayoutFacts = LayoutFacts()
    products: ProductFacts | None = None
    explained: list[Literal["explanations", "scores"]] = []  # tables that a study made anew takes up again


class FinishedStudy(Unfinished):
    """The manifest of a finished study."""

    models: list[ModelFacts] = Field(min_length=1)
    tokens: TokenFacts | None
    tables: Annotated[dict[TableName, Digest], AfterValidator(_holding("neurons"))]
    environment: Environment
    counted_tokens: int
    counted_by_subset: dict[str, int] = {}
    search: Annotated[Exact | Screened | Sketched, Field(discriminator="search")]
    timings: dict[str, float]
    labels: LabelFacts | None = None
    frequencies: FrequencyFacts | None = None
    sinks: SinkFacts | None = None
    dictionaries: dict[str, list[DictionaryFacts]] = {}
    within_tokens: WithinTokensFacts | None = None
    null: NullFacts | None = None
    language_models: dict[Literal["explainers", "scorers"], dict[str, str]] = {}

    @model_validator(mode="after")
    def _with_what_its_tables_need(self) -> "FinishedStudy":
        if "null" in self.tables and self.null is None:
            raise ValueError("a table of untrained networks, and no number of them")
        return self


class Replacement(Facts):
    """The tables that are new, and those that go."""

    replaced: list[TableName]
    removed: list[TableName]


class Rewriting(FinishedStudy):
    """The manifest to come of a study whose tables are being replaced."""

    rewriting: Replacement


class CheckpointFacts(Facts):
    """A checkpoint of training dynamics, and the study of it."""

    name: Annotated[str, StringConstraints(pattern=r"\A[^/\x00]*[^/\x00.][^/\x00]*\z", max_length=200)]
    step: int | None
    sha256: list[str]
    tables: dict[TableName, Digest]


class FinishedDynamics(Unfinished):
    """The manifest of finished training dynamics."""

    seeds: list[Name] = Field(min_length=1)
    checkpoints: list[CheckpointFacts] = Field(min_length=1)
    tokens: TokenFacts
    tables: Annotated[dict[TableName, Digest], AfterValidator(_holding("checkpoints"))]
    environment: Environment


class FinishedDiff(Unfinished):
    """The manifest of a finished diff: base, fine-tune, other fine-tunes; the tables of its study."""

    models: list[ModelFacts] = Field(min_length=2)
    tokens: TokenFacts
    tables: Annotated[dict[TableName, Digest], AfterValidator(_holding("changes"))]
    study: dict[TableName, Digest]
    environment: Environment


def is_ours(named: str) -> bool:
    """Whether this is the folder of a study, of training dynamics or of a diff, or the file of a sketch."""
    if local_path(named).suffix == SKETCH:
        return True
    return any((local_path(named) / name).exists() for name in (MANIFEST, DYNAMICS_FILE, DIFF_FILE))


def file_of(table: str) -> str:
    """The name of a table's file: parquet, or safetensors for the histograms."""
    return f"{table}.safetensors" if table == HISTOGRAMS else f"{table}.parquet"


def products_line(facts: dict[str, Any]) -> str:
    """What is said of a study's products: in which precision, by which units, how exact."""
    error, positions = f"{facts['largest_error']:.1e}", f"{facts['positions']:,}"
    if "refused" in facts:
        return f"products in float32: in {facts['refused']} ρ is up to {error} off, on {positions} positions"
    units = f" by {', '.join(facts['units'])}" if facts["units"] else ""
    return f"products in {facts['gemm_dtype']}{units}: ρ at most {error} off float64, on {positions} positions"


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest, or None where there is none.

    Raises `StoreConflictError` for what is torn, too large, or no manifest.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(min(os.fstat(stream.fileno()).st_size, MOST_BYTES) + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read", given=error.strerror, wanted="a manifest") from None
    if len(content) > MOST_BYTES:
        raise _unreadable(path, f"more than {MOST_BYTES:,} bytes")
    try:
        manifest = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    require(path, manifest, Unfinished)
    assert isinstance(manifest, dict)
    return manifest


def require(path: Path, manifest: object, kind: type[Facts]) -> None:
    """Raise `StoreConflictError` where a manifest, or a part of it, is not of its kind."""
    try:
        kind.model_validate(manifest)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"]))
        problem_text = f"{key[:200]}: {reprlib.repr(problem['input'])}" if key else reprlib.repr(problem["input"])
        if problem["type"] == "missing":
            problem_text = f"no key {key[:200]!r}"
        raise _unreadable(path, f"{problem_text} ({problem['msg'][:200]})") from None


def _unreadable(path: Path, problem: object) -> StoreConflictError:
    return StoreConflictError(
        f"{path}: not readable as a manifest",
        given=str(problem)[:400],
        wanted="the file as it was written",
        fix="name another folder, or remove this one",
    )


def difference(stored: Any, current: Any, where: str) -> str:
    """The first key in which what stands in a manifest is not what it would be here, in words."""
    if isinstance(stored, dict) and isinstance(current, dict):
        for key in current:
            if stored.get(key) != current[key]:
                return difference(stored.get(key), current[key], f"{where}.{key}")
    return f"{where}: {json.dumps(current)[:100]}, there {json.dumps(stored)[:100]}"
