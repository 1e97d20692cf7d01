"""Neurons of a study held at what they do on average there: mean ablation, whose values the study knows.

with ablate(model, store, ["L0.49"]) as taken:
    logits = model.logits(ids)
taken  # which value each neuron was given
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool
from torch import Tensor

from universal_neurons.errors import ConfigError, MissingFileError, StoreConflictError
from universal_neurons.interventions.edits import Edit, Neurons, as_edit, flat_numbers, intervene
from universal_neurons.models import Model
from universal_neurons.storage import Store

MEAN = "activation_mean"
MEAN_ABLATION = Edit("mean")


@contextlib.contextmanager
def ablate(
    model: Model,
    store: Store,
    neurons: Neurons,
    edit: Edit | str = MEAN_ABLATION,
    positions: Bool[Tensor, "*rows context"] | None = None,
) -> Iterator[pl.DataFrame]:
    """While open, every forward pass has these neurons' activations at their mean in the study, `activation_mean` of
    `store.neurons`; with `edit` "zero", at 0.  At all positions, or where `positions` is true.

    Gives a polars frame of what was taken: `model`, `layer`, `neuron`, `value`.  Raises `StoreConflictError` where the
    study is not of this model or averaged over spans, `MissingFileError` where it knows no means, and errors of
    `intervene`.
    """
    edit = as_edit(edit)
    if not (edit.lacks_mean or edit.kind == "zero"):
        raise ConfigError(
            "an ablation by a study",
            given=f"{edit.kind} with a value" if edit.kind == "mean" else edit.kind,
            wanted='un.Edit("mean") without a value, or "zero"',
            fix="un.intervene(model, neurons, edit) needs no study",
        )
    numbers = flat_numbers(model, neurons)
    name = _name_in(store, model)
    values = _means(store, name, model, numbers) if edit.lacks_mean else np.zeros(len(numbers))
    places = model.units.table_columns(np.array(numbers))
    taken = pl.DataFrame({"model": [name] * len(numbers), **places, "value": values})
    if edit.lacks_mean:
        edit = Edit("mean", torch.from_numpy(values).float())  # the same for either orientation
    with intervene(model, numbers, edit, positions):
        yield taken


def _name_in(store: Store, model: Model) -> str:
    """The name in a study of this very model."""
    of_neurons = {facts["name"]: facts["sha256"] for facts in store.manifest["models"] if not facts.get("features")}
    same = [name for name, digest in of_neurons.items() if digest == model.digest]
    if not same:
        raise StoreConflictError(
            f"{store.path}: not a study of this {model.name}'s neurons",
            given="a model of other weights or another configuration, or other features of it",
            wanted="one of " + (", ".join(of_neurons) or "no model: none of its units are neurons"),
            fix="load the model from where the study took it, in the same way",
        )
    return model.name if model.name in same else same[0]


def _means(store: Store, name: str, model: Model, numbers: list[int]) -> np.ndarray:
    """The neurons' mean activations in a study, in the order of the numbers."""
    if store.manifest["config"].get("pooling") is not None:
        raise StoreConflictError(
            f"{store.path}: its means are of spans, not of tokens",
            given="a study of several tokenizers",
            wanted="a study whose positions are the model's tokens",
            fix=f'run a study of {name} alone, or give a value: un.Edit("mean", value)',
        )
    rows = store.neurons.filter(pl.col("model") == name).sort("layer", "neuron")
    means = rows[MEAN].to_numpy()[numbers] if MEAN in rows.columns else np.full(len(numbers), np.nan)
    if not np.isfinite(means.astype(float)).all():
        raise MissingFileError(
            f"{store.path}: it knows no mean activations",
            wanted=f"a study that read text, with the column {MEAN}",
            fix='run the study again into another folder, or give a value: un.Edit("mean", value)',
        )
    return means.astype(float)
