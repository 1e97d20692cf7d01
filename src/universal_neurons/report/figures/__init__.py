"""Tables to figures with captions; nothing is saved here.  Numbers are the paper's figures.

Figures are drawn without pyplot, so that drawing in a server or notebook leaves no state behind.
"""

from universal_neurons.report.figures.diff import DIFF_KINDS
from universal_neurons.report.figures.dynamics import DYNAMICS_KINDS, StepAxis
from universal_neurons.report.figures.illustration import Caption, FigureKind, Illustration
from universal_neurons.report.figures.kinds import STUDY_KINDS, study_figures, study_places
from universal_neurons.report.figures.one_neuron import NEURON_KINDS
from universal_neurons.report.figures.style import lay_out, render
from universal_neurons.report.figures.universality import CONVERGENCE, DENSITIES, by_asker, by_subset, densities

__all__ = [
    "CONVERGENCE",
    "DENSITIES",
    "DIFF_KINDS",
    "DYNAMICS_KINDS",
    "NEURON_KINDS",
    "STUDY_KINDS",
    "Caption",
    "FigureKind",
    "Illustration",
    "StepAxis",
    "by_asker",
    "by_subset",
    "densities",
    "lay_out",
    "render",
    "study_figures",
    "study_places",
]
