"""When in training does a neuron become what it is?  A study at every checkpoint.

training_runs     the checkpoints of training runs, by step, and those that all seeds have
self_correlation  each neuron at a checkpoint against itself at the last
emergence         the studies of all checkpoints to persistence, emergence, partners, families
finished          Dynamics: what run_dynamics leaves
run               run_dynamics
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.dynamics.finished import Dynamics, step_folder
    from universal_neurons.dynamics.run import run_dynamics
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "finished": ["Dynamics", "step_folder"],
            "run": ["run_dynamics"],
        },
    )
