"""What do the units that changed most carry of what the fine-tune gained?  Losses with units ablated and patched.

On held-out rows, spread evenly, `effect_tokens` of them, of the first text and of the second:

1. Both models as they are.  The gain is the loss of the base minus that of the fine-tune.
2. Each unit alone at its mean activation (of the study's text), in the base and in the fine-tune: mean ablation.
3. The fine-tune with one unit at the activations that the base has at the same positions; with all of them at once;
   with as many others at once (`effect_units`).  What the loss rises by, over the gain, is the share that they carry.
4. The base with all of them, and with the others, at the fine-tune's activations: what it gains thereby.

Losses are nats a token, over tokens that count and whose next token counts.  Intervals leave out a stretch of rows at a
time (docs/method.md).  Where the gain's interval holds 0 there is no share.  Sums by row are kept after every batch.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from universal_neurons.diff.effect_units import EffectUnits, spread_rows
from universal_neurons.interventions import (
    LOGITS_AT_ONCE,
    LOGITS_ON_GPU,
    Edit,
    intervene,
    patched,
    taken,
    token_losses,
)
from universal_neurons.models import Model
from universal_neurons.storage import Generations
from universal_neurons.text import Rows

FEWEST = 2  # rows, without which there is no interval
TIMED = 3


@dataclass(frozen=True)
class EffectRows:
    """The rows that effects are measured on, and the stretch that each is of."""

    numbers: Int[np.ndarray, " rows"]
    stretch: Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class RowLosses:
    """Losses of every run, in the order of `EffectRuns.of`, added up over each row's tokens, and how many these are."""

    sums: Float64[np.ndarray, "runs rows"]
    tokens: Int[np.ndarray, " rows"]
    stretch: Int[np.ndarray, " rows"]


class EffectRuns:
    """A base and its fine-tune with units ablated and patched, a forward pass each.

    `means` are the activations that units are held at, of the base and of the fine-tune.  What the base has is given
    to the fine-tune times `sign`, and the other way round.
    """

    def __init__(
        self,
        base: Model,
        tuned: Model,
        units: EffectUnits,
        means: tuple[Float[Tensor, " units"], Float[Tensor, " units"]],
        sign: Float[np.ndarray, " units"],
    ) -> None:
        self.base, self.tuned, self.units, self.means, self.sign = base, tuned, units, means, sign

    def of(self, ids: Int[Tensor, "rows context"]) -> Iterator[Float[Tensor, "rows predicted"]]:
        """Losses of all runs: base, fine-tune; each unit ablated in the base, in the fine-tune; each patched; all
        patched, the others patched; the base patched with all, with the others."""
        base, tuned, units = self.base, self.tuned, self.units
        with taken(base, units.all) as before:
            yield token_losses(base, ids)
        with taken(tuned, units.all) as after:
            yield token_losses(tuned, ids)
        for model, means in zip((base, tuned), self.means):
            for number in units.changed:
                with intervene(model, [number], Edit("mean", float(means[number]))):
                    yield token_losses(model, ids)
        for numbers in (*([number] for number in units.changed), units.changed, units.beside):
            yield self._given(tuned, before, numbers, ids)
        for numbers in (units.changed, units.beside):
            yield self._given(base, after, numbers, ids)

    def _given(self, model: Model, values: Mapping[int, Tensor], numbers: Sequence[int], ids: Tensor) -> Tensor:
        with patched(model, {number: values[number] * float(self.sign[number]) for number in numbers}):
            return token_losses(model, ids)


def read_effects(
    runs: EffectRuns,
    text: Rows,
    rows: EffectRows,
    rows_at_once: int,
    kept: Generations,
    after_batch: Callable[[int], None] = lambda positions: None,
) -> RowLosses:
    """The losses of all runs on some rows of a text; goes on from what is `kept`."""
    passes, many = sum(passes_of(len(runs.units.changed))), len(rows.numbers)
    state = {
        "sums": torch.zeros(passes, many, dtype=torch.float64),
        "tokens": torch.zeros(many, dtype=torch.int64),
    }
    state, done = kept.load() or (state, 0)
    after_batch(done * text.context)
    for start in range(done, many, rows_at_once):
        here = slice(start, min(start + rows_at_once, many))
        both = torch.from_numpy(predicted(text, rows.numbers[here]))
        ids = torch.from_numpy(text.ids(rows.numbers[here]))
        for run, losses in enumerate(runs.of(ids)):
            state["sums"][run, here] = losses.double().where(both, 0.0).sum(1)
        state["tokens"][here] = both.sum(1)
        kept.save(state, here.stop)
        after_batch(ids.numel())
    return RowLosses(state["sums"].numpy(), state["tokens"].numpy(), rows.stretch)


def effect_rows(text: Rows, heldout_tokens: int | None, tokens: int) -> EffectRows:
    """Held-out rows of so many tokens, evenly spread."""
    _, stretches = text.split(heldout_tokens)
    stretch = np.repeat(np.arange(len(stretches)), [len(rows) for rows in stretches])
    some = spread_rows(np.arange(len(stretch)), rows_of(text.context, tokens))
    return EffectRows(np.concatenate(stretches)[some], stretch[some])


def rows_of(context: int, tokens: int) -> int:
    """How many rows have so many tokens."""
    return max(FEWEST, tokens // context)


def predicted(text: Rows, rows: Int[np.ndarray, " rows"]) -> np.ndarray:
    """Of every token but the first of some rows, whether it counts, and the one that it is predicted from."""
    counted = text.mask(rows)
    return counted[:, :-1] & counted[:, 1:]


def passes_of(units: int) -> tuple[int, int]:
    """Forward passes of the base and of the fine-tune over each text, for so many units."""
    return 1 + units + 2, 1 + 2 * units + 2


def rows_together(model: Model, context: int, batch_tokens: int) -> int:
    """Rows of a forward pass of at most so many positions, whose logits fit."""
    logits = LOGITS_ON_GPU if model.device.type == "cuda" else LOGITS_AT_ONCE
    return max(1, min(batch_tokens, logits // model.vocab_size) // context)


def effects_seconds(base: Model, tuned: Model, *, units: int, positions: int, context: int, batch_tokens: int) -> float:
    """Seconds that the effects of so many units take on so many positions of text, from a few forward passes now."""
    if not units:
        return 0.0
    rows = min(max(1, positions // context), rows_together(base, context, batch_tokens))
    ids = torch.arange(rows * context).view(rows, context) % min(base.vocab_size, tuned.vocab_size)
    batch = sum(many * _pass_seconds(model, ids) for many, model in zip(passes_of(units), (base, tuned)))
    return batch * positions / ids.numel()


def _pass_seconds(model: Model, ids: Int[Tensor, "rows context"]) -> float:
    best = float("inf")
    for _ in range(TIMED):
        started = time.perf_counter()
        token_losses(model, ids)
        best = min(best, time.perf_counter() - started)
    return best
