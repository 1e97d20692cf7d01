"""All kinds of figures of the roles of a study, in the order of a report."""

from universal_neurons.report.figures.attention import ATTENTION, MORE_ATTENTION
from universal_neurons.report.figures.interventions import COSTS, ENTROPY, FUNCTIONAL, TOTAL_DIRECT
from universal_neurons.report.figures.prediction import EFFECTS, ENSEMBLES, MORE_EFFECTS, SAME_CLASS
from universal_neurons.report.figures.role_layers import BY_LAYER

ROLE_KINDS = (
    EFFECTS, MORE_EFFECTS, BY_LAYER, SAME_CLASS, ENSEMBLES, ENTROPY, TOTAL_DIRECT, ATTENTION, MORE_ATTENTION,
    FUNCTIONAL, COSTS,
)  # fmt: skip
