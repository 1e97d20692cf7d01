"""Side by side: where a neuron fires on held-out rows, and what its match in every other model does there.

The neuron's examples are chosen as `TopExamples` chooses them, among rows that did not choose the match.  With each
come the activations of the match at the same positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics import WINDOW, Block, Examples, Key, TopExamples


@dataclass(frozen=True)
class SideBySide(Examples):
    """A neuron's examples, and around each the activations of its matches; NaN too where there is no match."""

    matched: Float[Tensor, "models window bands k neurons"]


class Counterparts(TopExamples):
    """The examples of one model's neurons with the activations of the best match in each other model.

    `match` holds each neuron's place in the other models, −1 for none.
    """

    WINDOWS = ("window", "matched")
    TENSORS = (*TopExamples.TENSORS, "matched", "match")
    SAME: ClassVar[dict[str, str]] = {"match": "matches"}

    def __init__(
        self,
        asker: Key,
        others: Sequence[Key],
        match: Int[Tensor, "models neurons"],
        *,
        k: int = 5,
        seed: int = 0,
        both_tails: bool = False,
        device: Any = "cpu",
    ) -> None:
        super().__init__(asker, match.shape[1], k=k, seed=seed, both_tails=both_tails, device=device)
        self.reads = (*self.reads, *others)
        self.match = match.to(device)
        self.matched = torch.full((len(others), WINDOW, *self.score.shape), torch.nan, device=device)

    def _shown(self, neuron: Tensor, blocks: list[Block]) -> Iterator[tuple[Tensor, Block, Tensor]]:
        """Of the neurons themselves, then of their matches."""
        asker, *others = blocks
        yield from super()._shown(neuron, [asker])
        for matched, block, match in zip(self.matched, others, self.match):
            yield matched, block, match[neuron]

    def result(self) -> SideBySide:
        """The examples so far."""
        return SideBySide(self.row, self.position, self.window, self.matched)
