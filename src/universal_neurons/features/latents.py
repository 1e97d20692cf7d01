"""The latents of dictionaries on a model as units of a study: a dictionary per layer, of some layers or all.

They are zero or positive, so that their signs mean something.  Nothing of them is known before text is read: a
dictionary is verified on the study's own (`dictionary_check`), which also gives the factor of one whose activations
are normalised on average.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.features.dictionary import Dictionary
from universal_neurons.features.dictionary_check import Verification, verified
from universal_neurons.features.inputs import inputs_of, spread_rows
from universal_neurons.features.model_features import ModelFeatures
from universal_neurons.features.pooling import Pooling
from universal_neurons.models import Decoder, Model
from universal_neurons.text import Rows
from universal_neurons.units import Units


class Latents(ModelFeatures):
    """Latents of dictionaries on a model, each where it reads; a block without a dictionary has none."""

    def __init__(self, network: Model, dictionaries: Sequence[Dictionary], name: str = "") -> None:
        used = [each.on(network).to(network.device) for each in dictionaries]
        self.unsettled = {each.read.layer: each for each in sorted(used, key=lambda each: each.read.layer)}
        self.dictionaries = dict(self.unsettled)
        super().__init__(network, "dictionaries", {n: each.read for n, each in self.dictionaries.items()}, name)
        digests = "".join(each.digest for each in self.dictionaries.values())
        self.digest = hashlib.sha256((network.digest + digests).encode()).hexdigest()
        self.has_weights = any(each.write.in_stream for each in self.dictionaries.values())

    def _units(self) -> Units:
        widths = [self.dictionaries[n].width if n in self.dictionaries else 0 for n in range(self.network.n_layers)]
        return Units(tuple(widths))

    @property
    def unit_dtype(self) -> torch.dtype:
        """Latents are computed in float32."""
        return torch.float32

    def _units_at(self, layer: int, values: Float[Tensor, "positions width"]) -> Float[Tensor, "positions units"]:
        """The latents of a layer's dictionary."""
        return self.dictionaries[layer].encode(values)

    def verify(
        self,
        ids: Int[Tensor, "rows context"],
        keep: Bool[Tensor, "rows context"],
        attention: Int[Tensor, "rows context"] | None = None,
    ) -> tuple[Verification, ...]:
        """How much of the variance its dictionaries explain on the kept positions, by which they are settled.

        Raises `DictionaryError` for one that explains less than the floor.
        """
        results = verified(list(self.unsettled.values()), self.network, ids, keep, attention)
        self.settle([result.dictionary.scale for result in results])
        return results

    @property
    def scales(self) -> list[float]:
        """By what each dictionary multiplies what it reads."""
        return [each.scale for each in self.dictionaries.values()]

    def settle(self, scales: Sequence[float]) -> None:
        """Use the dictionaries with these factors, where activations are normalised on average."""
        for (layer, each), scale in zip(self.unsettled.items(), scales, strict=True):
            if each.normalisation == "average_norm":
                self.dictionaries[layer] = replace(each, normalisation="none", scale=scale)

    def decoders(self) -> Float[Tensor, "latents d_model"]:
        """What a unit of each latent writes into the residual stream, in float64; NaN of those that write elsewhere."""
        nothing = torch.full((0, self.d_model), torch.nan, device=self.device)
        rows = [
            each.W_dec.new_full((each.width, self.d_model), torch.nan) if each.decoder is None else each.decoder
            for each in self.dictionaries.values()
        ]
        return torch.cat([nothing, *rows]).double()

    @property
    def decoder(self) -> Decoder | None:  # type: ignore[override]  # of dictionaries alone it is made of weights
        """Its decoders, where all of them write into the residual stream: that of its model alone."""
        if not all(each.write.in_stream for each in self.dictionaries.values()):
            return None
        return Decoder(self.network.digest, self.decoders().float())

    def like(self, network: Model) -> "Latents":
        """The same on another model of its architecture."""
        return Latents(network, list(self.unsettled.values()))

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps: of its model, and of each dictionary."""
        of_dictionaries = [
            {
                "layer": layer,
                "name": each.name,
                "format": each.kind,
                "read": str(each.read),
                "write": str(each.write),
                "latents": each.width,
                "sha256": each.digest,
            }
            for layer, each in self.dictionaries.items()
        ]
        return super().describe() | {"dictionaries": of_dictionaries}


def verify_latents(studied: Sequence[Any], text: Rows) -> dict[str, list[dict[str, Any]]]:
    """What the dictionaries of a study do on evenly spread rows of its text, by source, as the manifest keeps it.

    They are settled by it.  Raises `DictionaryError` for one that explains too little, naming the likely reason.
    """
    told = {}
    for latents in (each for each in studied if isinstance(each, Latents)):
        text.require_vocabulary(latents.vocab_size, latents.name)
        inputs = inputs_of(text, [latents.name], *spread_rows(text, np.arange(len(text))))[latents.name]
        keep = torch.zeros(inputs.ids.shape, dtype=torch.bool)
        keep.view(-1)[inputs.places.tokens if isinstance(inputs.places, Pooling) else inputs.places] = True
        attention = None if latents.network.architecture.causal else inputs.attention
        results = latents.verify(inputs.ids, keep, attention)
        told[latents.name] = [result.describe() | {"scale": result.dictionary.scale} for result in results]
    return told
