"""What a model reads of some rows of a text, and which of its tokens make up the positions that count.

Models of one tokenizer read the same ids, and a position is a token.  Models of several read their own, and a position
is a span: what its tokens' activations are pooled to.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from universal_neurons.features.pooling import Places, Pooling
from universal_neurons.text import Passages, Rows, TokenDataset

SETTLING_POSITIONS = 4096


class Inputs(NamedTuple):
    """Token ids and attention (1 where not padding) of some rows, and where the counted positions are."""

    ids: Int[Tensor, "rows context"]
    attention: Int[Tensor, "rows context"]
    places: Places


def counted_positions(text: Rows, rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " positions"]:
    """The counted positions of some rows, by number among all of the rows' positions."""
    return np.flatnonzero(text.mask(rows))


def spread_rows(
    text: Rows, rows: Int[np.ndarray, " rows"]
) -> tuple[Int[np.ndarray, " spread"], Int[np.ndarray, " positions"]]:
    """Rows that are spread evenly over all, of `SETTLING_POSITIONS` or a little less, and their counted positions."""
    most = max(1, SETTLING_POSITIONS // text.context)
    spread = rows[np.unique(np.linspace(0, len(rows) - 1, most).astype(int))]
    positions = counted_positions(text, spread)
    if len(positions):
        return spread, positions
    return rows, counted_positions(text, rows)  # next to nothing is counted: take all there is


def inputs_of(
    text: Rows, models: Iterable[str], rows: Int[np.ndarray, " rows"], positions: Int[np.ndarray, " positions"]
) -> dict[str, Inputs]:
    """What each of some models reads of some rows, whose counted positions are these; the same for one tokenizer."""
    if isinstance(text, Passages):
        readings = {model: text.tokenizers[model] for model in models}
        like = {number: model for model, number in readings.items()}
        read = {number: _of_spans(text, model, rows, positions) for number, model in like.items()}
        return {model: read[number] for model, number in readings.items()}
    assert isinstance(text, TokenDataset)
    return dict.fromkeys(models, _of_tokens(text, rows, torch.from_numpy(positions)))


def _of_tokens(tokens: TokenDataset, rows: Int[np.ndarray, " rows"], places: Places) -> Inputs:
    ids = torch.from_numpy(tokens.ids(rows))
    attention = torch.arange(tokens.context)[None] < torch.from_numpy(tokens.lengths[rows]).long()[:, None]
    return Inputs(ids, attention.long(), places)


def _of_spans(
    text: Passages, model: str, rows: Int[np.ndarray, " rows"], positions: Int[np.ndarray, " positions"]
) -> Inputs:
    """What a model reads of some rows, and its tokens of every counted span."""
    counted = np.zeros((len(rows), text.context), bool)
    counted.ravel()[positions] = True
    spans = text.pooled(model, rows, counted)
    row, token = np.nonzero(spans >= 0)
    ends = np.searchsorted(row * text.context + spans[row, token], positions, side="right")
    tokens = torch.from_numpy(row * text.context + token)
    pooling = Pooling(text.pooling, tokens, torch.from_numpy(ends), spans.size)
    return _of_tokens(text.tokens_of(model), rows, pooling)
