"""When in training does a neuron become what it is?  A study at every checkpoint.

training_runs     the checkpoints of training runs, by step, and those that all seeds have
self_correlation  each neuron at a checkpoint against itself at the last
emergence         the studies of all checkpoints to persistence, emergence, partners, families
run               run_dynamics; Dynamics, what it leaves
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.dynamics.run import Dynamics, run_dynamics, step_folder
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "run": ["Dynamics", "run_dynamics", "step_folder"],
        },
    )
