"""Which units fire on a token: `search/M`, from the tokens of highest mean activation and those of the top examples."""

from typing import Any

import numpy as np
import polars as pl

from universal_neurons.explorer.data_files import packed
from universal_neurons.explorer.studies import Strings
from universal_neurons.statistics import BOTTOM

TAILS = ("top", BOTTOM)


class SearchIndex:
    """Pairs of token and unit, gathered over a model's units."""

    def __init__(self, strings: Strings) -> None:
        self.strings = strings
        self.pairs: list[np.ndarray] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to be found."""
        return not self.pairs

    def add(self, key: str, rows: pl.DataFrame) -> None:
        """Take rows of the tables of tokens and of examples; others say nothing here."""
        if key == "tokens":
            self._add(rows.select("token", "unit"))
        elif key == "examples":
            own = pl.col("tokens").list.get(pl.col("position") - pl.col("start"))
            self._add(rows.filter(pl.col("band").is_in(TAILS)).select(own, "unit"))

    def _add(self, pairs: pl.DataFrame) -> None:
        self.pairs.append(pairs.unique().to_numpy().astype(np.uint32))

    def data(self) -> dict[str, Any]:
        """The tokens in the order of their characters; of each where its units begin; the units' numbers."""
        pairs = np.concatenate(self.pairs)
        ids = np.unique(pairs[:, 0])
        texts = sorted({self.strings[token] for token in ids.tolist()})
        numbers = {text: number for number, text in enumerate(texts)}
        text_of = np.array([numbers[self.strings[token]] for token in ids.tolist()], np.int64)
        keys = text_of[np.searchsorted(ids, pairs[:, 0])] << 32 | pairs[:, 1].astype(np.int64)
        keys = np.unique(keys)
        starts = np.searchsorted(keys >> 32, np.arange(len(texts) + 1))
        return {"tokens": texts, "starts": packed(starts, "<u4"), "units": packed(keys & 0xFFFFFFFF, "<u4")}
