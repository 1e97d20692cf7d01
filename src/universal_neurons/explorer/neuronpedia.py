"""A study as Neuronpedia's exports are laid out, for its importer or whoever reads them.

    OUT/MODEL/LAYER-mlp/
      model.jsonl release.jsonl sourceset.jsonl source.jsonl       one line each
      features/batch-N.jsonl.gz                                    a line a neuron, 1024 a file
      activations/batch-N.jsonl.gz explanations/batch-N.jsonl.gz   of the same neurons; no file where there are none

Layout: docs.neuronpedia.org/api-and-data/exports.  Fields: the tables Neuron, Activation and Explanation of its schema
(github.com/hijohnnylin/neuronpedia, apps/webapp/prisma/schema.prisma), those that its own exports have.

1. A feature is a neuron, its index the neuron's number within its layer.  `frac_nonzero` is the share of positions with
   a pre-activation above 0, the frequency histogram that of the pre-activation; logits are the roles' effects.
2. An activation is an example: every band's windows, the values that are not counted as 0.
3. An explanation is the neuron's sentence, where a label explains it or it fires by position or at BOS, and whatever
   else explains it, the best scored first: who, in its `notes`.  `typeName` and `explanationModelName` are null: they
   would have to name what the importer's database has.

Same study, same bytes: ids come from hashes, nothing says when it was written.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from universal_neurons.errors import MissingFileError
from universal_neurons.explanations import BY_LABELS, first_clause, model_ids
from universal_neurons.explorer.histograms import TABLE, Histograms
from universal_neurons.explorer.new_folder import new_folder
from universal_neurons.explorer.studies import Strings, strings_of
from universal_neurons.explorer.unit_rows import UnitRows
from universal_neurons.labels import UNEXPLAINED
from universal_neurons.progress import Reporter
from universal_neurons.report import spoken_of
from universal_neurons.storage import Store

BATCH = 1024  # neurons a file, as in Neuronpedia's own exports
SET = "mlp"
OF_UNITS = ("neurons", "examples", "effects", "explanations")  # tables
CREATOR_ID = "clkht01d40000jv08hvalcvly"  # the user that a database of Neuronpedia's begins with
CREATOR = "universal-neurons"
COMPRESSION = 5
NOTES = (
    "frac_nonzero and the frequency histogram are of the pre-activation; "
    "values of tokens that the study does not count are 0."
)

Line = dict[str, Any]


def write_neuronpedia(store: Store, out: str | Path, reporter: Reporter | None = None) -> Path:
    """Write every neuron of every model of a study into the new folder `out`; returns it.

    Raises `MissingFileError` where the study has no examples, `StoreConflictError` where `out` holds anything.
    """
    if not store.has("examples"):
        raise MissingFileError(
            f"{store.path}: no examples", wanted="a study with the stage statistics", fix="run it with that stage"
        )
    reporter = reporter or Reporter(quiet=True)
    tables = _Tables(store)
    with new_folder(out) as folder:
        for number, identity in enumerate(model_ids(store.models)):
            reporter.note(f"neuronpedia: {store.models[number]} ({number + 1} of {len(store.models)})")
            for layer in range(store.units[store.models[number]].layers):
                _write_source(folder, store, tables, number, identity, layer)
    return Path(out)


@dataclass(frozen=True)
class _Source:
    """A layer of a model, as every line names it."""

    model: str
    layer: int
    digest: str  # of what the ids of its lines depend on

    @property
    def id(self) -> str:
        return f"{self.layer}-{SET}"

    def place(self, neuron: int) -> Line:
        return {"modelId": self.model, "layer": self.id, "index": str(neuron)}

    def line_id(self, *parts: object) -> str:
        """An id as long as those of the database, the same whenever it is made."""
        named = "/".join(map(str, (self.digest, self.layer, *parts)))
        return "c" + hashlib.sha256(named.encode()).hexdigest()[:24]


class _Strings(dict[int, str]):
    """What tokens are shown as, as a database takes it."""

    def __init__(self, strings: Strings) -> None:
        super().__init__()
        self._strings = strings

    def __missing__(self, token: int) -> str:
        self[token] = _text(self._strings[token])
        return self[token]


class _Tables:
    """The tables that lines are made of, taken in the order of the neurons."""

    def __init__(self, store: Store) -> None:
        self.units, self.strings = store.units, _Strings(strings_of(store))
        self._rows = {name: UnitRows(store, name, self.units) for name in OF_UNITS if store.has(name)}
        self._histograms = Histograms(store) if TABLE in store.manifest["tables"] else None

    def take(self, name: str, model: str, stop: int) -> dict[int, list[Line]]:
        """The rows of a table up to a neuron of a model, by the neuron's flat number."""
        rows = self._rows[name].take(model, stop) if name in self._rows else None
        found: dict[int, list[Line]] = {}
        for row in () if rows is None else rows.iter_rows(named=True):
            found.setdefault(row["unit"], []).append(row)
        return found

    def histograms(self, model: str, start: int, stop: int) -> list[Line | None]:
        """The histogram of every neuron of a stretch."""
        return [None] * (stop - start) if self._histograms is None else list(self._histograms.of(model, start, stop))


def _write_source(folder: Path, store: Store, tables: _Tables, number: int, identity: str, layer: int) -> None:
    facts, name = store.manifest["models"][number], store.models[number]
    text = store.manifest["tokens"]["fingerprint"]
    source = _Source(identity, layer, f"{facts['sha256']}/{text}")
    where = folder / identity / source.id
    release = "universal-neurons-" + hashlib.sha256(
        "/".join([text, *(model["sha256"] for model in store.manifest["models"])]).encode()
    ).hexdigest()[:12]  # fmt: skip
    for file, line in _about(store, number, source, release).items():
        _write_lines(where / f"{file}.jsonl", [line])
    units = store.units[name].columns(layer)
    for batch, start in enumerate(range(units.start, units.stop, BATCH)):
        stop = min(start + BATCH, units.stop)
        neurons, effects = tables.take("neurons", name, stop), tables.take("effects", name, stop)
        examples, explained = (tables.take(table, name, stop) for table in ("examples", "explanations"))
        bars = tables.histograms(name, start, stop)
        lines: dict[str, list[Line]] = {"features": [], "activations": [], "explanations": []}
        for unit in range(start, stop):
            neuron = unit - units.start
            (row,) = neurons[unit]
            shown = list(_activations(source, neuron, examples.get(unit, []), tables.strings))
            (effect,) = effects.get(unit, [{}])
            lines["features"].append(_feature(source, neuron, row, effect, shown, bars[unit - start], tables.strings))
            lines["activations"] += shown
            lines["explanations"] += _explanations(source, neuron, row, explained.get(unit, []))
        for kind in filter(lines.get, lines):
            _write_lines(where / kind / f"batch-{batch}.jsonl.gz", lines[kind])


def _about(store: Store, number: int, source: _Source, release: str) -> dict[str, Line]:
    """The lines about a source, by the names of their files."""
    facts, text = store.manifest["models"][number], store.manifest["tokens"]
    context = store.manifest["config"].get("context")
    name = _text(store.models[number])
    title = f"Neurons that {len(store.models)} models share" if len(store.models) > 1 else "Neurons of a model"
    title, spoken = spoken_of(store.manifest)(title), spoken_of({"models": [facts]})
    units = spoken("MLP neurons" if facts.get("features") is None else "Neurons")
    notes = f"{units}. {spoken(NOTES)}"
    owned = {"creatorId": CREATOR_ID, "visibility": "PUBLIC"}
    return {
        "model": {
            "id": source.model, "displayNameShort": name, "displayName": name, "dimension": facts["d_model"],
            "inferenceEnabled": False, "instruct": False, "layers": facts["layers"], "neuronsPerLayer": facts["d_mlp"],
            "owner": CREATOR,
        } | owned,
        "release": {
            "name": release, "description": title, "descriptionShort": title, "urls": [], "creatorName": CREATOR,
            "creatorNameShort": CREATOR,
        } | owned,
        "sourceset": {
            "modelId": source.model, "name": SET, "description": units, "type": "neurons", "urls": [],
            "creatorName": CREATOR, "releaseName": release, "hasDashboards": True, "allowInferenceSearch": False,
        } | owned,
        "source": {
            "id": source.id, "modelId": source.model, "setName": SET, "hasDashboards": True, "inferenceEnabled": False,
            "num_prompts": text["rows"], "num_tokens_in_prompt": context, "dataset": None, "notes": notes,
        } | owned,
    }  # fmt: skip


def _feature(
    source: _Source,
    neuron: int,
    row: Line,
    effect: Line,
    shown: Sequence[Line],
    histogram: Line | None,
    strings: _Strings,
) -> Line:
    bars = histogram or {"low": [], "high": [], "counts": []}

    def logits(side: str) -> tuple[list[str], list[float]]:
        tokens, values = effect.get(f"{side}_tokens") or [], effect.get(f"{side}_effects") or []
        return [strings[token] for token in tokens], [_number(value) for value in values]

    positive, negative = logits("top"), logits("bottom")
    return source.place(neuron) | {
        "maxActApprox": max((line["maxValue"] for line in shown), default=0.0),
        "creatorId": CREATOR_ID,
        "frac_nonzero": _number(row["sparsity"]),
        "freq_hist_data_bar_heights": [float(count) for count in bars["counts"]],
        "freq_hist_data_bar_values": [_number((low + high) / 2) for low, high in zip(bars["low"], bars["high"])],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "neuron_alignment_indices": [],
        "neuron_alignment_l1": [],
        "neuron_alignment_values": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "decoder_weights_dist": [],
        "neg_str": negative[0],
        "neg_values": negative[1],
        "pos_str": positive[0],
        "pos_values": positive[1],
        "sourceSetName": SET,
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        "vector": [],
        "vectorLabel": None,
        "hookName": None,
        "vectorDefaultSteerStrength": None,
        "hasVector": False,
    }


def _activations(source: _Source, neuron: int, examples: Sequence[Line], strings: _Strings) -> Iterator[Line]:
    for example in examples:
        values = [_number(value) for value in example["activations"]]
        values[example["position"] - example["start"]] = _number(example["activation"])  # the others have three digits
        highest = max(values)
        yield (
            {"id": source.line_id(neuron, example["band"], example["rank"])}
            | source.place(neuron)
            | {
                "creatorId": CREATOR_ID,
                "dataSource": None,
                "tokens": [strings[token] for token in example["tokens"]],
                "maxValue": highest,
                "minValue": min(values),
                "values": values,
                "maxValueTokenIndex": values.index(highest),
                "dfaValues": [],
                "dfaMaxValue": None,
                "dfaTargetIndex": None,
                "binContains": None,
                "binMin": None,
                "binMax": None,
            }
        )


def _explanations(source: _Source, neuron: int, row: Line, stored: Sequence[Line]) -> Iterator[Line]:
    said = [(line["source"], line["explanation"]) for line in stored]
    if BY_LABELS not in dict(said) and row["family"] is not None:
        said.append((BY_LABELS, f"{first_clause(row)}."))
    for who, text in said:
        by_labels = who == BY_LABELS
        if by_labels and row["family"] in (None, UNEXPLAINED):
            continue
        yield (
            {"id": source.line_id(neuron, *(("label",) if by_labels else ("said by", who)))}
            | source.place(neuron)
            | {
                "authorId": CREATOR_ID,
                "description": _text(text),
                "notes": None if by_labels else _text(f"by {who}"),
                "typeName": None,
                "explanationModelName": None,
            }
        )


def _number(value: float | None) -> float:
    """A number to six digits; 0 for none, which the arrays of a database have no place for."""
    return float(f"{value:.6g}") if value is not None and abs(value) < float("inf") else 0.0


def _text(text: str) -> str:
    """Text as a database takes it: NUL shown by its sign, halves of characters by the mark for what is none."""
    return text.replace("\0", "\u2400").encode("utf-8", "replace").decode()


def _write_lines(target: Path, lines: Sequence[Line]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("ascii")
    packed = target.suffix == ".gz"
    target.write_bytes(gzip.compress(content, COMPRESSION, mtime=0) if packed else content)
