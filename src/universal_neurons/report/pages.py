"""A store to figures and one self-contained report.html; several stores side by side."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from universal_neurons.diff import Diff
from universal_neurons.disk import disk_errors, write_atomically
from universal_neurons.dynamics import Dynamics
from universal_neurons.legible import file_names, legible
from universal_neurons.report import figures
from universal_neurons.report.counts import anchor_lines, clique_lines
from universal_neurons.report.diff_summary import kinds_of, lists_of
from universal_neurons.report.diff_summary import sentences as diff_sentences
from universal_neurons.report.dynamics_summary import HEADINGS, dynamics_rows, sentences
from universal_neurons.report.opening import opening_sentences
from universal_neurons.report.other_threshold import as_made, threshold_sentence
from universal_neurons.report.summary import (
    MODEL_FACTS,
    asker_lines,
    basis_tests,
    family_rows,
    fires_on,
    match_cells,
    models_rows,
    published_rows,
    short,
    shown_neurons,
)
from universal_neurons.roles import role_rows, with_oriented_skew
from universal_neurons.storage import Results, Store
from universal_neurons.study import FIT_FACTS, fit_rows
from universal_neurons.units import unit_name

FAMILY_FIGURES = ("teaser", "more-families", "family-")
ROLE_TABLES = (*figures.ROLE_TABLES, "functional")
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


def study_figures(store: Store) -> dict[str, Figure]:
    """Every figure of a study, by file name."""
    threshold = store.config.threshold
    drawn: dict[str, Figure] = {}
    drawn |= _property_figures(store)
    if store.has("details"):
        reference = as_made(store).neurons.filter(pl.col("model") == store.models[0])
        drawn |= figures.families_figures(store.table("details"), reference, store.strings)
    if store.has("effects"):
        tables = {name: store.table(name) for name in ROLE_TABLES if store.has(name)}
        drawn |= figures.roles_figures(with_oriented_skew(store), tables, store.models[0], store.config.roles.kurtosis)
    if not store.askers:
        return drawn
    for asker, place in file_names(store.askers).items():
        drawn[f"universality-{place}"] = figures.universality(store.neurons, store.layers, asker, threshold)
        shown, title = shown_neurons(store, asker)
        if store.has("thresholds"):
            drawn[f"thresholds-{place}"] = figures.thresholds(store.table("thresholds"), asker, threshold)
        drawn[f"intervals-{place}"] = figures.intervals(shown, threshold, title)
    drawn["densities"] = figures.densities(_by_asker(store))
    drawn["convergence"] = figures.convergence(store.convergence, as_made(store).config.threshold)
    if store.has("subsets"):
        drawn["subsets"] = figures.by_subset(store.subsets, threshold)
    return drawn


def _property_figures(store: Store) -> dict[str, Figure]:
    """Figures 3, 9, 10, 14 of the models that were asked about (else of all)."""
    names = store.askers or store.models
    tables = {name: store.neurons.filter(pl.col("model") == name) for name in names}
    drawn: dict[str, Figure | None] = {"percentiles": figures.percentiles(tables)}
    for name, place in file_names(names).items():
        table = tables[name]
        drawn[f"sparsity-{place}"] = figures.sparsity_against_cosine(table, name)
        drawn[f"nearest-{place}"] = figures.nearest(table, name)
        drawn[f"layers-{place}"] = figures.by_layer(table, name)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _by_asker(store: Store, prefix: str = "") -> dict[str, pl.DataFrame]:
    return {prefix + asker: store.neurons.filter(pl.col("model") == asker) for asker in store.askers}


def write_report(store: Store) -> Path:
    """Draw a study's figures (SVG and PNG) and its report into the store; returns the report."""
    pictures = _write_figures(store, study_figures(store))
    page = PAGES.get_template("report.html").render(
        studies=[_section(store, pictures)], beside=False, densities=None, rows=[]
    )
    return store.write_page("report.html", page.encode())


def write_page(store: Store, target: Path) -> Path:
    """A study's report as one page elsewhere, its own folder untouched; returns the page."""
    page = PAGES.get_template("report.html").render(
        studies=[_section(store, _pictures(store))], beside=False, densities=None, rows=[]
    )
    return _write_elsewhere(target, page)


def _pictures(store: Store) -> dict[str, str]:
    return {key: _embedded(figures.render(figure, "svg")) for key, figure in study_figures(store).items()}


def _write_elsewhere(target: Path, page: str) -> Path:
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(target, page.encode())


def _write_figures(store: Results, drawn: Mapping[str, Figure]) -> dict[str, str]:
    """Write figures as SVG and PNG; returns them by name, to be embedded."""
    pictures = {}
    for name, figure in drawn.items():
        svg = figures.render(figure, "svg")
        store.write_page(f"figures/{name}.svg", svg)
        figure.set_layout_engine("none")  # as the SVG laid it out
        store.write_page(f"figures/{name}.png", figures.render(figure, "png"))
        pictures[name] = _embedded(svg)
    return pictures


DYNAMICS_SECTIONS = {
    "dynamics-universal": "The universal set",
    "dynamics-emergence": "Emergence",
    "dynamics-persistence": "Persistence",
    "dynamics-partners": "Partners",
    "dynamics-families": "Families",
    "dynamics-self": "Each neuron and its final self",
}


def write_dynamics_report(dynamics: Dynamics) -> Path:
    """Draw the figures and the report of training dynamics into their folder; returns the report."""
    names = [name for name in ("checkpoints", "neurons", "emergence", "families") if dynamics.has(name)]
    axis = figures.StepAxis.of(dynamics.names, dynamics.steps)
    drawn = figures.dynamics_figures({name: dynamics.table(name) for name in names}, axis, dynamics.config.threshold)
    pictures = _write_figures(dynamics, drawn)
    by_figure = sentences(dynamics)
    page = PAGES.get_template("dynamics.html").render(
        name=dynamics.path.resolve().name,
        seeds=dynamics.seeds,
        names=dynamics.names,
        headings=HEADINGS,
        rows=dynamics_rows(dynamics),
        sections=[(title, pictures[n], by_figure[n]) for n, title in DYNAMICS_SECTIONS.items() if n in pictures],
        tokens=dynamics.manifest["tokens"],
        checkpoints=dynamics.manifest["checkpoints"],
        config={key: value for key, value in dynamics.manifest["config"].items() if value not in (None, [])},
        environment=dynamics.manifest["environment"],
    )
    return dynamics.write_page("report.html", page.encode())


def write_diff_report(diff: Diff) -> Path:
    """Draw the figure and the report of a diff into its folder; returns the report."""
    gated = bool(diff.study.gated)
    pictures = _write_figures(diff, {"changes": figures.changes_by_layer(diff.changes, by_size=gated)})
    page = PAGES.get_template("diff.html").render(
        name=diff.path.resolve().name,
        models=diff.models,
        lines=diff_sentences(diff),
        kinds=kinds_of(diff),
        picture=pictures["changes"],
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
        tables |= _by_asker(store, f"{name}: ")
        compared += [{"": f"{name}: {asker}"} | dict(asker_lines(store, asker)) for asker in store.askers]
    densities = _embedded(figures.render(figures.densities(tables), "svg")) if tables else None
    labels = dict.fromkeys(label for values in compared for label in values)
    rows = [[label, *(values.get(label, "–") for values in compared)] for label in labels]
    page = PAGES.get_template("report.html").render(studies=sections, beside=True, densities=densities, rows=rows)
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


def _section(store: Store, pictures: dict[str, str]) -> dict[str, Any]:
    manifest = store.manifest
    publication = store.config.published
    return {
        "name": store.path.resolve().name,
        "opening": [*filter(None, [threshold_sentence(store)]), *opening_sentences(store)],
        "site": store.site.name,
        "site_link": quote(f"../{store.site.name}/index.html"),
        "asked": [_asked(store, asker, pictures) for asker in store.askers],
        "cliques": clique_lines(store),
        "spans": fit_rows(store.table("spans")) if store.has("spans") else [],
        "fit_facts": FIT_FACTS,
        "pooling": store.config.pooling,
        "densities": pictures.get("densities"),
        "convergence": pictures.get("convergence"),
        "convergence_text": _convergence_text(store) if store.askers else "",
        "families": family_rows(store) if store.has("labels") else [],
        "unexplained": short(store.config.unexplained),
        "family_pictures": [item for item in pictures.items() if item[0].startswith(FAMILY_FIGURES)],
        "roles": role_rows(store) if store.has("effects") else [],
        "role_pictures": [item for item in pictures.items() if item[0].startswith("role-")],
        "property_pictures": [item for item in pictures.items() if item[0].startswith(PROPERTY_FIGURES)],
        "subsets": pictures.get("subsets"),
        "published": published_rows(store),
        "published_source": publication.source if publication else "",
        "models": manifest["models"],
        "tokens": manifest["tokens"],
        "environment": manifest["environment"],
        "config": {key: value for key, value in manifest["config"].items() if value not in (None, [])},
        "baseline": store.config.baseline,
        "draws": store.config.n_draws,
    }


def _asked(store: Store, asker: str, pictures: dict[str, str]) -> dict[str, Any]:
    shown, title = shown_neurons(store, asker, most=50)
    place = file_names(store.askers).get(asker)
    others = [name for name in store.models if name != asker]
    matches = match_cells(store, asker, shown)
    tests, together = basis_tests(store, shown)
    rows = []
    for row, q in zip(shown.iter_rows(named=True), tests):
        cells = matches[row["layer"], row["neuron"]]
        rows.append(
            {
                "name": unit_name(row["layer"], row["neuron"]),
                "excess": short(row["excess_corr"]),
                "interval": f"{short(row['excess_low'])} – {short(row['excess_high'])}",
                "mean_corr": short(row["mean_corr"]),
                "baseline": short(row["mean_baseline"]),
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
        "title": title + together,
        "q_apart": not together,
        "rows": rows,
        "universality": pictures.get(f"universality-{place}"),
        "intervals": pictures.get(f"intervals-{place}"),
        "thresholds": pictures.get(f"thresholds-{place}"),
    }


def _convergence_text(store: Store) -> str:
    rows = store.convergence.filter(pl.col("asker") == store.models[0]).sort("tokens").to_dicts()
    if len(rows) < 2:
        return "The corpus is one shard: too short to see whether more would change the answer."
    before, last = rows[-2], rows[-1]
    at = "" if as_made(store) is store else f" (excess > {as_made(store).config.threshold:g})"
    change = last["corr_median"] - before["corr_median"]
    return (
        f"From {before['tokens']:,} to {last['tokens']:,} tokens the median best correlation changed by {change:+.3f}, "
        f"the universal count{at} went from {before['universal']} to {last['universal']}, and "
        f"{before['same_match']:.0%} of the best matches were already the final ones."
    )


def _embedded(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
