"""Every kind of figure of a study, in the order of its report."""

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


def study_figures(store: Store) -> dict[str, Illustration]:
    """Every figure of a study's report with its caption, by file name."""
    drawn = {}
    for kind in STUDY_KINDS:
        if kind.has_tables(store):
            for name, model in _files(kind, store).items():
                illustration = kind.of(store, model)
                if illustration is not None:
                    drawn[name] = illustration
    return drawn


def _files(kind: FigureKind, store: Store) -> dict[str, str]:
    """The files of a kind, and the model that each is of."""
    if kind.per != "each":
        return {kind.file: store.models[0]}
    return {f"{kind.file}-{place}": name for name, place in file_names(store.askers or store.models).items()}
