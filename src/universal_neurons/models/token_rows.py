"""Rows of token ids from what a person has at hand: a string, the ids of one row, rows of ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from universal_neurons.errors import ContextError, TokenizerError, TokenRangeError
from universal_neurons.models.described import Described
from universal_neurons.models.tokenizer import boundary_tokens, encode

Text = str | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | Tensor


def rows_of(model: Described, given: Text) -> Int[Tensor, "rows context"]:
    """Rows of ids that a model can read; a string is one row, BOS in front.  Errors as `Model.ids_of` says."""
    ids = _ids_of_text(model, given) if isinstance(given, str) else _as_tensor(model, given)
    rows = ids[None] if ids.dim() == 1 else ids
    if rows.dim() != 2 or not rows.numel():
        shape = "nothing" if not rows.numel() else f"a tensor of {rows.dim()} dimensions"
        raise TokenRangeError(f"{model.name}: not rows of token ids", given=shape, wanted="one row, or rows × tokens")
    if rows.shape[1] > model.context:
        raise ContextError(
            f"{model.name} cannot read rows of {rows.shape[1]:,} tokens",
            given="a text that is too long, BOS counted" if isinstance(given, str) else f"{len(rows):,} rows",
            wanted=f"at most {model.context:,}",
            fix="cut it into several",
        )
    least, most = int(rows.min()), int(rows.max())
    if least < 0 or most >= model.vocab_size:
        raise TokenRangeError(
            f"{model.name}: a token id outside the vocabulary",
            given=least if least < 0 else most,
            wanted=f"0 ≤ id < {model.vocab_size}",
            fix="use the tokenizer that the model was trained with",
        )
    return rows


def _ids_of_text(model: Described, text: str) -> Int[Tensor, " tokens"]:
    if model.tokenizer is None:
        raise TokenizerError(
            f"{model.name} has no tokenizer to read a string by",
            wanted="token ids, or a model with a tokenizer",
            fix="give ids, or un.Model(hf, name, tokenizer=...)",
        )
    bos, _ = boundary_tokens(model.tokenizer, model.name)
    return torch.tensor([bos, *encode(model.tokenizer, [text])[0]])


def _as_tensor(model: Described, given: Any) -> Tensor:
    try:
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        ids = None
    if ids is None or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TokenRangeError(
            f"{model.name}: not token ids",
            given=type(given).__name__ if ids is None else str(ids.dtype),
            wanted="a string, or whole numbers in rows of one length",
        )
    return ids.long()
