"""What one sentence says of a unit, and how well it predicts where the unit fires on text that nobody showed.

questions  what a scorer is asked, and what it answers
backends   what a language model is asked and answers; tokens and cost
prompts    templates, filled with text that cannot leave its place
local_model  a causal model on this machine
openai_server  a server that speaks the OpenAI protocol
deadline   an end to answers that drip
answers    its answers, kept by what was asked
asking     a language model as explainer and as scorer
windows    windows of held-out text, drawn with known probabilities, and what units do on them
score_rows  what stands in a row of the table `scores`
scores     questions to a scorer, its answers to rows of the table `scores`; controls
estimates  scores for all windows, with intervals, from answers about some that were drawn
phrases    every built-in label in a few plain words
sentences  a unit's labels, position and logit effects as one sentence, and its first words
evidence  what an explainer is shown of a unit
trials    where explanations are tried: own units, counterparts, random units
imported  explanations that others have written, from files
explained  the tables of explanations and scores: what stays when others come, the best, what each source is worth
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.explanations.answers import Answers
    from universal_neurons.explanations.asking import Asked, backend_of
    from universal_neurons.explanations.backends import SERVER, Backend, Prices, Prompt, Reply, Spent
    from universal_neurons.explanations.estimates import Answered, Design, Estimate, Simulated
    from universal_neurons.explanations.evidence import evidence_prompts
    from universal_neurons.explanations.explained import (
        beside,
        best_of,
        in_order,
        leading,
        measured,
        renewed,
        scores_of,
        sources_table,
        still_true,
        unit_column,
        units_table,
        with_explanations,
        with_own_scores,
        with_scores,
    )
    from universal_neurons.explanations.imported import IMPORTED, model_ids, read_explanations
    from universal_neurons.explanations.local_model import LocalModel
    from universal_neurons.explanations.openai_server import AT_ONCE, OpenAIServer
    from universal_neurons.explanations.phrases import phrase_of, place_of, quoted
    from universal_neurons.explanations.prompts import Example, Templates, explaining_prompt, read_templates
    from universal_neurons.explanations.questions import STRONGEST, Kind, Question, Scorer
    from universal_neurons.explanations.score_rows import ANOTHER, COUNTERPART, EMPTY, OWN, RANDOM, SCHEMA
    from universal_neurons.explanations.scores import FEWEST, Trial, controls, questions_of, score
    from universal_neurons.explanations.sentences import (
        BY_LABELS,
        explanations_of,
        explanations_table,
        fires_on,
        first_clause,
        label_sentences,
        sentences_of,
    )
    from universal_neurons.explanations.trials import drawn_of, pairs_of, trials_of, units_tried
    from universal_neurons.explanations.windows import DRAWN, STRATA, YES, UnitWindows, draw_windows, require_apart
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "answers": ["Answers"],
            "asking": ["Asked", "backend_of"],
            "backends": ["SERVER", "Backend", "Prices", "Prompt", "Reply", "Spent"],
            "local_model": ["LocalModel"],
            "openai_server": ["AT_ONCE", "OpenAIServer"],
            "prompts": ["Example", "Templates", "explaining_prompt", "read_templates"],
            "evidence": ["evidence_prompts"],
            "imported": ["IMPORTED", "model_ids", "read_explanations"],
            "trials": ["drawn_of", "pairs_of", "trials_of", "units_tried"],
            "explained": [
                "beside",
                "best_of",
                "in_order",
                "leading",
                "measured",
                "renewed",
                "scores_of",
                "sources_table",
                "still_true",
                "unit_column",
                "units_table",
                "with_explanations",
                "with_own_scores",
                "with_scores",
            ],
            "estimates": ["Answered", "Design", "Estimate", "Simulated"],
            "windows": ["DRAWN", "STRATA", "UnitWindows", "YES", "draw_windows", "require_apart"],
            "score_rows": ["ANOTHER", "COUNTERPART", "EMPTY", "OWN", "RANDOM", "SCHEMA"],
            "scores": ["FEWEST", "Trial", "controls", "questions_of", "score"],
            "questions": ["STRONGEST", "Kind", "Question", "Scorer"],
            "phrases": ["phrase_of", "place_of", "quoted"],
            "sentences": [
                "BY_LABELS",
                "explanations_of",
                "explanations_table",
                "fires_on",
                "first_clause",
                "label_sentences",
                "sentences_of",
            ],
        },
    )
