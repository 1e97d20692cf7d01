"""Tables to figures; nothing is saved here.  Numbers are the paper's figures.

Figures are drawn without pyplot, so that drawing in a server or notebook leaves no state behind.
"""

from universal_neurons.report.figures.diff import changes_by_layer
from universal_neurons.report.figures.dynamics import StepAxis, dynamics_figures
from universal_neurons.report.figures.families import families_figures
from universal_neurons.report.figures.properties import by_layer, nearest, percentiles, sparsity_against_cosine
from universal_neurons.report.figures.roles import ROLE_TABLES, roles_figures
from universal_neurons.report.figures.style import render
from universal_neurons.report.figures.thresholds import thresholds
from universal_neurons.report.figures.universality import by_subset, convergence, densities, intervals, universality

__all__ = [
    "ROLE_TABLES",
    "StepAxis",
    "by_layer",
    "by_subset",
    "changes_by_layer",
    "convergence",
    "densities",
    "dynamics_figures",
    "families_figures",
    "intervals",
    "nearest",
    "percentiles",
    "render",
    "roles_figures",
    "sparsity_against_cosine",
    "thresholds",
    "universality",
]
