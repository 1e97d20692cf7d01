"""What does a model predict of a text?  The next-token loss of every token, also while neurons are changed.

before = loss(model, "The miller had three sons.")
with intervene(model, ["L0.49"], "zero"):
    after = loss(model, "The miller had three sons.")
after.per_token - before.per_token
"""

from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.errors import ArchitectureError, TextError
from universal_neurons.models import Model, Text, strings_of


@dataclass(frozen=True)
class Losses:
    """Next-token losses in nats: `per_token[r, t]` is −ln p of `ids[r, t + 1]`, given the tokens of row r before it.

    `strings` are the predicted tokens as text, row by row, None where the model has no tokenizer.
    """

    per_token: Float[Tensor, "rows predicted"]
    ids: Int[Tensor, "rows context"]
    strings: list[list[str]] | None = None

    @property
    def mean(self) -> float:
        """Mean over all predicted tokens, in nats."""
        return float(self.per_token.double().mean())

    def to_frame(self) -> pl.DataFrame:
        """A polars frame, a row for each predicted token: `row`, `position`, `token`, `string` (if known), `loss`."""
        rows, predicted = self.per_token.shape
        columns = {
            "row": [row for row in range(rows) for _ in range(predicted)],
            "position": list(range(1, predicted + 1)) * rows,
            "token": self.ids[:, 1:].flatten().tolist(),
        }
        if self.strings is not None:
            columns["string"] = [string for row in self.strings for string in row]
        return pl.DataFrame(columns | {"loss": self.per_token.flatten().tolist()})

    def __repr__(self) -> str:
        return f"Losses(mean {self.mean:.4f} nats over {self.per_token.numel():,} tokens)"


@torch.no_grad()
def loss(model: Model, text: Text) -> Losses:
    """The next-token loss of each token of a string (BOS in front), of a row of ids, or of rows of ids.

    Computed in float32 of the model's own logits, with whatever interventions are open.  Raises `ArchitectureError` for
    an encoder or a model without an unembedding, `TextError` where there is no token to predict, and errors of
    `Model.ids_of`.
    """
    require_predictions(model)
    ids = model.ids_of(text).cpu()
    if ids.shape[1] < 2:
        raise TextError("no token to predict", given="a row of one token", wanted="two or more, BOS counted")
    return Losses(token_losses(model, ids), ids, _strings(model, ids[:, 1:]))


def require_predictions(model: Model) -> None:
    """Raise `ArchitectureError` where a model does not predict the next token: an encoder, or one without a head."""
    if not model.architecture.causal:
        what = f"{model.name}: it is no causal language model, so it predicts no next token"
        raise ArchitectureError(what, given=model.architecture.name, wanted="a causal model")
    model.require_unembedding()


@torch.no_grad()
def token_losses(model: Model, ids: Int[Tensor, "rows context"]) -> Float[Tensor, "rows predicted"]:
    """The next-token loss, in nats, of each token of some rows but the first, in float32 of the model's own logits."""
    losses = [
        torch.nn.functional.cross_entropy(of_row[:-1].float(), row[1:].to(of_row.device), reduction="none").cpu()
        for of_row, row in zip(model.logits(ids), ids)
    ]
    return torch.stack(losses)


def _strings(model: Model, ids: Int[Tensor, "rows predicted"]) -> list[list[str]] | None:
    if model.tokenizer is None:
        return None
    different = ids.unique().tolist()
    string = dict(zip(different, strings_of(model.tokenizer, different)))
    return [[string[token] for token in row] for row in ids.tolist()]
