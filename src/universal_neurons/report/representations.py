"""What a terminal and a notebook show of a study and of training dynamics: their summaries.

A store knows nothing of the views that read it; `universal_neurons` imports this module with the first public name that
gives a store.
"""

from universal_neurons.dynamics import Dynamics
from universal_neurons.report.dynamics_summary import plain_dynamics
from universal_neurons.report.pages import summary_html
from universal_neurons.report.summary import plain_summary
from universal_neurons.storage import Store

Store.shown_by(plain_summary, summary_html)
Dynamics.shown_by(plain_dynamics)
