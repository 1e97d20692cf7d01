"""Every kind of figure of a study, in the order of its report."""

from collections.abc import Sequence

from universal_neurons.legible import file_names
from universal_neurons.report.figures.explanations import EXPLAINED
from universal_neurons.report.figures.families import FAMILY_KINDS
from universal_neurons.report.figures.illustration import FigureKind, Illustration
from universal_neurons.report.figures.properties import LAYERS, NEIGHBOURS, PERCENTILES, SPARSITY
from universal_neurons.report.figures.roles import ROLE_KINDS
from universal_neurons.report.figures.similarity import SIMILARITY
from universal_neurons.report.figures.thresholds import THRESHOLDS
from universal_neurons.report.figures.universality import CONVERGENCE, DENSITIES, INTERVALS, SUBSETS, UNIVERSALITY
from universal_neurons.storage import Store

STUDY_KINDS = (
    UNIVERSALITY, SIMILARITY, THRESHOLDS, INTERVALS, *FAMILY_KINDS, EXPLAINED, *ROLE_KINDS, PERCENTILES, SPARSITY,
    NEIGHBOURS, LAYERS, DENSITIES, CONVERGENCE, SUBSETS,
)  # fmt: skip


def study_places(store: Store) -> dict[str, tuple[FigureKind, str]]:
    """What the figures of a study's report are of, by file name: of which kind, of which model."""
    kinds = [kind for kind in STUDY_KINDS if kind.has_tables(store)]
    return {name: (kind, model) for kind in kinds for name, model in _files(kind, store).items()}


def study_figures(store: Store, of_five: Sequence[int] = range(5)) -> dict[str, Illustration]:
    """Every figure of a study's report with its caption, by file name; of each five in a row these, where some are
    drawn elsewhere."""
    places = [place for number, place in enumerate(study_places(store).items()) if number % 5 in of_five]
    drawn = {name: kind.of(store, model) for name, (kind, model) in places}
    return {name: shown for name, shown in drawn.items() if shown is not None}


def _files(kind: FigureKind, store: Store) -> dict[str, str]:
    """The files of a kind, and the model that each is of."""
    if kind.per != "each":
        return {kind.file: store.models[0]}
    return {f"{kind.file}-{place}": name for name, place in file_names(store.askers or store.models).items()}
