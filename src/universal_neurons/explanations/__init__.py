"""What does a unit fire on and do, in a sentence?

phrases     every built-in label in a few plain words
sentences   a unit's labels, position and logit effects as one sentence, and its first words
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.explanations.phrases import phrase_of, place_of, quoted
    from universal_neurons.explanations.sentences import (
        BY_LABELS,
        explanations_of,
        explanations_table,
        fires_on,
        first_clause,
        label_sentences,
        renewed,
        sentences_of,
    )
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "phrases": ["phrase_of", "place_of", "quoted"],
            "sentences": [
                "BY_LABELS",
                "explanations_of",
                "explanations_table",
                "fires_on",
                "first_clause",
                "label_sentences",
                "renewed",
                "sentences_of",
            ],
        },
    )
