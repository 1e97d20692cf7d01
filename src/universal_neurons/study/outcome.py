"""What the passes of a study have brought so far: all that outlives a pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from universal_neurons.matching import Findings, RandomBases, can_be_rotated
from universal_neurons.passes import provisional_state, restore, settle_from, state_of
from universal_neurons.statistics import Accumulator, Recipe
from universal_neurons.study.inputs import Study


class Outcome:
    """Sources with their provisional means, what was found, and the statistics of the first pass (co-moments apart)."""

    def __init__(self, study: Study) -> None:
        self.study, config = study, study.config
        pre = bool({"statistics", "labels"} & set(config.stages))
        self.device = study.models[0].device
        self.sources = {model.name: study.reader.source(model, config.gemm_dtype, pre=pre) for model in study.models}
        self.findings = Findings(config)
        self.random_bases = RandomBases(config) if can_be_rotated(config) else None
        self.accumulators: list[Accumulator] = []
        self.labels: dict[str, Tensor] = {}
        if study.labelling is not None:
            self.labels = {"labels": study.labelling.fingerprint()}

    @property
    def signs(self) -> dict[str, Tensor]:
        """1 or −1 for every neuron of the gated models, by its provisional mean: as `Evidence` takes them."""
        signs: dict[str, Tensor] = {}
        for name in self.study.gated:
            provisional = self.sources[name].provisional
            assert provisional is not None
            signs[name] = torch.where(provisional.mean < 0, -1.0, 1.0).double()
        return signs

    def state(self) -> dict[str, Tensor]:
        """As plain tensors."""
        kept = state_of(self.accumulators, "kept/") | self.labels | provisional_state(self.sources.values())
        return kept | self.findings.state() | ({} if self.random_bases is None else self.random_bases.state())

    def of_other_labels(self, state: dict[str, Tensor]) -> bool:
        """Whether a state was written with other labels."""
        return bool(self.labels) and not torch.equal(state["labels"], self.labels["labels"])

    def restore(self, state: dict[str, Tensor], first: Sequence[Recipe]) -> None:
        """Take over a state written by `state`; `first` makes the first pass's statistics, where it is done."""
        self.findings.restore(state)
        if self.random_bases is not None:
            self.random_bases.restore(state)
        settle_from(state, self.sources.values())
        self.accumulators = [recipe(device=self.device) for recipe in first]
        restore(self.accumulators, state, "kept/")
