"""The figure of explanations: how well they predict their own neurons, these neurons' counterparts, and others."""

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from universal_neurons.explanations import leading, scores_of, units_table
from universal_neurons.report.figures.illustration import FigureKind
from universal_neurons.report.figures.style import REST, SECOND, STYLE, canvas, lettering
from universal_neurons.report.numbers import number
from universal_neurons.storage import Store

MOST = 4  # sources that have a panel
ELSEWHERE = {"random": ("random neurons of its layer", REST, "x"), "counterpart": ("its counterparts", SECOND, "o")}


def tried_elsewhere(store: Store) -> pl.DataFrame:
    """Of `units_table` the rows, by one scorer and method, of units whose counterparts were asked about too."""
    units = units_table(scores_of(store)).drop_nulls("counterpart_share")
    return units if units.is_empty() else leading(units)


def own_and_elsewhere(units: pl.DataFrame) -> Figure | None:
    """A panel for each source: a neuron's own share of the possible score across, that of others by its sentence up."""
    sources = units["source"].unique(maintain_order=True).to_list()[:MOST]
    if not sources:
        return None
    with mpl.rc_context(STYLE):
        figure = canvas(3.8)
        panels = figure.subplots(1, MOST, sharex=True, sharey=True)
        for axes, source in zip(panels, sources):
            _panel(axes, units.filter(source=source), source)
        panels[0].set_ylabel("elsewhere, share above chance")
        for axes in panels[len(sources) :]:
            axes.set_axis_off()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _panel(axes: Axes, units: pl.DataFrame, source: str) -> None:
    axes.axhline(0, color="#4a4a4a", linewidth=0.6)
    axes.axline((0, 0), slope=1, color="#4a4a4a", linewidth=0.8, linestyle=":", label="as well as the neuron itself")
    for name, (label, colour, marker) in ELSEWHERE.items():
        places = units["share"].to_numpy(), units[f"{name}_share"].to_numpy()
        axes.plot(*places, marker, color=colour, markersize=4, alpha=0.8, label=label)
    axes.set(xlabel="own, share above chance", title=f"by {lettering(source, 24)}")


def _seen(units: pl.DataFrame) -> str:
    sources = units["source"].unique(maintain_order=True).to_list()[:MOST]
    told = [_of_source(lettering(source), units.filter(source=source)) for source in sources]
    return f"By {units['method'][0]}. {' '.join(told)}"


def _of_source(source: str, units: pl.DataFrame) -> str:
    own, there, random = (number(units[f"{name}share"].mean()) for name in ("", "counterpart_", "random_"))
    beyond = units.select((pl.col("counterpart_share") > pl.col("random_share")).sum()).item()
    means = f"the mean share of {len(units)} neurons is {own}, of their counterparts {there}, of random ones {random}"
    return f"Sentences by {source}: {means}; counterparts are above random ones for {beyond}."


EXPLAINED = FigureKind(
    name="explained",
    file="explanations",
    title="Does a sentence about a neuron hold for its counterparts?",
    axes="An explanation is one sentence on what a neuron fires on; its source, over each panel, is who wrote it. A "
    "scorer, a language model, judges by the sentence alone where a neuron fires on held-out text. Its score is "
    "counted as a share of what is possible: 0 is chance, 1 is without a mistake. Across: a neuron's own score. Up: "
    "the mean score of the same sentence on its counterparts, which are its best matches in the other models, and on "
    "random neurons of their layers.",
    look="Counterparts near the dotted diagonal, and above random neurons, which lie near 0: then the sentence is "
    "about what models share. Where random neurons lie as high, the sentence says little of any of them.",
    stage="uneurons explain RUN --scorer MODEL",
    needs=("scores",),
    inputs=lambda store, _: (tried_elsewhere(store),),
    draw=own_and_elsewhere,
    seen=_seen,
)
