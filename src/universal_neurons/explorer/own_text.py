"""A text of the reader's own: what the neurons of a study's models do on it.

1. The text becomes rows of at most `context` tokens, BOS in front, as the study's rows are.  Tokens that the
   study's mask leaves out are shown, but not counted.
2. A token's activation is taken as a share of the neuron's highest in the study's text (`examples`, rank 1 of the top);
   where a gated neuron's lowest is the larger share, of that.
3. The twelve neurons with the largest share in the text are shown, each with its activations, as the model gives them.

Two passes over the rows: one for the shares, one for what is shown, so memory does not grow with the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from universal_neurons.config import IN_MEMORY
from universal_neurons.errors import MissingFileError, StoreConflictError
from universal_neurons.features import Latents, Studied, load_studied
from universal_neurons.models import (
    boundary_tokens,
    encode,
    folder_of,
    load_tokenizer,
    masked_ids,
    resolve_sources,
    strings_of,
)
from universal_neurons.statistics import BOTTOM
from universal_neurons.storage import Store
from universal_neurons.units import unit_name

SHOWN = 12  # neurons a model
TAILS = {"top": 1, BOTTOM: -1}  # bands of the examples, and the sign of what counts there
COLUMNS = ["model", "layer", "neuron", "band", "rank", "activation"]
BATCH_ROWS = 1 << 16
QUANTILE = 1.0  # of the study's activations that a share is of: the highest


@dataclass(frozen=True)
class Extremes:
    """Every neuron's highest and lowest activation in a study's text; NaN where a neuron has no such tail."""

    highest: Float[Tensor, " neurons"]
    lowest: Float[Tensor, " neurons"]

    def of(self, numbers: Sequence[int]) -> "Extremes":
        """Those of some neurons."""
        return Extremes(self.highest[list(numbers)], self.lowest[list(numbers)])

    def shares(self, activations: Float[Tensor, "tokens neurons"]) -> Float[Tensor, "tokens neurons"]:
        """Each activation as the larger share of the two, at least 0."""
        return torch.maximum((activations / self.highest).nan_to_num(0), (activations / self.lowest).nan_to_num(0))


def extremes_of(store: Store) -> dict[str, Extremes]:
    """The extremes of every model's neurons, from the study's examples, of which only these are kept in memory."""
    found = {name: [np.full(len(units), np.nan, np.float32) for _ in TAILS] for name, units in store.units.items()}
    with store.verified("examples") as stream, store.readable("examples"):
        for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=COLUMNS):
            first = pl.DataFrame(pl.from_arrow(batch)).filter(pl.col("rank") == 1)
            for name, units in store.units.items():
                for values, (band, sign) in zip(found[name], TAILS.items()):
                    of_tail = (pl.col("model") == name) & (pl.col("band") == band) & (pl.col("activation") * sign > 0)
                    rows = first.filter(of_tail).select(units.number_column().alias("unit"), "activation")
                    values[rows["unit"].to_numpy()] = rows["activation"].to_numpy()
    return {name: Extremes(*map(torch.from_numpy, of_model)) for name, of_model in found.items()}


class TextReader:
    """Reads texts by the models of a study, which are loaded when the first text comes.

    Raises `MissingFileError` where the study has no examples or a model is not on this machine (nothing is downloaded),
    `StoreConflictError` where another model is in a model's place.
    """

    def __init__(self, store: Store) -> None:
        self._settings, self._models = store.settings, load_models_of(store)
        self._tokenizers = tokenizers_of(store, self._models)
        self._extremes = extremes_of(store)

    def read(self, text: str) -> dict[str, Any]:
        """What the neurons of every model do on a text."""
        return {"quantile": QUANTILE, "models": [self._read(number, m, text) for number, m in enumerate(self._models)]}

    def _read(self, number: int, model: Studied, text: str) -> dict[str, Any]:
        tokenizer = self._tokenizers[number]
        bos, eos = boundary_tokens(tokenizer, model.name)
        left_out, _ = masked_ids(self._settings.mask, tokenizer, bos, eos)
        (ids,) = encode(tokenizer, [text])
        size = min(self._settings.context, model.context) - 1
        rows = [ids[start : start + size] for start in range(0, len(ids), size)]
        counted = torch.tensor([token not in left_out for token in ids], dtype=torch.bool)
        extremes = self._extremes[model.name]
        best = torch.zeros(model.n_neurons)
        for row, kept in zip(rows, counted.split(size)):
            shares = extremes.shares(activations_on(model, bos, row)[kept])
            best = torch.maximum(best, torch.cat([best[None], shares]).amax(0))
        shown = [int(n) for n in best.argsort(descending=True, stable=True)[:SHOWN] if best[n] > 0]
        taken = torch.cat([torch.zeros(0, len(shown)), *(activations_on(model, bos, row)[:, shown] for row in rows)])
        names = [unit_name(*model.units.place_of(n)) for n in shown]
        columns = _columns(taken, counted, extremes.of(shown))
        strings = dict(zip(set(ids), strings_of(tokenizer, list(set(ids)))))
        return {
            "model": number,
            "tokens": [strings[token] for token in ids],
            "units": [{"name": name, "unit": n} | column for name, n, column in zip(names, shown, columns)],
        }


def _columns(
    activations: Float[Tensor, "tokens shown"], counted: Bool[Tensor, " tokens"], extremes: Extremes
) -> Iterator[dict[str, Any]]:
    """Each shown neuron's activations, and the extreme that its largest share is of."""
    at = extremes.shares(activations).where(counted[:, None], -1).argmax(0)
    for column, strongest, highest, lowest in zip(activations.T, at, extremes.highest, extremes.lowest):
        yield {
            "activations": [_short(v) if kept else None for v, kept in zip(column.tolist(), counted.tolist())],
            "highest": _short(float(highest if column[strongest] > 0 else lowest)),
        }


def activations_on(model: Studied, bos: int, row: Sequence[int]) -> Float[Tensor, "tokens neurons"]:
    """All units' activations on a row of tokens that follow BOS, in float32."""
    taken: dict[int, Tensor] = {}
    with model.capturing(taken.__setitem__):
        model.network.forward(torch.tensor([[bos, *row]]))
    return torch.cat([taken[layer] for layer in range(model.n_layers)], 1)[1:].float().cpu()


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def load_models_of(store: Store) -> list[Studied]:
    """A study's models from this machine's disk, in float32 on the CPU; errors as `TextReader` says."""
    config = store.config
    if not store.has("examples"):
        raise MissingFileError("this study has no examples, by which activations are measured")
    if any(named.startswith(IN_MEMORY) for named in config.models):
        raise MissingFileError("this study was made of models in memory: they are not on the disk")
    if any(named.endswith(".safetensors") for named in config.models):
        raise MissingFileError("this study was made of sketches: they read no text")
    described = store.manifest["models"]
    sources = resolve_sources(config.models, download=False)
    models = load_studied([replace(source, name=facts["name"]) for source, facts in zip(sources, described)])
    for model, facts in zip(models, described):
        if model.digest != facts["sha256"]:
            raise StoreConflictError(f"{facts['name']}: another model is now in the place of the study's")
        if isinstance(model, Latents):
            model.settle([each["scale"] for each in store.manifest["dictionaries"][model.name]])
    return models


def tokenizers_of(store: Store, models: Sequence[Studied]) -> list[Any]:
    """The tokenizer of each model: the one that the study names, its own, or that of the first that has one."""
    named = store.config.tokenizer
    if named is not None:
        return [load_tokenizer(folder_of(named, download=False))] * len(models)
    first = next((model.tokenizer for model in models if model.tokenizer is not None), None)
    if first is None:
        raise MissingFileError("this study was made of tokens: no tokenizer is there to read a text by")
    return [model.tokenizer or first for model in models]
