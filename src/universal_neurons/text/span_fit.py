"""How well tokenizers fit: how many tokens are a span of their own, tokens a span, text left out and why."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from universal_neurons.text.spans import Units, Why

LEFT_OUT = {"bytes_special": Why.SPECIAL, "bytes_white_space": Why.WHITE_SPACE, "bytes_dropped": Why.DROPPED}


class SpanFit:
    """Counts over rows of spans, for each of several tokenizers.

    `tokens` are those that the rows hold of the text (no BOS, no EOS between documents), `own` those that are alone in
    a span, `within` those in any; `masked` are spans that hold no token that it counts; `left_out` are bytes of units
    that are no spans for its sake.  `too_long` bytes are of units that no row can hold.
    """

    def __init__(self, n_tokenizers: int) -> None:
        self.spans = self.bytes = self.too_long = self.counted = 0
        self.tokens, self.own, self.within, self.masked = np.zeros((4, n_tokenizers), np.int64)
        self.left_out = np.zeros((n_tokenizers, len(Why)), np.int64)

    def add_row(self, units: Units, counted: Sequence[Bool[np.ndarray, " spans"]]) -> None:
        """Count a row's units; `counted` says for each tokenizer which of the row's spans it counts."""
        spans = units.are_spans
        length = units.stop - units.start
        again = (np.diff(units.start, prepend=-1) == 0) & (np.diff(units.stop, prepend=-1) == 0)
        length = np.where(again, 0, length)  # a range that several units share
        of_text = units.why[:, 0] != Why.JOINT
        self.spans += int(spans.sum())
        self.bytes += int(length.sum())
        self.counted += int(np.logical_and.reduce(counted).sum())
        self.tokens += units.sizes[of_text].sum(0)
        self.within += units.sizes[spans].sum(0)
        self.own += (units.sizes[spans] == 1).sum(0)
        self.masked += [int((~mine).sum()) for mine in counted]
        for number, why in enumerate(units.why.T):
            self.left_out[number] += np.bincount(why, length, len(Why)).astype(np.int64)

    def add_too_long(self, n_bytes: int) -> None:
        """Count a unit that no row can hold."""
        self.bytes += n_bytes
        self.too_long += n_bytes

    def table(self, tokenizers: Mapping[str, int], digests: Sequence[str]) -> pl.DataFrame:
        """A row per model, by the number of its tokenizer (docs/store.md, spans)."""
        places = list(tokenizers.values())
        tokens, within, own = (counts[places] for counts in (self.tokens, self.within, self.own))
        spans = max(self.spans, 1)
        return pl.DataFrame(
            {
                "model": list(tokenizers),
                "tokenizer": [digests[place] for place in places],
                "spans": np.full(len(places), self.spans),
                "counted": np.full(len(places), self.counted),
                "masked": self.masked[places],
                "tokens": tokens,
                "own_fraction": own / np.maximum(tokens, 1),
                "tokens_per_span": within / spans,
                "bytes": np.full(len(places), self.bytes),
                **{name: self.left_out[places, why] for name, why in LEFT_OUT.items()},
                "bytes_too_long": np.full(len(places), self.too_long),
            }
        )


def span_numbers(units: Units, n: int) -> Int[np.ndarray, " tokens"]:
    """The number, among a row's spans, of the span that each token of tokenizer `n` belongs to; −1: none."""
    spans = units.are_spans
    return np.repeat(np.where(spans, np.cumsum(spans) - 1, -1), units.sizes[:, n])
