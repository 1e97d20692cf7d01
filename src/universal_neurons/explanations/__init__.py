"""What one sentence says of a unit, and how well it predicts where the unit fires on text that nobody showed.

questions  what a scorer is asked, and what it answers
windows    windows of held-out text, drawn with known probabilities, and what units do on them
scores     questions to a scorer, its answers to rows of the table `scores`; controls
estimates  scores for all windows, with intervals, from answers about some that were drawn
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.explanations.estimates import Answered, Design, Estimate, Simulated
    from universal_neurons.explanations.questions import STRONGEST, Kind, Question, Scorer
    from universal_neurons.explanations.scores import (
        ANOTHER,
        EMPTY,
        FEWEST,
        OWN,
        SCHEMA,
        Trial,
        controls,
        score,
    )
    from universal_neurons.explanations.windows import DRAWN, STRATA, YES, UnitWindows, draw_windows, require_apart
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "estimates": ["Answered", "Design", "Estimate", "Simulated"],
            "windows": ["DRAWN", "STRATA", "UnitWindows", "YES", "draw_windows", "require_apart"],
            "scores": ["ANOTHER", "EMPTY", "FEWEST", "OWN", "SCHEMA", "Trial", "controls", "score"],
            "questions": ["STRONGEST", "Kind", "Question", "Scorer"],
        },
    )
