"""What a figure of a report is: a title, a drawing, and a caption that says how to read it and what is seen.

A `FigureKind` stands beside the function that draws it.  Its caption has three parts, none of which may be empty: what
is on the axes, what to look for, and what is seen here, in numbers taken from the very tables that were drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from universal_neurons.errors import InputError
from universal_neurons.report.figures.style import NotebookFigure
from universal_neurons.report.words import Spoken, spoken_of
from universal_neurons.storage import Results

EXCESS = (
    "A neuron's best ρ is its highest correlation with a neuron of another model; the baseline is the same after "
    "that model was rotated at random. Excess: best ρ minus baseline, averaged over the other models."
)
UNIVERSAL = f"{EXCESS} Universal: excess above the threshold, as the paper counts."
FAMILY = (
    "A label says what a token or its context is. A neuron's family is the kind of the label that explains most "
    "of its activation's variance."
)
ROLE = "A role is what a neuron does: to the prediction of the next token, or to a later head's attention."
EFFECT = "A logit effect is by how much a unit of a neuron's activation raises a token's logit."
ABLATION = "Mean ablation holds a neuron at its mean activation."


@dataclass(frozen=True)
class Caption:
    """The text under a figure."""

    axes: str
    look: str
    seen: str

    def __post_init__(self) -> None:
        assert self.axes
        assert self.look
        assert self.seen

    def __str__(self) -> str:
        return f"{self.axes} What to look for: {self.look} Seen here: {self.seen}"


@dataclass(frozen=True)
class Illustration:
    """One figure as a page shows it."""

    title: str
    figure: Figure
    caption: Caption


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure: which tables it is of, how it is drawn, and its caption.

    `inputs` takes what `draw` and `seen` are given from a finished folder and one of its models; `draw` gives None
    where these have nothing to show.  `per`: one figure of a whole "study", of "one" model (in a report the reference),
    or of "each" model, named in the file.  `asked`: of models whose matches were asked about.
    """

    name: str  # after `store.plot.`
    file: str  # the name of its file, of "each" model followed by the model's
    title: str
    axes: str
    look: str
    stage: str  # that makes its tables
    needs: tuple[str, ...]
    inputs: Callable[[Any, str], tuple[Any, ...]]
    draw: Callable[..., Figure | None]
    seen: Callable[..., str]
    per: str = "study"
    asked: bool = False

    def has_tables(self, results: Results) -> bool:
        """Whether the folder has what the figure is of."""
        return all(map(results.has, self.needs)) and not (self.asked and not getattr(results, "askers", True))

    def require_tables(self, results: Results) -> None:
        """Raises `InputError`, which names the stage that makes them, where the tables are not there."""
        if not self.has_tables(results):
            raise self.nothing(results)

    def nothing(self, results: Results) -> InputError:
        """The error of a folder that has nothing to draw the figure of."""
        missing = [name for name in self.needs if not results.has(name)]
        without = f"a {results.WHAT} without the table {' and '.join(missing)}"
        lacking = without if missing else "tables that have nothing of it"
        fix = "uneurons roles RUN adds them" if missing and self.stage == "the stage roles" else None
        return InputError(
            f"{results.path}: nothing to draw {self.name} of",
            given=lacking,
            wanted=f"what is made by {self.stage}",
            fix=fix,
        )

    def of(self, subject: object, model: str) -> Illustration | None:
        """The figure of a model, or of the whole of a folder or neuron; None where there is nothing to show."""
        return self.illustrated(*self.inputs(subject, model), spoken=spoken_of(_manifest(subject)))

    def illustrated(self, *given: Any, spoken: Spoken = str) -> Illustration | None:
        """The figure of what `inputs` gives; `spoken` puts the study's word for its units in the place of neurons."""
        figure = self.draw(*given)
        if figure is None:
            return None
        _speak(figure, spoken)
        title = spoken(self.title)
        caption = Caption(*map(spoken, (self.axes, self.look, self.seen(*given))))
        if isinstance(figure, NotebookFigure):
            figure.title, figure.caption = title, caption
        return Illustration(title, figure, caption)


def _manifest(subject: Any) -> dict[str, Any]:
    """Of a finished folder, or of that which a neuron is of."""
    results = getattr(subject, "store", subject)
    return getattr(results, "manifest", None) or {}


def _speak(figure: Figure, spoken: Spoken) -> None:
    """Put the words into a figure's titles, the names of its axes and its legends; ticks, which are names, stay."""
    if spoken is str:
        return
    texts = [axes.title for axes in figure.axes] + [each for axes in figure.axes for each in _named(axes)]
    for text in [*texts, *figure.texts]:
        text.set_text(spoken(text.get_text()))


def _named(axes: Any) -> list[Any]:
    legend = axes.get_legend()
    return [axes.xaxis.label, axes.yaxis.label, *([] if legend is None else [*legend.get_texts(), legend.get_title()])]


def listed(names: list[str], most: int = 3) -> str:
    """The first few of some names in a row, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
