"""Figures 1, 4, 15–21: neurons of each family at work, from the activations that the detail pass kept.

Every axes is one neuron: the density of its activation where its label holds and where it does not (log scale), or
its mean and standard deviation by position.  Neurons are the best of each family (`shown.ranking`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from universal_neurons.report.figures.illustration import FAMILY, FigureKind, listed
from universal_neurons.report.figures.style import (
    ACCENT,
    REST,
    SECOND,
    STYLE,
    THIRD,
    canvas,
    in_legend,
    legend_below,
    lettering,
    log_counts,
    title_over,
)
from universal_neurons.report.numbers import number
from universal_neurons.report.other_threshold import as_made
from universal_neurons.storage import Store
from universal_neurons.study import DUPLICATES, PER_FAMILY, ranking, same_label
from universal_neurons.text import INSIDE_WORD, WORD, WORD_START
from universal_neurons.units import name_column, unit_name

BINS = 60
LONGEST = 52  # characters of the title of one axes
LONGEST_TOKEN = 32  # characters of a token or label on an axis
HEAT_TOKENS = 8  # of each context neuron
FEWEST = 5  # occurrences of a token in the heat map
NAMES = {
    "unigram": "Unigram neurons, by where the token stands in a word",
    "alphabet": "Alphabet neurons",
    "previous_token": "Previous-token neurons",
    "position": "Position neurons, mean ± one standard deviation",
    "syntax": "Syntax neurons",
    "context": "Context neurons",
    "token_class": "Neurons of other classes of tokens",
}


@dataclass(frozen=True)
class Details:
    """Activations of the shown neurons with what is known of them: one model's neuron table, token strings."""

    details: pl.DataFrame
    neurons: pl.DataFrame
    strings: Sequence[str]

    def of_family(self, family: str) -> tuple[pl.DataFrame, str]:
        """The shown neurons of a family, best first, and by what they were chosen."""
        ranked, why = ranking(self._kept(self.neurons.filter(pl.col("family") == family)))
        return ranked.head(PER_FAMILY), why

    def duplicates(self) -> pl.DataFrame:
        """The shown neurons that share the commonest unigram."""
        return self._kept(same_label(self.neurons)).head(DUPLICATES)

    def _kept(self, neurons: pl.DataFrame) -> pl.DataFrame:
        names = [name for name in neuron_names(neurons) if name in self.details.columns]
        return neurons.filter(name_column().is_in(names))

    def values(self, name: str) -> np.ndarray:
        """A neuron's activations."""
        return self.details[name].to_numpy()

    def holds(self, name: str) -> np.ndarray:
        """Whether its label holds."""
        return self.details[f"{name} label"].to_numpy()

    def tokens_where(self, words: np.ndarray) -> np.ndarray:
        """Positions whose token is among some of the vocabulary (a mask over it)."""
        return words[self.details["token"].to_numpy()]


def neuron_names(neurons: pl.DataFrame) -> list[str]:
    """`L1.2` of every row."""
    return neurons.select(name_column()).to_series().to_list()


def details_of(store: Store, _: str = "") -> tuple[Details]:
    """What the study kept of the reference's shown neurons."""
    neurons = as_made(store).neurons.filter(pl.col("model") == store.models[0])
    return (Details(store.table("details"), neurons, store.strings),)


def _best_of(kept: Details, family: str) -> str | None:
    """The first shown neuron of a family with what is known of it; None where there is none."""
    shown, _ = kept.of_family(family)
    if shown.is_empty():
        return None
    row = shown.row(0, named=True)
    name = unit_name(row["layer"], row["neuron"])
    if family == "position":
        return f"{name} (mutual information with the position {number(row['position_mi'])} nats)"
    return f"{name} (“{lettering(row['label'])}” explains {number(row['variance_reduction'])})"


def one_family(kept: Details, family: str) -> Figure | None:
    """Fig 15–21: the shown neurons of one family; None where there is none."""
    shown, why = kept.of_family(family)
    return None if shown.is_empty() else _row(kept, shown, f"{NAMES[family]} ({why})", family)


def _family_seen(kept: Details, family: str) -> str:
    of_family = int((kept.neurons["family"] == family).sum())
    return (
        f"Of {len(kept.neurons):,} neurons here {of_family:,} {'is' if of_family == 1 else 'are'} of this family. "
        f"The first drawn is {_best_of(kept, family)}."
    )


SPLIT_AXES = (
    f"{FAMILY} A panel a neuron. Across: its activation. Up: the density, on a logarithmic scale, a line for positions "
    "where its label holds and one for the others. In brackets: the share of variance explained."
)
SPLIT_LOOK = "Lines that part: the neuron is active where its label holds and hardly elsewhere."
POSITION_AXES = (
    f"{FAMILY} A panel a neuron, above its pre-activation, below its activation. Across: the position in the context. "
    "Line and band: mean and standard deviation. MI: mutual information with the position, in nats."
)
POSITION_LOOK = "A line that moves by more than the band is wide: the neuron tells where in the context it is."


def _family_kind(family: str) -> FigureKind:
    words = family.replace("_", "-")
    by_position = family == "position"
    return FigureKind(
        name=family,
        file=f"family-{words}",
        title=f"Neurons of the family {words}",
        axes=POSITION_AXES if by_position else SPLIT_AXES,
        look=POSITION_LOOK if by_position else SPLIT_LOOK,
        stage="the stage labels",
        needs=("details", "vocabulary"),
        inputs=lambda store, _: (*details_of(store), family),
        draw=one_family,
        seen=_family_seen,
    )


def _row(kept: Details, shown: pl.DataFrame, title: str, family: str) -> Figure:
    with mpl.rc_context(STYLE):
        two = family == "position"
        figure = canvas(5.0 if two else 3.0)
        grid = figure.subplots(2 if two else 1, len(shown), squeeze=False)
        for column, row in enumerate(shown.iter_rows(named=True)):
            if two:
                _by_position(grid[0, column], kept, row, pre=True)
                _by_position(grid[1, column], kept, row)
            else:
                split_densities(grid[0, column], kept, row, family)
        for axes in grid[:, 0]:
            axes.set_ylabel(axes.get_ylabel() or "density")
        title_over(figure, title)
    return figure


def teaser(kept: Details) -> Figure:
    """Fig 1 (a–d): an alphabet, a previous-token, a position and a context neuron."""
    with mpl.rc_context(STYLE):
        figure = canvas(3.1)
        for letter, axes, family in zip(
            "abcd", figure.subplots(1, 4), ("alphabet", "previous_token", "position", "context")
        ):
            shown, why = kept.of_family(family)
            if shown.is_empty():
                _empty(axes, f"no {family.replace('_', '-')} neuron")
            elif family == "position":
                _by_position(axes, kept, shown.row(0, named=True))
            else:
                split_densities(axes, kept, shown.row(0, named=True), family)
            axes.set_title(f"({letter}) {axes.get_title()}" + (f"\n{why}" if not shown.is_empty() else ""), fontsize=8)
    return figure


def _teaser_seen(kept: Details) -> str:
    found = {family: _best_of(kept, family) for family in ("alphabet", "previous_token", "position", "context")}
    there = [f"{family.replace('_', '-')} {best}" for family, best in found.items() if best]
    none = [family.replace("_", "-") for family, best in found.items() if not best]
    ending = f" None here is of the family {' or '.join(none)}." if none else ""
    return "".join(f"{each[0].upper()}{each[1:]}. " for each in there).strip() + ending


TEASER = FigureKind(
    name="four_families",
    file="teaser",
    title="A neuron of each of four families",
    axes=f"{FAMILY} Across: activation, or the position in the context. Up: the density, or the mean activation with "
    "its standard deviation.",
    look=SPLIT_LOOK,
    stage="the stage labels",
    needs=("details", "vocabulary"),
    inputs=details_of,
    draw=teaser,
    seen=_teaser_seen,
)


def duplicates_and_heat(kept: Details) -> Figure:
    """Duplicates of one unigram, a syntax neuron, and the tokens on which context neurons are most active."""
    with mpl.rc_context(STYLE):
        figure = canvas(3.6)
        a, b, c = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
        twins = kept.duplicates()
        colours = (ACCENT, SECOND, THIRD)
        for row, colour in zip(twins.iter_rows(named=True), colours):
            name = unit_name(row["layer"], row["neuron"])
            values, holds = kept.values(name), kept.holds(name)
            bins = np.linspace(values.min(), values.max() + 1e-9, BINS).tolist()
            title = f"{name}: {lettering(row['label'])}"
            a.hist(values[holds], bins, density=True, histtype="step", color=colour, label=title)
            a.hist(values[~holds], bins, density=True, histtype="step", color=colour, linestyle=":", alpha=0.7)
        if twins.is_empty():
            _empty(a, "no unigram neuron")
        else:
            log_counts(a)
            a.set(xlabel="activation", ylabel="density", title="(a) one unigram (dotted: other tokens)")
            legend_below(a)
        syntax, why = kept.of_family("syntax")
        if syntax.is_empty():
            _empty(b, "no syntax neuron")
        else:
            split_densities(b, kept, syntax.row(0, named=True), "syntax")
            b.set_title(f"(b) {b.get_title()}\n{why}", fontsize=8)
        _heat_map(c, kept)
    return figure


def _more_seen(kept: Details) -> str:
    twins = kept.duplicates()
    syntax = _best_of(kept, "syntax")
    alike = "No two neurons drawn share a unigram label."
    if len(twins) > 1:
        alike = f"{listed(neuron_names(twins))} share the label “{lettering(twins['label'][0])}”."
    drawn = f"Of the family syntax {syntax} is drawn." if syntax else "No neuron is of the family syntax."
    return f"{alike} {drawn} Context neurons drawn: {len(kept.of_family('context')[0])}."


MORE_FAMILIES = FigureKind(
    name="more_families",
    file="more-families",
    title="Neurons that share a label, a syntax and several context neurons",
    axes=f"{FAMILY} (a, b) Densities of activations where the label holds, and elsewhere. (c) Rows: context neurons. "
    "Columns: tokens. Colour: mean activation, of each neuron's highest.",
    look="(a) Curves that lie on one another: the model has the neuron several times. (c) Tokens that one row alone "
    "has bright.",
    stage="the stage labels",
    needs=("details", "vocabulary"),
    inputs=details_of,
    draw=duplicates_and_heat,
    seen=_more_seen,
)


def _heat_map(axes: Axes, kept: Details) -> None:
    """Fig 4c: context neurons × tokens with the highest mean activation, each neuron scaled to its own highest."""
    shown, _ = kept.of_family("context")
    names = neuron_names(shown)
    means = kept.details.group_by("token").agg(pl.len().alias("count"), *(pl.col(name).mean() for name in names))
    means = means.filter(pl.col("count") >= FEWEST).sort("token")
    if not names or means.is_empty():
        _empty(axes, "no context neuron")
        return
    tops = [means.sort(name, descending=True)["token"].head(HEAT_TOKENS).to_list() for name in names]
    tokens = list(dict.fromkeys(chain.from_iterable(tops)))
    grid = means.filter(pl.col("token").is_in(tokens))
    order = {token: place for place, token in enumerate(grid["token"].to_list())}
    table = grid.select(names).to_numpy().T[:, [order[token] for token in tokens]]
    image = axes.imshow(table / np.abs(table).max(1, keepdims=True), cmap="viridis", aspect="auto")
    axes.spines[:].set_visible(False)
    strings = [lettering(kept.strings[token], LONGEST_TOKEN).replace(" ", "␣") or "∅" for token in tokens]
    axes.set_xticks(range(len(tokens)), strings, rotation=90, fontsize=7)
    labels = [f"{name}\n{lettering(label, LONGEST_TOKEN)}" for name, label in zip(names, shown["label"].to_list())]
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set_title("(c) mean activation by token, context neurons")
    axes.figure.colorbar(image, ax=axes)


def split_densities(axes: Axes, kept: Details, row: Mapping[str, Any], family: str) -> None:
    """The density of a neuron's activation, split by what its family asks."""
    name = unit_name(row["layer"], row["neuron"])
    values = kept.values(name)
    bins = np.linspace(values.min(), values.max() + 1e-9, BINS).tolist()
    splits = _splits(kept, name, str(row["label"]), family)
    for (label, mask), colour in zip(splits, (ACCENT, SECOND, THIRD, REST)):
        if mask.any():
            legend = in_legend(label)
            axes.hist(values[mask], bins, density=True, histtype="step", color=colour, label=legend, linewidth=1.2)
    reduction = row["variance_reduction"]
    silent = "not " if row["label_sign"] == -1 else ""
    title = f"{name}: {silent}{lettering(row['label'], 2 * LONGEST)}"
    log_counts(axes)
    axes.set_xlabel("activation")
    if len(title) > LONGEST:
        title = title[:LONGEST] + "…"
    axes.set_title(f"{title} ({reduction:.2f})", fontsize=8)
    legend_below(axes)


def _splits(kept: Details, name: str, label: str, family: str) -> list[tuple[str, np.ndarray]]:
    holds = kept.holds(name)
    if family not in ("unigram", "alphabet"):
        inside = label.removeprefix("previous token: ")
        if family == "context":
            return [(inside, holds), ("all", np.ones_like(holds))]
        return [(f"after {inside}" if family == "previous_token" else inside, holds), ("other", ~holds)]
    word = label.partition(" (")[0]
    normal = [string.strip().lower() for string in kept.strings]
    same = kept.tokens_where(np.array([string == word for string in normal]))
    if family == "alphabet":
        begins = kept.tokens_where(np.array([string.startswith(word) for string in normal])) & ~same
        return [(f"“{word}”", same), (f"begins with “{word}”", begins), ("other", ~same & ~begins)]
    kind = kept.details["kind"].to_numpy()
    if not (same & (kind > 0)).any():
        return [(f"“{word}”", same), ("other tokens", ~same)]
    parts = {"word": WORD, "word start": WORD_START, "inside word": INSIDE_WORD}
    return [*((part, same & (kind == code)) for part, code in parts.items()), ("other tokens", ~same)]


def _by_position(axes: Axes, kept: Details, row: Mapping[str, Any], *, pre: bool = False) -> None:
    name = unit_name(row["layer"], row["neuron"])
    column = f"{name} pre" if pre and f"{name} pre" in kept.details.columns else name
    activation = pl.col(column)
    rows = kept.details.group_by("position").agg(mean=activation.mean(), sd=activation.std(ddof=0)).sort("position")
    x, mean, sd = (rows[part].to_numpy() for part in ("position", "mean", "sd"))
    axes.fill_between(x, mean - sd, mean + sd, color=REST, alpha=0.5, linewidth=0)
    axes.plot(x, mean, color=ACCENT, linewidth=1)
    what = "pre-activation" if column != name else "activation"
    axes.set(xlabel="position", ylabel=what, title=f"{name} (MI {row['position_mi']:.2f})")


def _empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, f"{text}\nin this study", ha="center", va="center", transform=axes.transAxes, color="#5d6d78")
    axes.set_axis_off()


FAMILY_KINDS = (TEASER, MORE_FAMILIES, *map(_family_kind, NAMES))
