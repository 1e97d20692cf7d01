"""The stage of effects: after the study, which says what changed, both models are read once more."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.diff.effect_tables import effects_tables
from universal_neurons.diff.effect_units import (
    EffectUnits,
    batches_of,
    change_sizes,
    contributions_of_both,
    effect_units,
    spread_rows,
)
from universal_neurons.diff.effects import (
    EffectRuns,
    RowLosses,
    effect_rows,
    effects_seconds,
    passes_of,
    read_effects,
    rows_of,
    rows_together,
)
from universal_neurons.diff.finished import FIRST, SECOND
from universal_neurons.diff.inputs import Inputs
from universal_neurons.progress import Reporter, clock
from universal_neurons.storage import Generations, Store, StoreWriter
from universal_neurons.text import Rows


class EffectStage:
    """The effects of the units that changed most, on each text of a diff whose models are loaded."""

    def __init__(self, inputs: Inputs, study: Store, changes: pl.DataFrame, texts: Sequence[Rows]) -> None:
        self.inputs, self.changes = inputs, changes
        self.neurons = study.neurons
        self.texts = dict(zip((FIRST, SECOND), texts))
        turned = inputs.base.gated & (changes["w_out_cos"].to_numpy() < 0)
        self.sign = np.where(turned, -1.0, 1.0)

    def tables(self, writer: StoreWriter, reporter: Reporter) -> dict[str, pl.DataFrame]:
        """`unit_effects` and `joint_effects`; what is read is kept in the scratch folder."""
        base, tuned = self.inputs.base, self.inputs.tuned
        with reporter.stage("effects"):
            units = self._units()
            means = (self._means(base.name), self._means(tuned.name))
            runs = EffectRuns(base, tuned, units, means, self.sign)
            folder = writer.prepare()
            losses = {name: self._read(name, runs, folder / f"effects-{name}", reporter) for name in self.texts}
            return effects_tables(base.units, units, losses)

    def _units(self) -> EffectUnits:
        base, tuned, config = self.inputs.base, self.inputs.tuned, self.inputs.config
        text = list(self.texts.values())[-1]  # where the gain is
        rows = spread_rows(text.split(self._heldout)[0], rows_of(text.context, config.effect_tokens))
        batches = list(batches_of(rows, self._rows_together(text)))
        sizes = change_sizes(base, tuned, text, batches, self.sign)
        assert config.effects is not None
        contributed = contributions_of_both(base, tuned, self.neurons)
        return effect_units(self.changes, base.units, config.effects, sizes, contributed)

    def _rows_together(self, text: Rows) -> int:
        return rows_together(self.inputs.base, text.context, self.inputs.settings.batch_tokens)

    @property
    def _heldout(self) -> int | None:
        return self.inputs.settings.heldout_tokens

    def _means(self, model: str) -> Float[Tensor, " units"]:
        means = self.neurons.filter(pl.col("model") == model)["activation_mean"].to_numpy()
        return torch.from_numpy(np.nan_to_num(means)).float()

    def _read(self, name: str, runs: EffectRuns, folder: Path, reporter: Reporter) -> RowLosses:
        text = self.texts[name]
        rows = effect_rows(text, self._heldout, self.inputs.config.effect_tokens)
        of = [runs.base.digest, runs.tuned.digest, text.fingerprint, rows.numbers.tolist(), runs.units.all]
        kept = Generations(folder, of=json.dumps(of))
        label = f"effects of {len(runs.units.changed)} units" + ("" if name == FIRST else " on the second text")
        with reporter.tokens(label, len(rows.numbers) * text.context) as meter:
            return read_effects(runs, text, rows, self._rows_together(text), kept, meter)


def effects_note(inputs: Inputs, texts: Sequence[Rows]) -> str:
    """What the effects will take, before they begin."""
    config, context = inputs.config, texts[0].context
    assert config.effects is not None
    settings = inputs.settings
    rows = [effect_rows(text, settings.heldout_tokens, config.effect_tokens).numbers for text in texts]
    positions = context * sum(map(len, rows))
    seconds = effects_seconds(
        inputs.base,
        inputs.tuned,
        units=config.effects,
        positions=positions,
        context=context,
        batch_tokens=settings.batch_tokens,
    )
    return (
        f"effects of {config.effects} units: {sum(passes_of(config.effects)):,} forward passes over {positions:,} "
        f"positions, about {clock(seconds)}; --effects 0 leaves them out"
    )
