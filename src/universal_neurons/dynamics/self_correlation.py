"""How alike is a neuron in training to what it becomes?  Each neuron's correlation with itself at the last checkpoint.

The held-out rows are read once for every seed and earlier checkpoint, by two models: the checkpoint's and the last's.
Of each neuron and itself the detail pass's five sums are kept, for each stretch of rows (`heldout`): ρ, and its 95 %
jackknife interval.  At the last checkpoint ρ is 1.  What is finished is kept in the scratch folder, so that an
interrupted pass goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl
import torch
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.dynamics.training_runs import Training
from universal_neurons.errors import StoreConflictError
from universal_neurons.features import NeuronSource
from universal_neurons.matching import HeldOut, PairedMoments, corr_interval
from universal_neurons.models import Model, find_tokenizer, load_model, resolve_sources
from universal_neurons.passes import Pass
from universal_neurons.progress import Reporter
from universal_neurons.statistics import Statistics
from universal_neurons.storage import Generations, Store, StoreWriter
from universal_neurons.text import Shard, TokenDataset

COLUMNS = ("self_corr", "self_corr_low", "self_corr_high")
SelfCorrelations = Mapping[tuple[str, str], pl.DataFrame]  # by checkpoint and seed, in the order of the neurons


def self_correlations(
    training: Training, stores: Sequence[Store], writer: StoreWriter, reporter: Reporter
) -> SelfCorrelations:
    """`self_corr`, `self_corr_low`, `self_corr_high` of every neuron of every seed at every checkpoint.

    `stores` are the checkpoints' studies.  Raises `StoreConflictError` where the text is no longer theirs.
    """
    correlations: dict[tuple[str, str], pl.DataFrame] = {}
    config = stores[-1].settings
    text: TokenDataset | None = None
    for index, seed in enumerate(training.seeds):
        final: Model | None = None
        for checkpoint, store in zip(training.checkpoints[:-1], stores):
            hashes = [s.manifest["models"][index]["sha256"][:16] for s in (store, stores[-1])]
            kept = Generations(writer.prepare() / f"self-{'-'.join(hashes)}")
            saved = kept.load()
            if saved is None:
                if final is None:
                    final = _load(training.checkpoints[-1].models[index], f"{seed} at the end", config)
                text = text or _text(config, final, stores, writer)
                model = _load(checkpoint.models[index], f"{seed} at {checkpoint.name}", config)
                with reporter.tokens(f"{model.name} and at the end", _heldout(config, text)) as meter:
                    corr = correlation_of(model, final, text, config, meter)
                del model  # before the next is loaded
                saved = _columns(corr, *corr_interval(corr)), 1
                kept.save(*saved)
            correlations[checkpoint.name, seed] = pl.DataFrame({name: saved[0][name].numpy() for name in COLUMNS})
        correlations[training.checkpoints[-1].name, seed] = _with_itself(stores[-1], stores[-1].models[index])
    return correlations


def _load(model: str, name: str, config: Settings) -> Model:
    return load_model(resolve_sources([model])[0], device=config.device, dtype=config.dtype, name=name)


def _text(config: Settings, model: Model, stores: Sequence[Store], writer: StoreWriter) -> TokenDataset:
    tokenizer = find_tokenizer(config, [model])
    text = TokenDataset.load(config, tokenizer, context=config.context, folder=writer.prepare())
    for store in stores:
        wanted = store.manifest["tokens"]["fingerprint"]
        if text.fingerprint != wanted:
            raise StoreConflictError(f"{store.path}: its text has changed", given=text.fingerprint, wanted=wanted)
    return text


def _heldout(config: Settings, text: TokenDataset) -> int:
    return sum(map(len, text.split(config.heldout_tokens)[1])) * text.context


def correlation_of(
    model: Model,
    final: Model,
    text: TokenDataset,
    config: Settings,
    after_batch: Callable[[int], None] = lambda positions: None,
) -> HeldOut:
    """ρ of every neuron of one model with the same neuron of another, on the held-out rows of a text."""
    _, stretches = text.split(config.heldout_tokens)
    same = torch.arange(final.n_neurons)
    sources = [NeuronSource(one, config.gemm_dtype) for one in (model, final)]
    run = Pass(sources, [partial(PairedMoments, model.name, final.name, same, len(stretches))])
    shards = [Shard(index, np.asarray(rows)) for index, rows in enumerate(stretches)]
    run.run(text, shards, batch_tokens=config.batch_tokens, after_batch=after_batch)
    return Statistics(run.accumulators).get(PairedMoments, model.name, final.name).result()


def _columns(corr: HeldOut, low: np.ndarray, high: np.ndarray) -> dict[str, Tensor]:
    return {name: torch.as_tensor(values) for name, values in zip(COLUMNS, (corr.corr.value, low, high))}


def _with_itself(store: Store, model: str) -> pl.DataFrame:
    """A neuron is itself: 1, unless it is dead."""
    dead = store.neurons.filter(pl.col("model") == model)["dead"].to_numpy()
    one = np.where(dead, np.nan, 1.0)
    return pl.DataFrame(dict.fromkeys(COLUMNS, one))
