"""What the study page says in words, and what a study has not: `ID/study`."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from universal_neurons.explorer.absent import absent
from universal_neurons.explorer.studies import ShownStudy
from universal_neurons.report import facts as study_facts
from universal_neurons.report import kind_said, noun_of, opening_sentences
from universal_neurons.roles import together_sentences
from universal_neurons.storage import Store

TERM_OF_FACT = {  # by how a fact's label begins
    "compared": "reference", "neurons": "unit", "universal": "universal", "as the paper": "excess_corr",
    "on text": "heldout", "at thresholds": "threshold", "excess": "excess", "scale": "ranks", "basis": "q_value",
    "beside": "untrained", "matches": "match",
}  # fmt: skip


def study_data(study: ShownStudy, store: Store) -> dict[str, Any]:
    """What `ID/study` holds; `store` is the study's as summaries read it."""
    return {
        "id": study.id,
        "name": study.name,
        "title": study.title,
        "noun": noun_of(store.manifest),
        "opening": opening_sentences(store),
        "together": together_sentences(store),
        "facts": _facts(store),
        "reference": 0,
        "models": _models(study, store),
        "subsets": _subsets(store),
        "threshold": store.config.threshold,
        "spans": store.has("spans"),
        "absent": absent(study, store),
        "settings": dict(_flat(store.manifest["config"])),
    }


def _facts(store: Store) -> list[dict[str, str | None]]:
    if not store.askers:
        return []
    lines = study_facts.asker_lines(store, store.askers[0])
    return [{"label": label, "text": text, "term": _term(label)} for label, text in lines]


def _term(label: str) -> str | None:
    return next((term for begin, term in TERM_OF_FACT.items() if label.startswith(begin)), None)


def _models(study: ShownStudy, store: Store) -> list[dict[str, Any]]:
    counts = store.neurons.group_by("model").agg(
        pl.col("dead").sum().alias("dead"),
        pl.col("dead").is_not_null().any().alias("lived"),
        _universal(store.neurons).sum().alias("universal"),
    )
    by_name = {row["model"]: row for row in counts.iter_rows(named=True)}
    return [_model(study, store, number, by_name[name]) for number, name in enumerate(store.models)]


def _universal(neurons: pl.DataFrame) -> pl.Expr:
    return pl.col("is_universal") if "is_universal" in neurons.columns else pl.lit(None, pl.Boolean)


def _model(study: ShownStudy, store: Store, number: int, counts: Mapping[str, Any]) -> dict[str, Any]:
    described, asks = store.manifest["models"][number], store.models[number] in store.askers
    units = study.units[described["name"]]
    return {
        "name": study.models[number],
        "family": kind_said(described),
        "layers": units.layers,
        "widths": list(units.widths),
        **({"experts": [list(each) for each in units.experts]} if units.experts else {}),
        "units": len(units),
        "d_model": described.get("d_model"),
        "vocabulary": described.get("vocabulary"),
        "dead": counts["dead"] if counts["lived"] else None,
        "universal": counts["universal"] if asks else None,
        "digest": described["sha256"],
        "asks": asks,
    }


def _subsets(store: Store) -> list[str]:
    tokens = store.manifest["tokens"] or {}
    return [str(name) for name in tokens.get("subsets", [])] if store.has("subsets") else []


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Settings that say something, nested ones by dotted names, as text."""
    flat = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{before}{name}.")
        elif value is not None and value != []:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            flat.append((before + name, text))
    return flat
