"""A study as a dataset for the Hugging Face hub: its tables as parquet, and a card that names them.

    OUT/README.md            the card: YAML that makes every table a configuration, then words
    OUT/data/TABLE.parquet   the tables that say something of neurons, as the study has them

Tables of token numbers get columns of the tokens' strings beside them (`strings`, `string`, `top_strings`,
`bottom_strings`), those of an earlier version its columns' present names.  All else is copied, byte for byte; a table
without columns is left out.  Nothing of this machine is told: no path, no setting that names one.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from universal_neurons import __version__
from universal_neurons.explorer.new_folder import new_folder
from universal_neurons.explorer.unit_rows import pieces_of
from universal_neurons.legible import legible
from universal_neurons.progress import Reporter
from universal_neurons.report import opening_sentences
from universal_neurons.storage import Store, by_present_names

BATCH_ROWS = 1 << 16
FIRST = "neurons"
TABLES = {  # of what each has a row
    "neurons": "neuron of every model: how universal it is, its moments, its weights, its label and roles",
    "matches": "neuron, other model and rank: the neurons there that correlate most with it",
    "thresholds": "threshold: how many neurons exceed it, with intervals, and how many by chance",
    "null": "neuron of an untrained network: its excess",
    "anchors": "level of correlation: pairs and anchors",
    "cliques": "clique and model: its neuron",
    "clique_levels": "level of correlation: cliques",
    "layers": "layer, other model and layer there: the share of best matches",
    "correlations": "bin of correlations between two models: how many",
    "convergence": "number of tokens: correlations, excess, universal neurons",
    "subsets": "neuron and subset: universality within it",
    "sinks": "model: how many held-out positions are sinks, and which tokens",
    "spans": "model: how its tokenizer fits the spans that all share",
    "labels": "neuron and rank: the labels that explain most of it",
    "own_labels": "neuron and label of the study's own: how much of it the label explains, whatever others do",
    "explanations": "neuron and source: what it fires on and does, in a sentence",
    "scores": "explanation, neuron it was tried on, method and scorer: how well it predicts that neuron",
    "label_counts": "label: at how many positions it holds",
    "examples": "example: a window of text, with the neuron's activations",
    "counterparts": "window of held-out text: the activations of a neuron and of its best matches",
    "tokens": "neuron and rank: the tokens of highest mean activation",
    "positions": "neuron and position: mean activation, firing",
    "vocabulary": "token: its string, how often it occurs",
    "unembeddings": "model: what kurtosis its unembedding allows",
    "spectrum": "model and direction: how strongly its unembedding reads it",
    "preconditions": "model and role: what it needs to show it, and whether it has that",
    "effects": "neuron: its role in prediction, its logit effects",
    "ensembles": "role: what its neurons do together",
    "interventions": "neuron and value: what the model then predicts",
    "ablations": "neuron: what its ablation does, directly and through the final norm",
    "heads": "attention head: its scores for the first token",
    "attention": "neuron and head: what ablating the path does",
    "functional": "matched pair: do the two do the same",
    "functional_gains": "control and measure: by how much matched pairs act more alike",
    "costs": "set of neurons: what ablating it costs",
    "one_to_one": "neuron and other model: its partner where each is used once, and what that costs",
    "consistency": "pair of models: how many neurons are matched one to one, how well, and by chance",
    "consistency_levels": "pair of models and level of correlation: one-to-one and mutual pairs, and by chance",
    "similarity": "pair of layers and measure: how alike they are as wholes",
}
STRINGS = {
    "examples": {"tokens": "strings"},
    "tokens": {"token": "string"},
    "effects": {"top_tokens": "top_strings", "bottom_tokens": "bottom_strings"},
}
SETTINGS = (
    "pairs", "search", "baseline", "draws", "threshold", "top_k", "max_tokens", "context", "mask", "subset", "pooling",
    "null", "examples", "unexplained", "dtype", "gemm_dtype", "seed",
)  # fmt: skip
SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6, "1M<n<10M": 10**7}
LARGEST = "10M<n<100M"
MARKS = re.compile(r"[\\`*_{}\[\]#+!|~$<>&@]|://|www\.")


@dataclass(frozen=True)
class Table:
    """A table of the dataset: its name, how many rows it has, its columns with their types."""

    name: str
    rows: int
    columns: Mapping[str, str]


def write_dataset(store: Store, out: str | Path, reporter: Reporter | None = None) -> Path:
    """Write a study as a dataset into the new folder `out`; returns it.

    Raises `StoreConflictError` where `out` holds anything.
    """
    reporter = reporter or Reporter(quiet=True)
    with new_folder(out) as folder:
        (folder / "data").mkdir()
        tables = []
        for name in filter(store.has, TABLES):
            reporter.note(f"dataset: {name}")
            tables += _write_table(store, name, folder / "data" / f"{name}.parquet")
        (folder / "README.md").write_text(card(store, tables), encoding="utf-8")
    return Path(out)


def _write_table(store: Store, name: str, target: Path) -> list[Table]:
    with store.verified(name) as stream, store.readable(name):
        table = pq.ParquetFile(stream)
        if not table.schema_arrow.names:
            return []
        if name in STRINGS and store.has("vocabulary"):
            _write_with_strings(table, pa.array(store.strings), STRINGS[name], target)
        elif (schema := _present_schema(name, table.schema_arrow)).names != table.schema_arrow.names:
            with pq.ParquetWriter(target, schema, compression="zstd") as writer:
                for piece in pieces_of(store, name):
                    writer.write_table(piece.to_arrow())
        else:
            stream.seek(0)
            with target.open("wb") as out:
                shutil.copyfileobj(stream, out)
    written = pq.read_schema(target)
    return [Table(name, pq.read_metadata(target).num_rows, {field.name: str(field.type) for field in written})]


def _present_schema(name: str, schema: pa.Schema) -> pa.Schema:
    """The columns of a table of any version by their present names."""
    return by_present_names(name, pl.DataFrame(pl.from_arrow(schema.empty_table()))).to_arrow().schema


def _write_with_strings(table: pq.ParquetFile, strings: pa.Array, columns: Mapping[str, str], target: Path) -> None:
    schema = table.schema_arrow
    for source, name in columns.items():
        listed = pa.types.is_nested(schema.field(source).type)
        schema = schema.append(pa.field(name, pa.list_(pa.string()) if listed else pa.string()))
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in table.iter_batches(BATCH_ROWS):
            added = [_strings_of(batch.column(source), strings) for source in columns]
            writer.write_batch(pa.RecordBatch.from_arrays([*batch.columns, *added], schema=schema))


def _strings_of(tokens: pa.Array, strings: pa.Array) -> pa.Array:
    """The strings of tokens, or of lists of tokens."""
    if not pa.types.is_nested(tokens.type):
        return strings.take(tokens)
    lengths = pc.fill_null(pc.list_value_length(tokens), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array([0, *lengths.cumsum().tolist()], pa.int32())
    return pa.ListArray.from_arrays(offsets, strings.take(pc.list_flatten(tokens)), mask=pc.is_null(tokens))


def card(store: Store, tables: Sequence[Table]) -> str:
    """The dataset's card."""
    reference, *others = store.models
    title = f"Neurons of {reference}" + (f" beside {len(others)} other models" if others else "")
    about = {
        "pretty_name": legible(title),
        "tags": ["interpretability", "neurons", "language-models", "universal-neurons"],
        "size_categories": [_size(max(table.rows for table in tables))],
        "configs": [
            {"config_name": table.name, "data_files": f"data/{table.name}.parquet"} | _default(table)
            for table in tables
        ],
    }
    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=False, width=100)
    return f"---\n{front}---\n\n" + "\n".join(_words(store, title, tables)) + "\n"


def _default(table: Table) -> dict[str, bool]:
    return {"default": True} if table.name == FIRST else {}


def _size(rows: int) -> str:
    return next((size for size, end in SIZES.items() if rows < end), LARGEST)


def _words(store: Store, title: str, tables: Sequence[Table]) -> Iterator[str]:
    yield f"# {escaped(title)}\n"
    yield from (f"{escaped(sentence)}\n" for sentence in opening_sentences(store))
    yield "## Models\n"
    yield from _rows(["model", "architecture", "layers", "neurons a layer", "SHA-256 of its files"])
    for model in store.manifest["models"]:
        facts = [escaped(model[key]) for key in ("name", "architecture", "layers", "d_mlp")]
        yield _row([*facts, f"`{model['sha256']}`"])
    yield "\n## Settings\n"
    yield from _rows(["setting", "value"])
    for name in SETTINGS:
        value = store.manifest["config"].get(name)
        if value not in (None, [], ""):
            yield _row([f"`{name}`", escaped(", ".join(map(str, value)) if isinstance(value, list) else value)])
    yield "\n## Tables\n"
    yield 'Each is a configuration: `load_dataset(FOLDER, "matches")`. Models stand by name, neurons by layer, number.'
    yield "What the columns mean: `docs/store.md` of universal-neurons.\n"
    for table in tables:
        yield f"### {table.name}\n\nA row per {TABLES[table.name]}. {table.rows:,} rows.\n"
        yield ", ".join(f"`{_code(name)}` ({kind})" for name, kind in table.columns.items()) + "\n"
    yield f"Written by universal-neurons {__version__}."


def _rows(headings: Sequence[str]) -> Iterator[str]:
    yield _row(headings)
    yield _row(["---"] * len(headings))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return legible(text).replace("`", "'").replace("|", "\u2502")


def escaped(text: object) -> str:
    """Text as Markdown shows it as it stands: no markup, no link, no HTML."""
    return MARKS.sub(lambda mark: "".join(f"&#{ord(c)};" for c in mark[0]), legible(text))
