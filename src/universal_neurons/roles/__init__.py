"""What do neurons do?  Their roles in the prediction of the next token and in attention (paper §5).

reach       what kurtosis a model's unembedding allows: the cuts that it is judged by
latent_effects  the same effects on the logits of dictionaries' latents, which have no roles
prediction  prediction, suppression and partition neurons, alone and together
ensembles   what neurons of one class do together
entropy     entropy neurons, by way of the final norm
frequency   token frequency neurons: along log p(token)
attention   neurons that switch a later head off or on
loss_changes  by how much the loss of every token changes when single neurons are mean-ablated
functional  do matched neurons do the same
costs       the table `costs`, read: what the universal neurons are worth, in a sentence
gains       the table `functional_gains`, read: do matched neurons act alike, in a sentence
worth       what the universal neurons are worth together, beside controls of equal contribution
one_model   the roles of one model's neurons
stage       the roles of a study's models, as one of its stages
side_by_side  small models tried out one beside the other
nearest     whom tables, figures and pages name for a role
preconditions  what a model needs to show a role at all
overview    the roles of a study in a few lines
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.roles.costs import EQUAL, LARGEST, RANDOM, Worth
    from universal_neurons.roles.frequency import FREQUENCY_CANDIDATES
    from universal_neurons.roles.functional import counterparts
    from universal_neurons.roles.latent_effects import latent_effect_tables
    from universal_neurons.roles.nearest import (
        best_pairs,
        effects_shown,
        role_candidates,
        tried_first,
        with_oriented_skew,
    )
    from universal_neurons.roles.one_model import ROLE_TABLES, Sample
    from universal_neurons.roles.overview import (
        NEAREST,
        frequency_line,
        neuron_lines,
        relative_rows,
        role_rows,
        together_sentences,
        unembedding_lines,
    )
    from universal_neurons.roles.preconditions import cannot_be_shown, unmet_lines
    from universal_neurons.roles.side_by_side import models_at_once, threads_of_each
    from universal_neurons.roles.stage import Roles, require_roles, vocabulary_of
    from universal_neurons.roles.worth import DRAWS
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "frequency": ["FREQUENCY_CANDIDATES"],
            "functional": ["counterparts"],
            "latent_effects": ["latent_effect_tables"],
            "one_model": ["ROLE_TABLES", "Sample"],
            "preconditions": ["cannot_be_shown", "unmet_lines"],
            "side_by_side": ["models_at_once", "threads_of_each"],
            "stage": ["Roles", "require_roles", "vocabulary_of"],
            "nearest": ["best_pairs", "effects_shown", "role_candidates", "tried_first", "with_oriented_skew"],
            "overview": [
                "NEAREST",
                "frequency_line",
                "neuron_lines",
                "relative_rows",
                "role_rows",
                "together_sentences",
                "unembedding_lines",
            ],
            "costs": ["EQUAL", "LARGEST", "RANDOM", "Worth"],
            "worth": ["DRAWS"],
        },
    )
