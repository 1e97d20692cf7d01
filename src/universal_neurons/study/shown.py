"""The neurons that figures show: the best of each family, and what the detail pass keeps of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from universal_neurons.labels import FAMILIES, UNEXPLAINED, LabelSet
from universal_neurons.models import Described
from universal_neurons.statistics import (
    BY_POSITION,
    BY_PREVIOUS,
    BY_ROW,
    BY_WORD,
    LABELS,
    Accumulator,
    Batch,
    Key,
    What,
    seed_of,
)
from universal_neurons.study.shown_first import DUPLICATES, PER_FAMILY, ranking, same_label
from universal_neurons.text import Rows, kind_of
from universal_neurons.units import Units, unit_name

SPARE = 2  # kept in case held-out rows take some out of their family
MOST_TOKENS = 100_000


@dataclass(frozen=True)
class Shown:
    """Neurons of one model (flat), each one's label (a place in `LabelSet.all`), and whose pre-activations are kept."""

    neurons: Int[np.ndarray, " shown"]
    labels: Int[np.ndarray, " shown"]
    pre: Bool[np.ndarray, " shown"]


def choose_shown(neurons: pl.DataFrame, label_of: Int[np.ndarray, " neurons"], units: Units) -> Shown:
    """The neurons to show of one model's table, whose `family` is the one before held-out rows were asked.

    `label_of` is the place of each neuron's best label.
    """
    chosen: dict[int, str] = {}
    for family in FAMILIES:
        if family == UNEXPLAINED:
            continue
        ranked, _ = ranking(neurons.filter(pl.col("family") == family))
        for row in ranked.head(PER_FAMILY + SPARE).iter_rows(named=True):
            chosen[units.number_of(row["layer"], row["neuron"])] = family
    for row in same_label(neurons).head(DUPLICATES).iter_rows(named=True):
        chosen.setdefault(units.number_of(row["layer"], row["neuron"]), "unigram")
    flat = np.array(sorted(chosen), np.int64)
    return Shown(flat, label_of[flat], np.array([chosen[n] in ("position", "bos") for n in flat.tolist()], bool))


class Details(Accumulator):
    """Activations of the shown neurons, and whether their labels hold, on at most 100 000 of `positions`.

    Rows are taken or left by a hash of their number, so that those taken are spread over the text.
    """

    def __init__(self, model: Described, shown: Shown, labels: LabelSet, *, dense: bool, positions: int) -> None:
        super().__init__((model.name,), None)
        self.model = model
        self.shown = shown
        self.labels = labels
        self.dense = dense
        self.share = MOST_TOKENS / max(positions, 1)
        self.parts: list[dict[str, Tensor]] = []

    def update(self, batch: Batch) -> None:
        """Keep a batch's positions while there is room."""
        row = batch.index[BY_ROW]
        rows, which = torch.unique(row, return_inverse=True)
        taken = torch.tensor([seed_of("details", int(number)) / 2.0**63 < self.share for number in rows])
        kept = taken.to(row.device)[which].nonzero().flatten()[: MOST_TOKENS - self.count]
        if not len(kept):
            return
        block = batch.blocks[Key(self.model.name)]
        assert block.mean is not None
        neurons = torch.from_numpy(self.shown.neurons).to(row.device)
        of_pre = neurons[torch.from_numpy(self.shown.pre).to(row.device)]
        self.parts.append(
            {key.source: batch.index[key][kept] for key in (BY_ROW, BY_POSITION, BY_WORD, BY_PREVIOUS)}
            | {
                "values": block.values[kept][:, neurons].float() + block.mean[neurons].float(),
                "pre": batch.blocks[Key(self.model.name, What.PRE)].values[kept][:, of_pre],
                "holds": self._holds(batch, kept),
            }
        )
        self.count += len(kept)

    def _holds(self, batch: Batch, kept: Tensor) -> Tensor:
        """Whether each shown neuron's label holds at each of some positions."""
        block = batch.blocks.get(LABELS)
        sizes = [len(self.labels.word_labels), len(self.labels.previous_labels), len(self.labels.position_labels)]
        tables = (self.labels.word_table, self.labels.previous_table, self.labels.position_table)
        columns = []
        for label in self.shown.labels.tolist():
            for key, table, size in zip((BY_WORD, BY_PREVIOUS, BY_POSITION), tables, sizes):
                if label < size:
                    columns.append(torch.from_numpy(table[label])[batch.index[key][kept].cpu()])
                    break
                label -= size
            else:
                if block is None or label >= len(self.labels.column_labels):
                    columns.append(torch.zeros(len(kept), dtype=torch.bool))
                else:
                    offset = sizes[0] + sizes[1] if self.dense else 0
                    columns.append(block.values[kept, offset + label].bool().cpu())
        return torch.stack(columns, 1)

    def table(self, tokens: Rows) -> pl.DataFrame:
        """A row per position: `L1.2` is an activation, `L1.2 pre` a pre-activation, `L1.2 label` whether it holds."""
        joined = {name: torch.cat([part[name] for part in self.parts]).cpu().numpy() for name in self.parts[0]}
        known, which = np.unique(joined["row"], return_inverse=True)
        ids = tokens.ids(known)[which, joined["position"]]
        names = [unit_name(*self.model.units.place_of(number)) for number in self.shown.neurons.tolist()]
        kinds = np.zeros(self.labels.n_words, np.int8)
        kinds[self.labels.word_of] = kind_of(np.arange(len(self.labels.word_of)))
        columns: dict[str, np.ndarray | Sequence[str]] = {
            "row": joined["row"].astype(np.int32),
            "position": joined["position"].astype(np.int32),
            "token": ids.astype(np.int32),
            "kind": kinds[joined["word"]],
            "subset": np.array(tokens.subset_names)[tokens.subsets[joined["row"]]],
        }
        columns |= {name: joined["values"][:, n] for n, name in enumerate(names)}
        kept = [name for name, pre in zip(names, self.shown.pre) if pre]
        columns |= {f"{name} pre": joined["pre"][:, n] for n, name in enumerate(kept)}
        columns |= {f"{name} label": joined["holds"][:, n] for n, name in enumerate(names)}
        return pl.DataFrame(columns)
