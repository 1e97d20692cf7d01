"""What a terminal and a notebook show of a study, of one neuron, of training dynamics and of a diff.

A store knows nothing of the views that read it; `universal_neurons` imports this module with the first public name that
gives a store.  Pages and figures are imported when one is asked for: to read a table takes no matplotlib.
"""

from universal_neurons.diff import Diff
from universal_neurons.dynamics import Dynamics
from universal_neurons.explanations import best_of, explanations_of, scores_of, sources_table
from universal_neurons.faces import later
from universal_neurons.report.counterparts import counterparts_table
from universal_neurons.report.diff_summary import plain_diff
from universal_neurons.report.dynamics_summary import plain_dynamics
from universal_neurons.report.family_strength import families_table
from universal_neurons.report.one_neuron import neuron_html, plain_neuron
from universal_neurons.report.summary import plain_summary
from universal_neurons.report.universal import universal_table
from universal_neurons.report.verdict import neuron_sentence
from universal_neurons.storage import Store

PLOTS = "universal_neurons.report.plots"

Store.shown_by(
    {
        "text": plain_summary,
        "html": later("universal_neurons.report.pages", "summary_html"),
        "counterparts": counterparts_table,
        "explanations": explanations_of,
        "scores": scores_of,
        "best explanations": lambda store: best_of(explanations_of(store), scores_of(store)),
        "explanation sources": lambda store: sources_table(explanations_of(store), scores_of(store)),
        "families": families_table,
        "universal": universal_table,
        "neuron sentence": neuron_sentence,
        "neuron text": plain_neuron,
        "neuron html": neuron_html,
        "neuron plot": later(PLOTS, "neuron_plots"),
        "plot": later(PLOTS, "study_plots"),
    }
)
Dynamics.shown_by({"text": plain_dynamics, "plot": later(PLOTS, "dynamics_plots")})
Diff.shown_by({"text": plain_diff, "plot": later(PLOTS, "diff_plots")})
