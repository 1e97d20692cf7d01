"""Best matches by name: `store.counterparts()`, and a neuron's own."""

import polars as pl

from universal_neurons.labels import explaining_label
from universal_neurons.storage import Neuron, Store
from universal_neurons.units import name_column

PLACE = ("model", "layer", "neuron")
OF_MATCH = ("corr", "corr_heldout", "corr_low", "corr_high", "mutual")


def counterparts_table(store: Store, neuron: Neuron | None) -> pl.DataFrame:
    """A row per neuron that was asked about, or of one, and other model; columns as `Store.counterparts` says."""
    best = store.matches.filter(rank=1)
    if neuron is not None:
        best = best.filter(model=neuron.model, layer=neuron.layer, neuron=neuron.neuron)
    fires_on = store.neurons.select(*PLACE, "family", explaining_label())
    matched = [f"match_{name}" for name in PLACE]
    best = best.join(fires_on, left_on=matched, right_on=PLACE, how="left", maintain_order="left")
    names = pl.format("{}/{}", "model", name_column()), pl.format("{}/{}", "match_model", name_column("match_"))
    return best.select(names[0].alias("neuron"), names[1].alias("counterpart"), *OF_MATCH, "family", "label")
