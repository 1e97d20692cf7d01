"""What does text say of its positions, and which of it does a neuron follow?

categories    the families and roles that there are
token_tests   the paper's 207 tests on a token's string
meanings      what every built-in label means, in a sentence
syntax        spaCy's labels of every token, cached
topics        token sets of a topic model of the corpus
user_code     a user's code runs, and the process is afterwards as before
stored_code   code that a stored configuration names, run only where it is named again
own_labels    functions, token sets and spans of the user's own
label_set     all labels as columns over positions, as a source of the pass, and their null
families      which label explains a neuron best, and the family of that label
study_labels  the labels of one study, from its configuration and corpus
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.labels.categories import (
        FAMILIES,
        ROLES,
        ROLES_BY_WEIGHTS,
        SAID_OF_FAMILIES,
        SAID_OF_ROLES,
        TIE,
        UNEXPLAINED,
        explained,
        explaining_label,
        null_level,
    )
    from universal_neurons.labels.families import (
        FEWEST,
        PANEL_NEURONS,
        POSITION,
        POSITION_MI,
        Families,
        LabelEvidence,
        Scores,
        explain,
        family_of,
    )
    from universal_neurons.labels.label_set import (
        Column,
        Label,
        LabelSet,
        LabelSource,
        build_labels,
        partner_rows,
        position_masks,
        token_test_masks,
        unigram_masks,
        variant_masks,
    )
    from universal_neurons.labels.meanings import Meaning, built_in_labels, meaning_of
    from universal_neurons.labels.own_labels import read_own_labels
    from universal_neurons.labels.stored_code import require_given_again, require_named_again
    from universal_neurons.labels.study_labels import SUMS_BYTES, Labelling
    from universal_neurons.labels.syntax import find_pipeline
    from universal_neurons.labels.token_tests import PREFIXES, SUFFIXES
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "categories": [
                "FAMILIES",
                "ROLES",
                "ROLES_BY_WEIGHTS",
                "SAID_OF_FAMILIES",
                "SAID_OF_ROLES",
                "TIE",
                "UNEXPLAINED",
                "explained",
                "explaining_label",
                "null_level",
            ],
            "meanings": ["Meaning", "built_in_labels", "meaning_of"],
            "syntax": ["find_pipeline"],
            "token_tests": ["PREFIXES", "SUFFIXES"],
            "stored_code": ["require_given_again", "require_named_again"],
            "own_labels": ["read_own_labels"],
            "label_set": [
                "Column",
                "Label",
                "LabelSet",
                "LabelSource",
                "build_labels",
                "partner_rows",
                "position_masks",
                "token_test_masks",
                "unigram_masks",
                "variant_masks",
            ],
            "families": [
                "FEWEST",
                "Families",
                "LabelEvidence",
                "PANEL_NEURONS",
                "POSITION",
                "POSITION_MI",
                "Scores",
                "explain",
                "family_of",
            ],
            "study_labels": ["Labelling", "SUMS_BYTES"],
        },
    )
