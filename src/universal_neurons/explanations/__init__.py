"""What one sentence says of a unit, and how well it predicts where the unit fires on text that nobody showed.

questions  what a scorer is asked, and what it answers
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.explanations.questions import STRONGEST, Kind, Question, Scorer
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "questions": ["STRONGEST", "Kind", "Question", "Scorer"],
        },
    )
