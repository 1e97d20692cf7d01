"""On how many rows layers are compared, how many layers are held at once, and what that takes."""

from collections.abc import Sequence

from universal_neurons.config import Settings
from universal_neurons.models import Described
from universal_neurons.text import HELDOUT_MOST, STRETCHES
from universal_neurons.units import Units

MOST_POSITIONS = 65_536
SHARE = 64  # of the text, one part: the stage stays a small share of a study
GROUP_BYTES = 1 << 30
SQUARES = 12  # float64 matrices of the widest layer's size that two layers' measures take


def rows_compared(config: Settings) -> int:
    """How many held-out rows, at most: of a sixty-fourth of the text, of every stretch one."""
    tokens = config.max_tokens // config.context * config.context
    heldout = min(tokens // 5, config.heldout_tokens or HELDOUT_MOST)
    positions = min(MOST_POSITIONS, max(tokens // SHARE, STRETCHES * config.context), heldout)
    return max(2, positions // config.context)


def layer_groups(units: Units, positions: int) -> list[range]:
    """A model's layers in groups whose activations at so many positions fit in `GROUP_BYTES`, or of one layer."""
    groups: list[range] = []
    first, held = 0, 0
    for layer, width in enumerate(units.widths):
        size = 4 * positions * width
        if layer > first and held + size > GROUP_BYTES:
            groups.append(range(first, layer))
            first, held = layer, 0
        held += size
    return [*groups, range(first, units.layers)]


def similarity_bytes(config: Settings, models: Sequence[Described]) -> int:
    """What the stage takes: two groups of layers, one of them twice while it is read, and matrices of two layers."""
    positions = rows_compared(config) * config.context
    widths = [[m.units.widths[layer] for layer in group] for m in models for group in layer_groups(m.units, positions)]
    largest = 4 * positions * max(map(sum, widths))
    return 3 * largest + 8 * SQUARES * max(map(max, widths)) ** 2
