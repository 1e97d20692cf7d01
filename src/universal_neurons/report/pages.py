"""A store to figures and one self-contained report.html; several stores side by side."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from universal_neurons import __version__
from universal_neurons.diff import Diff
from universal_neurons.disk import disk_errors, open_regular, write_atomically
from universal_neurons.dynamics import Dynamics
from universal_neurons.errors import StoreConflictError
from universal_neurons.explanations import fires_on
from universal_neurons.labels import SAID_OF_FAMILIES, SAID_OF_ROLES
from universal_neurons.legible import file_names, legible
from universal_neurons.report import figures
from universal_neurons.report.consistency import (
    CONSISTENCY_WORDS,
    SIMILARITY_WORDS,
    consistency_rows,
    similarity_askers,
    similarity_rows,
)
from universal_neurons.report.counts import anchor_lines, clique_lines
from universal_neurons.report.diff_summary import diff_sentences, kinds_of, lists_of
from universal_neurons.report.drawing import Picture, embedded, written, written_figures
from universal_neurons.report.dynamics_summary import HEADINGS, dynamics_rows
from universal_neurons.report.explained_section import explained_section
from universal_neurons.report.family_strength import STRENGTH_FACTS, STRENGTH_WORDS, strength_rows
from universal_neurons.report.figures import FigureKind
from universal_neurons.report.numbers import number
from universal_neurons.report.opening import opening_sentences
from universal_neurons.report.other_threshold import threshold_sentence
from universal_neurons.report.sources import kind_said
from universal_neurons.report.summary import (
    MODEL_FACTS,
    RELATIVE,
    asker_lines,
    basis_tests,
    family_rows,
    little_sentence,
    match_cells,
    models_rows,
    only_sentence,
    published_rows,
    shown_neurons,
    unsure_marks,
    what_roles_rest_on,
    words_of,
)
from universal_neurons.report.words import noun_of, spoken_of
from universal_neurons.roles import relative_rows, role_rows, together_sentences
from universal_neurons.storage import Results, Store
from universal_neurons.study import FIT_FACTS, fit_rows
from universal_neurons.units import unit_name

FAMILY_FIGURES = ("teaser", "more-families", "family-")
REPORT = "report.html"
HEAD_BYTES = 500  # of a page: what it is made of stands there
PROPERTY_FIGURES = ("percentiles", "sparsity-", "nearest-", "layers-")


def _on_page(value: Any) -> Any:
    """What a template prints: legible, unless it is HTML already."""
    return value if hasattr(value, "__html__") else legible(value)


PAGES = Environment(
    loader=PackageLoader("universal_neurons.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_on_page,
)


def write_report(store: Store) -> Path:
    """Draw a study's figures (SVG and PNG) and its report into the store; returns the report."""
    pictures = written_figures(store)
    return store.write_page(REPORT, _study_page(store, pictures, made_of(store)).encode())


def drawn_report(store: Store) -> Path | None:
    """The report that this version drew of the study as it is now; None where there is none, or another's."""
    path = store.path / REPORT
    try:
        with open_regular(path) as page:
            head = page.read(HEAD_BYTES)
    except (OSError, StoreConflictError):
        return None
    return path if made_of(store).encode() in head else None


def made_of(store: Store) -> str:
    """What a report is made of: this version, and a digest of the study's folder's name and its manifest."""
    facts = {name: value for name, value in store.manifest.items() if name != "timings"}
    content = json.dumps([store.path.resolve().name, facts], sort_keys=True)
    return f"universal-neurons {__version__} {hashlib.sha256(content.encode()).hexdigest()}"


def write_page(store: Store, target: Path) -> Path:
    """A study's report as one page elsewhere, its own folder untouched; returns the page."""
    return _write_elsewhere(target, _study_page(store, _pictures(store)))


def _study_page(store: Store, pictures: dict[str, Picture], mark: str = "") -> str:
    section = _section(store, pictures)
    return _page([store], mark, studies=[section], beside=False, densities=None, rows=[])


def _page(stores: Sequence[Store], mark: str = "", **content: Any) -> str:
    """The page of some studies; what it says of them all speaks of neurons only where all their units are some."""
    models = [model for store in stores for model in store.manifest["models"]]
    return PAGES.get_template("report.html").render(spoken=spoken_of({"models": models}), made_of=mark, **content)


def _pictures(store: Store) -> dict[str, Picture]:
    return {name: embedded(shown) for name, shown in figures.study_figures(store).items()}


def _write_elsewhere(target: Path, page: str) -> Path:
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(target, page.encode())


def _drawn(results: Results, kinds: Sequence[FigureKind], model: str) -> dict[str, Picture]:
    """The figures that there are tables for, written, of the whole or of one model."""
    kinds = [kind for kind in kinds if kind.has_tables(results)]
    return written(results, {kind.file: shown for kind in kinds if (shown := kind.of(results, model)) is not None})


def write_dynamics_report(dynamics: Dynamics) -> Path:
    """Draw the figures and the report of training dynamics into their folder; returns the report."""
    pictures = _drawn(dynamics, figures.DYNAMICS_KINDS, dynamics.seeds[0])
    page = PAGES.get_template("dynamics.html").render(
        name=dynamics.path.resolve().name,
        seeds=dynamics.seeds,
        names=dynamics.names,
        headings=HEADINGS,
        rows=dynamics_rows(dynamics),
        pictures=pictures.values(),
        tokens=dynamics.manifest["tokens"],
        checkpoints=dynamics.manifest["checkpoints"],
        config={key: value for key, value in dynamics.manifest["config"].items() if value not in (None, [])},
        environment=dynamics.manifest["environment"],
    )
    return dynamics.write_page("report.html", page.encode())


def write_diff_report(diff: Diff) -> Path:
    """Draw the figure and the report of a diff into its folder; returns the report."""
    pictures = _drawn(diff, figures.DIFF_KINDS, diff.models[0])
    page = PAGES.get_template("diff.html").render(
        name=diff.path.resolve().name,
        models=diff.models,
        lines=diff_sentences(diff),
        kinds=kinds_of(diff),
        pictures=pictures.values(),
        lists=lists_of(diff).items(),
        tokens=diff.manifest["tokens"],
        described=diff.manifest["models"],
        rules=diff.config,
        config={key: value for key, value in diff.manifest["config"].items() if value not in (None, [])},
        environment=diff.manifest["environment"],
    )
    return diff.write_page("report.html", page.encode())


def write_joint_report(stores: Sequence[Store], target: Path) -> Path:
    """One page with several studies side by side, their densities in one figure."""
    names = study_names(stores)
    sections: list[dict[str, Any]] = []
    tables: dict[str, pl.DataFrame] = {}
    compared: list[dict[str, str]] = []
    for store, name in zip(stores, names):
        sections.append(_section(store, _pictures(store)) | {"name": name})
        tables |= figures.by_asker(store, f"{name}: ")
        compared += [{"": f"{name}: {asker}"} | dict(asker_lines(store, asker)) for asker in store.askers]
    shown = figures.DENSITIES.illustrated(tables) if tables else None
    densities = None if shown is None else embedded(shown)
    labels = dict.fromkeys(label for values in compared for label in values)
    rows = [[label, *(values.get(label, "–") for values in compared)] for label in labels]
    page = _page(stores, studies=sections, beside=True, densities=densities, rows=rows)
    return _write_elsewhere(target, page)


def study_names(stores: Sequence[Store]) -> list[str]:
    """The folders' names, or their paths where names repeat."""
    names = [store.path.resolve().name for store in stores]
    return names if len(set(names)) == len(names) else [str(store.path) for store in stores]


def summary_html(store: Store) -> str:
    """A study's facts as HTML, for notebooks."""
    models = [_asked(store, asker, {}) for asker in store.askers]
    if not models:
        models = [{"asker": row[0], "facts": list(zip(MODEL_FACTS, row[1:]))} for row in models_rows(store)]
    return PAGES.get_template("summary.html").render(asked=models)


def _section(store: Store, pictures: dict[str, Picture]) -> dict[str, Any]:
    manifest = store.manifest
    publication = store.config.published
    return {
        "name": store.path.resolve().name,
        "opening": [*filter(None, [threshold_sentence(store), only_sentence(store)]), *opening_sentences(store)],
        "site": store.site.name,
        "site_link": quote(f"../{store.site.name}/index.html"),
        "asked": [_asked(store, asker, pictures) for asker in store.askers],
        "one_to_one_words": CONSISTENCY_WORDS,
        "similarity": [similarity_rows(store, asker) for asker in similarity_askers(store)],
        "similarity_words": SIMILARITY_WORDS,
        "similarity_pictures": _starting(pictures, ("similarity-",)),
        "cliques": clique_lines(store),
        "spans": fit_rows(store.table("spans")) if store.has("spans") else [],
        "fit_facts": FIT_FACTS,
        "pooling": store.config.pooling,
        "densities": pictures.get("densities"),
        "convergence": pictures.get("convergence"),
        "families": family_rows(store) if store.has("labels") else [],
        "family_words": words_of(SAID_OF_FAMILIES),
        "strength": strength_rows(store) if store.has("labels") else [],
        "strength_facts": STRENGTH_FACTS,
        "strength_words": STRENGTH_WORDS,
        "explained": explained_section(store),
        "explained_picture": pictures.get("explanations"),
        "role_words": words_of(SAID_OF_ROLES | RELATIVE),
        "unexplained": number(store.config.unexplained),
        "family_pictures": _starting(pictures, FAMILY_FIGURES),
        "roles": [*role_rows(store), *relative_rows(store)] if store.has_roles else [],
        "noun": noun_of(store.manifest),
        "together": together_sentences(store),
        "role_lines": what_roles_rest_on(store) if store.has_roles else [],
        "role_pictures": _starting(pictures, ("role-",)),
        "property_pictures": _starting(pictures, PROPERTY_FIGURES),
        "subsets": pictures.get("subsets"),
        "little": little_sentence(store),
        "published": published_rows(store),
        "published_source": publication.source if publication else "",
        "models": [model | {"kind": kind_said(model)} for model in manifest["models"]],
        "tokens": manifest["tokens"],
        "environment": manifest["environment"],
        "config": {key: value for key, value in manifest["config"].items() if value not in (None, [])},
        "baseline": store.config.baseline,
        "draws": store.config.draws,
    }


def _asked(store: Store, asker: str, pictures: dict[str, Picture]) -> dict[str, Any]:
    shown, title = shown_neurons(store, asker, most=50)
    place = file_names(store.askers).get(asker)
    others = [name for name in store.models if name != asker]
    matches = match_cells(store, asker, shown)
    tests, together = basis_tests(store, shown)
    marks, why_marked = unsure_marks(store, shown)
    rows = []
    for row, q, mark in zip(shown.iter_rows(named=True), tests, marks):
        cells = matches[row["layer"], row["neuron"]]
        rows.append(
            {
                "name": unit_name(row["layer"], row["neuron"]),
                "excess": number(row["excess_corr"]),
                "interval": f"{number(row['excess_low'])} – {number(row['excess_high'])}",
                "mark": mark,
                "mean_corr": number(row["mean_corr"]),
                "baseline": number(row["mean_baseline"]),
                "q": q,
                "fires": fires_on(row),
                "matches": [cells.get(name, "–") for name in others],
            }
        )
    return {
        "asker": asker,
        "others": others,
        "facts": asker_lines(store, asker),
        "anchors": anchor_lines(store, asker),
        "one_to_one": consistency_rows(store, asker),
        "title": title + together,
        "q_apart": not together,
        "why_marked": why_marked,
        "rows": rows,
        "universality": pictures.get(f"universality-{place}"),
        "intervals": pictures.get(f"intervals-{place}"),
        "thresholds": pictures.get(f"thresholds-{place}"),
    }


def _starting(pictures: Mapping[str, Picture], beginnings: tuple[str, ...]) -> list[Picture]:
    return [picture for name, picture in pictures.items() if name.startswith(beginnings)]
