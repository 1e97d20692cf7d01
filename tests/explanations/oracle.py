"""Planted units and scorers that read rules: what honest scores must tell apart."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from universal_neurons.explanations import STRONGEST, Question
from universal_neurons.features import NeuronSource
from universal_neurons.models import Model

Rule = Callable[[np.ndarray], np.ndarray]  # from token ids to how much a unit does


class PlantedSource(NeuronSource):
    """The neurons of a model, the first of which do what rules say of the token."""

    def __init__(self, model: Model, rules: Sequence[Rule]) -> None:
        super().__init__(model)
        self.rules = rules

    @contextmanager
    def reading(self, inputs):
        with super().reading(inputs) as blocks:
            yield blocks
        block = blocks[self.as_they_are]
        for unit, rule in enumerate(self.rules):
            does = torch.from_numpy(rule(inputs.ids.numpy())).float().flatten()[inputs.places]
            block.values[:, unit] = does - block.mean[unit]


@dataclass
class Oracle:
    """Reads an explanation as a rule, by name, of which tokens a unit fires on; knows nothing of other explanations.

    `lost` are the numbers of questions, in the order asked, whose answers do not come.
    """

    rules: dict[str, Callable[[str], float]]
    lost: Callable[[int], bool] = lambda number: False
    asked: list[Question] = field(default_factory=list)

    def does(self, question: Question) -> np.ndarray:
        rule = self.rules.get(question.explanation, lambda token: 0.5)
        return np.array([rule(token) for token in question.tokens])

    def probabilities(self, questions: Sequence[Question]) -> np.ndarray:
        said = []
        for question in questions:
            does = self.does(question)
            said.append(does[list(question.marks)].min() if question.marks else does.max())
        return self._without_lost(np.array(said), questions)

    def strengths(self, questions: Sequence[Question]) -> np.ndarray:
        said = np.full((len(questions), max(len(question.tokens) for question in questions)), np.nan)
        for place, question in enumerate(questions):
            said[place, : len(question.tokens)] = STRONGEST * self.does(question)
        return self._without_lost(said, questions)

    def _without_lost(self, said: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
        for place in range(len(questions)):
            if self.lost(len(self.asked) + place):
                said[place] = np.nan
        self.asked += questions
        return said
