"""What changes when neurons are changed?  On the model's own forward pass.

edits       edit neurons while a model runs
ablation    neurons at their mean activation, as a study knows it
contribution  how much neurons contribute, and others of equal contribution to hold them against
patching    neurons at the activations of another run
losses      the next-token loss of each token of a text
final_norm  what the final norm reads; frozen at another run's scale
heads       queries, keys, values and outputs of attention heads; the key of BOS
paths       one neuron's direct path out of one head's query
readout     final norm and unembedding: what a prediction is like after a change
trial       one clean run of some rows, from which every intervention goes on
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.interventions.ablation import ablate
    from universal_neurons.interventions.contribution import (
        SILENT,
        contributions,
        largest_others,
        nearest_others,
        written_norms,
    )
    from universal_neurons.interventions.edits import (
        Edit,
        Kind,
        flat_numbers,
        intervene,
        repeated,
    )
    from universal_neurons.interventions.final_norm import FinalNorm, final_residual, frozen_norm
    from universal_neurons.interventions.heads import Heads, bos_key, hooked, projecting
    from universal_neurons.interventions.losses import Losses, loss, require_predictions, token_losses
    from universal_neurons.interventions.patching import patched, taken
    from universal_neurons.interventions.paths import (
        Paths,
        eager_attention,
        effects_of_paths,
        path_effects,
        rows_at_once,
        without_path,
    )
    from universal_neurons.interventions.readout import Metrics, Readout, reading_seconds
    from universal_neurons.interventions.trial import (
        COPIES,
        LOGITS_AT_ONCE,
        LOGITS_ON_GPU,
        Trial,
        positions_cached,
        positions_together,
        trials,
    )
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "ablation": ["ablate"],
            "contribution": ["SILENT", "contributions", "largest_others", "nearest_others", "written_norms"],
            "losses": ["Losses", "loss", "require_predictions", "token_losses"],
            "patching": ["patched", "taken"],
            "edits": [
                "Edit",
                "Kind",
                "flat_numbers",
                "intervene",
                "repeated",
            ],
            "final_norm": ["FinalNorm", "final_residual", "frozen_norm"],
            "heads": ["Heads", "bos_key", "hooked", "projecting"],
            "paths": ["Paths", "eager_attention", "effects_of_paths", "path_effects", "rows_at_once", "without_path"],
            "readout": ["Metrics", "Readout", "reading_seconds"],
            "trial": [
                "COPIES",
                "LOGITS_AT_ONCE",
                "LOGITS_ON_GPU",
                "Trial",
                "positions_cached",
                "positions_together",
                "trials",
            ],
        },
    )
