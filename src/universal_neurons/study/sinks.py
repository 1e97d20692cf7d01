"""Which positions are sinks, of which model, and which tokens stand there (docs/method.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from universal_neurons.models import all_special_ids, strings_of, vocabulary_ids
from universal_neurons.text import Passages, Rows

MOST_TOKENS = 5
SCHEMA: dict[str, Any] = {
    "model": pl.String, "positions": pl.Int64, "sinks": pl.Int64, "share": pl.Float64,
    "tokens": pl.List(pl.String), "token_sinks": pl.List(pl.Int64),
}  # fmt: skip


@dataclass(frozen=True)
class FoundSinks:
    """The sinks of every model among the positions of some rows."""

    text: Rows
    rows: Int[np.ndarray, " rows"]
    of_model: Mapping[str, Bool[np.ndarray, "rows context"]]

    @property
    def of_any(self) -> Bool[np.ndarray, "rows context"]:
        """Those of any model."""
        return np.logical_or.reduce(list(self.of_model.values()))

    def describe(self, factor: float) -> dict[str, float | int]:
        """What the manifest keeps: times the row's median, positions counted, sinks of any model."""
        positions = int(self.text.mask(self.rows).sum())
        return {"factor": factor, "positions": positions, "sinks": int(self.of_any.sum())}

    def table(self, tokenizer: Any) -> pl.DataFrame:
        """A row per model, and one for any of them (docs/store.md, sinks)."""
        positions, ids = int(self.text.mask(self.rows).sum()), self.text.ids(self.rows)
        found = [*self.of_model.items(), (None, self.of_any)]
        often = {name: most_frequent(ids[sinks]) for name, sinks in found}
        strings = self._strings(tokenizer, sorted({token for tokens in often.values() for token in tokens}))
        rows = [
            (name, positions, int(sinks.sum()), float(sinks.sum() / max(positions, 1)),
             [strings[token] for token in often[name]], list(often[name].values()))
            for name, sinks in found
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=SCHEMA, orient="row")

    def _strings(self, tokenizer: Any, ids: Sequence[int]) -> dict[int, str]:
        """What the tokens (or spans) say; `#7` of an id of no token."""
        if isinstance(self.text, Passages):
            return {token: self.text.strings[token] for token in ids}
        known = [] if tokenizer is None else [*vocabulary_ids(tokenizer).values(), *all_special_ids(tokenizer)]
        named = sorted({*known} & {*ids})
        return {token: f"#{token}" for token in ids} | dict(zip(named, strings_of(tokenizer, named) if named else []))


def most_frequent(ids: Int[np.ndarray, " positions"], most: int = MOST_TOKENS) -> dict[int, int]:
    """The most frequent of some tokens and how often each stands there, the most frequent first."""
    known, counts = np.unique(ids, return_counts=True)
    order = np.lexsort((known, -counts))[:most]
    return dict(zip(known[order].tolist(), counts[order].tolist()))
