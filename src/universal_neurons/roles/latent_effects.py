"""What latents of dictionaries do to the logits: the table `effects`, as neurons have it, of their decoders.

A latent writes its decoder's row into the residual stream, as a neuron writes its w_out.  The same is computed of it:
class, tokens raised and lowered most, how peaked its effects are (`prediction`).  Roles are of neurons alone, so they
stay null.  A latent that writes elsewhere (activations of neurons, values of heads) has no row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.features import Latents
from universal_neurons.models import Model, written_directions
from universal_neurons.roles.one_model import Sample
from universal_neurons.roles.prediction import effects_table, often_used, used_tokens
from universal_neurons.roles.reach import kurtosis_reach
from universal_neurons.units import Units

NO_ROLE = pl.lit(None, pl.String)


@dataclass(frozen=True)
class _Decoders:
    """What latents write, as later norms leave it, and the unembedding; of latents that write elsewhere, nothing."""

    w_out: Float[Tensor, "latents d_model"]
    w_u: Float[Tensor, "vocabulary d_model"]
    units: Units


def latent_effect_tables(
    writing: Sequence[Latents],
    neurons: pl.DataFrame,
    sample: Sample,
    config: Settings,
    note: Callable[[str], None],
) -> dict[str, pl.DataFrame]:
    """The table `effects` of a study's latents, and its `vocabulary` where no labels make it; none where none have any.

    `neurons` is the study's neuron table; `note` is told of whose latents there are no logit effects, and why.
    """
    having = [each for each in writing if not why_no_effects(each.network)]
    for each in (each for each in writing if each not in having):
        note(f"{each.name}: no logit effects, {why_no_effects(each.network)}")
    if not having:
        return {}
    frames = [_effects(each, neurons.filter(model=each.name), sample, config) for each in having]
    tables = {"effects": pl.concat(frames)}
    if "labels" not in config.stages and any(sample.vocabulary.strings):
        tables["vocabulary"] = sample.vocabulary.table(sample.counts[:, None])
    return tables


def _effects(latents: Latents, stats: pl.DataFrame, sample: Sample, config: Settings) -> pl.DataFrame:
    """A row per latent that writes into the residual stream; `stats` are its rows of the neuron table, in order."""
    network = latents.network
    written = latents.decoders()
    w_out, w_u = written_directions(network, written.nan_to_num(nan=0.0))
    weights = _Decoders(w_out, w_u, latents.units)
    often = often_used(used_tokens(weights, sample.vocabulary), sample.counts)
    reach = kurtosis_reach(w_u, often, centred=network.architecture.norm == "layer", seed=config.seed)
    table = effects_table(
        latents.name, weights, stats, sample.vocabulary, sample.counts, sample.labels, config.roles, reach
    )
    in_stream = pl.Series(torch.isfinite(written).all(1).tolist(), dtype=pl.Boolean)
    nothing = {"role": NO_ROLE, "role_relative": NO_ROLE, "orientation": pl.lit(1, pl.Int8)}
    return table.with_columns(**nothing).filter(in_stream)


def why_no_effects(model: Model) -> str:
    """Why nothing that is written into the stream has logit effects, empty where it has: no way through norms."""
    if not model.has_unembedding:
        return "it has no unembedding"
    if not model.unembedding_reads_stream:
        return "its unembedding reads a projection of the residual stream"
    return "its norms follow the residual sum" if model.architecture.post_norm else ""
