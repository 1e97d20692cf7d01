"""What a model reads of some rows of a text, and which of its tokens make up the positions that count.

Models of one tokenizer read the same ids, and a position is a token.  Models of several read their own, and a position
is a span: what its tokens' activations are pooled to.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from universal_neurons.features.pooling import Places, Pooling
from universal_neurons.text import Passages, Rows, TokenDataset


class Inputs(NamedTuple):
    """Token ids and attention (1 where not padding) of some rows, and where the counted positions are."""

    ids: Int[Tensor, "rows context"]
    attention: Int[Tensor, "rows context"]
    places: Places


def counted_positions(text: Rows, rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " positions"]:
    """The counted positions of some rows, by number among all of the rows' positions."""
    return np.flatnonzero(text.mask(rows))


def inputs_of(text: Rows, model: str, rows: Int[np.ndarray, " rows"]) -> Inputs:
    """What a model reads of some rows."""
    if isinstance(text, Passages):
        tokens = text.tokens_of(model)
        places: Places = _pooling(text, model, rows)
    else:
        assert isinstance(text, TokenDataset)
        tokens, places = text, torch.from_numpy(counted_positions(text, rows))
    ids = torch.from_numpy(tokens.ids(rows))
    attention = torch.arange(tokens.context)[None] < torch.from_numpy(tokens.lengths[rows]).long()[:, None]
    return Inputs(ids, attention.long(), places)


def _pooling(text: Passages, model: str, rows: Int[np.ndarray, " rows"]) -> Pooling:
    """A model's tokens of every counted span of some rows."""
    spans = text.pooled(model, rows)
    row, token = np.nonzero(spans >= 0)
    ends = np.searchsorted(row * text.context + spans[row, token], counted_positions(text, rows), side="right")
    return Pooling(text.pooling, torch.from_numpy(row * text.context + token), torch.from_numpy(ends))
