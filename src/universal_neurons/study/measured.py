"""How fast this machine is: of a few rounds of some work the fastest."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.features import Studied
from universal_neurons.statistics import Block, add_product_of_blocks, round_to_scales

MEASURED_SECONDS = 2.0  # after which no further round is timed
MEASURED_FLOP, FEWEST_MEASURED = 10**11, 128  # of a forward pass that is timed on a CPU, and its positions


def fewest_seconds(work: Callable[[], object], rounds: int, device: torch.device) -> float:
    """The fewest seconds of so many rounds of some work, of fewer where they would take over `MEASURED_SECONDS`."""
    best, spent = float("inf"), 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        best, spent = min(best, seconds), spent + seconds
        if spent > MEASURED_SECONDS:
            break
    return best


def gemm_rate(device: str, rounding: str = "float32", size: int = 1536, rounds: int = 3) -> float:
    """Measured FLOP/s of the correlation's matrix product on this machine, inputs rounded so."""
    low = device.startswith("cuda") and rounding == "bfloat16"
    values = torch.randn(2048, size, device=device).to(torch.bfloat16 if low else torch.float32)
    block = Block(values, rounding=rounding, scale=round_to_scales(values) if rounding == "int8" else None)
    into, every = torch.zeros(size, size, device=device), slice(None)
    seconds = fewest_seconds(
        lambda: add_product_of_blocks(into, block, every, block, every, True), rounds + 1, into.device
    )
    return 2 * 2048 * size**2 / seconds


def seconds_by_model(models: Sequence[Studied], seconds: Callable[[Studied], float]) -> dict[str, float]:
    """What is measured of each model, once of each kind."""
    kinds = {m.name: (m.network.architecture.name, type(m), m.units, m.d_model) for m in models}
    alike = {kinds[m.name]: m for m in models}
    measured = {kind: seconds(model) for kind, model in alike.items()}
    return {name: measured[kind] for name, kind in kinds.items()}


def bare_seconds(model: Studied, config: Settings) -> float:
    """Seconds per position of a model's forward pass from which nothing but a few activations is taken."""
    ids = measured_ids(model, config)
    return fewest_seconds(lambda: model.network.forward(ids), 1, model.device) / ids.numel()


@dataclass(frozen=True)
class ReadingSeconds:
    """Seconds per position of reading every source by itself (`alone`), by name.

    `networks` says whose model it is, `bare` how long that one's forward pass takes of it, where sources share it.
    """

    alone: Mapping[str, float]
    networks: Mapping[str, int]
    bare: Mapping[str, float]

    @classmethod
    def measured(
        cls, models: Sequence[Studied], config: Settings, alone: Callable[[Studied, Settings], float]
    ) -> "ReadingSeconds":
        """As `alone` measures a source."""
        networks = {model.name: id(model.network) for model in models}
        sharing = Counter(networks.values())
        shared = [model for model in models if sharing[networks[model.name]] > 1]
        bare = seconds_by_model(shared, lambda model: bare_seconds(model, config))
        return cls(seconds_by_model(models, lambda model: alone(model, config)), networks, bare)

    def of(self, names: Iterable[str]) -> float:
        """Seconds per position of a pass of these sources: a model's forward pass runs once for all that is its."""
        names = list(names)
        running = {self.networks[name]: name for name in names}
        again = (name for name in names if running[self.networks[name]] != name)
        return sum(self.alone[name] for name in names) - sum(min(self.bare[name], self.alone[name]) for name in again)


def measured_ids(model: Studied, config: Settings) -> Int[Tensor, "rows context"]:
    """The tokens that a model is timed on: a batch; of a large model on a CPU fewer rows, or one that is cut short."""
    positions = max(1, config.batch_tokens // config.context) * config.context
    if model.device.type == "cpu":
        positions = min(positions, max(FEWEST_MEASURED, MEASURED_FLOP // max(1, model.network.n_bytes // 2)))
    length = min(config.context, positions)
    return torch.arange(positions // length * length).view(-1, length) % model.vocab_size
