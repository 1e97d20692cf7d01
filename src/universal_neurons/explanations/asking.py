"""A language model as explainer and as scorer: prompts made, answered (from the file where they were before), read.

The strength of a simulated token is the mean of 0 to 10 by the probabilities of the answers; one question a token.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from universal_neurons.explanations.answers import Answers
from universal_neurons.explanations.backends import SERVER, Backend, Prompt
from universal_neurons.explanations.local_model import LocalModel
from universal_neurons.explanations.openai_server import AT_ONCE, OpenAIServer
from universal_neurons.explanations.prompts import Templates, prompt_of, sentence_of
from universal_neurons.explanations.questions import Kind, Question
from universal_neurons.models import load_model


def backend_of(named: str, *, device: str = "cpu", dtype: str = "file", at_once: int = AT_ONCE) -> Backend:
    """The model that a name means: a server's (`openai:URL#NAME`), else a local folder's, a hub id's, a bundled one.

    A local model is read onto `device` in the precision `dtype` (`file`: its own); a server has `at_once` requests at a
    time.
    Raises what `OpenAIServer`, `load_model` and `LocalModel` raise.
    """
    if named.startswith(SERVER):
        return OpenAIServer(named, at_once=at_once)
    return LocalModel(load_model(named, device=device, dtype=dtype))


class Asked:
    """A language model that explains and scores; as a scorer it is a `Scorer`.

    What scoring will cost: `answers.forecast(asked.prompts(questions))`; what it did, `answers.totals()`.
    """

    def __init__(self, answers: Answers, templates: Templates | None = None) -> None:
        self.answers = answers
        self.templates = templates or Templates()

    def sentences(self, prompts: Sequence[Prompt]) -> list[str]:
        """What the model writes as explanation of each unit (`explaining_prompt`), one line; "" where it is missing."""
        return [sentence_of(reply.text) if not reply.missing else "" for reply in self.answers.ask(prompts)]

    def prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        """What the model will be asked: of a question of simulation a prompt for each token, of others one."""
        return [
            prompt_of(question, self.templates, place)
            for question in questions
            for place in range(len(question.tokens) if question.kind is Kind.SIMULATION else 1)
        ]

    def probabilities(self, questions: Sequence[Question]) -> Float[np.ndarray, " questions"]:
        """The probability of yes, among yes and no, for each question; NaN where the answer is missing."""
        replies = self.answers.ask(self.prompts(questions))
        return np.array([reply.shares[0] if reply.shares else np.nan for reply in replies], dtype=np.float64)

    def strengths(self, questions: Sequence[Question]) -> Float[np.ndarray, "questions tokens"]:
        """For each question the strength of every token, 0 to 10; NaN where missing, and beyond a window's end."""
        places = [(row, place) for row, question in enumerate(questions) for place in range(len(question.tokens))]
        replies = self.answers.ask(self.prompts(questions))
        strengths = np.full((len(questions), max((len(q.tokens) for q in questions), default=0)), np.nan)
        for (row, place), reply in zip(places, replies):
            if reply.shares:
                strengths[row, place] = sum(value * share for value, share in enumerate(reply.shares))
        return strengths
