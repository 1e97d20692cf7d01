"""Which statistics a study's passes keep: recipes of them, and panels of the co-moment matrices that fit in memory.

The matrices of all pairs are cut into equal panels of whole rows (left neurons; where both models of a pair are asked
about, whole layers).  Every pass makes one panel; the first keeps all other statistics too, later ones run only the
models of their panel.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from universal_neurons.config import Settings
from universal_neurons.models import Described
from universal_neurons.statistics import (
    CoMoments,
    Extremes,
    Key,
    LayerMoments,
    Recipe,
    Rows,
    ShardEnergies,
    ShuffledCoMoments,
    Signs,
    SumSquares,
    What,
)
from universal_neurons.units import Units


@dataclass(frozen=True)
class Layout:
    """How the co-moments are made: in how many passes, and whether their sums are compensated float32."""

    passes: int = 1
    compensated: bool = False


@dataclass(frozen=True)
class Panel:
    """Some rows of the co-moment matrix of two models."""

    left: Described
    right: Described
    rows: Rows

    @property
    def entries(self) -> int:
        """Entries of the matrix."""
        return (self.rows[1] - self.rows[0]) * self.right.n_neurons


def model_pairs(models: Sequence[Described], pairs: str) -> list[tuple[Described, Described]]:
    """The unordered pairs whose co-moments are needed: the reference with each other model, or every two."""
    if pairs == "reference":
        return [(models[0], other) for other in models[1:]]
    return [(left, right) for i, left in enumerate(models) for right in models[i + 1 :]]


def cut(pairs: Sequence[tuple[Described, Described]], passes: int, *, by_layer: bool = False) -> list[list[Panel]]:
    """The panels of every pass, each about equally many entries; fewer passes where rows cannot be cut so fine."""
    total = sum(left.n_neurons * right.n_neurons for left, right in pairs)
    panels: list[list[Panel]] = [[] for _ in range(passes)]
    done = 0
    for left, right in pairs:
        rows, columns = left.n_neurons, right.n_neurons
        start = 0
        while start < rows:
            number = min(done * passes // total, passes - 1)
            room = -(-(number + 1) * total // passes) - done
            stop = _stop(left.units, start, room / columns, by_layer=by_layer)
            panels[number].append(Panel(left, right, (start, stop)))
            done += (stop - start) * columns
            start = stop
    return [panel for panel in panels if panel]


def _stop(units: Units, start: int, height: float, *, by_layer: bool) -> int:
    """Where a panel of about so many rows ends: one row at least, or at the end of a layer."""
    if by_layer and len(set(units.widths)) > 1:
        return min((end for end in units.starts if end > start), key=lambda end: abs(end - start - height))
    step = units.width if by_layer else 1
    return min(len(units), start + max(step, round(height / step) * step))


def signs_of(config: Settings) -> Signs | None:
    """The signs of the study's sketch, if it has one."""
    return None if config.search == "exact" else Signs(config.group_size, config.seed)


def blocks_of(config: Settings) -> What:
    """What of the models is correlated: activations, or a sketch's sums."""
    return What.ACTIVATION if config.search == "exact" else What.SUMS


def panel_recipes(
    panels: Sequence[Panel], config: Settings, groups: int = 1, *, compensated: bool = False
) -> list[Recipe]:
    """Co-moments of some panels, `groups` times over, and of every draw of the permutation baseline."""
    of = blocks_of(config)
    recipes: list[Recipe] = []
    for group in range(groups):
        for panel in panels:
            names = Key(panel.left.name, of), Key(panel.right.name, of)
            shape: dict[str, Any] = {
                "group": group,
                "n_left": panel.left.n_neurons,
                "n_right": panel.right.n_neurons,
                "rows": panel.rows,
                "compensated": compensated,
            }
            recipes.append(partial(CoMoments, *names, **shape))
            if config.baseline == "permutation":
                recipes += [
                    partial(ShuffledCoMoments, *names, draw, config.seed, **shape) for draw in range(config.draws)
                ]
    return recipes


def model_recipes(
    models: Sequence[Described], rotated: Collection[str], config: Settings, groups: int = 1
) -> list[Recipe]:
    """What the comparison needs of every model alone, `groups` times over; `rotated` names the baseline's models."""
    asked = "universality" in config.stages
    signs = signs_of(config)
    recipes: list[Recipe] = []
    for group in range(groups):
        for model in models:
            name, n = model.name, model.n_neurons
            layers = partial(LayerMoments, units=model.units, group=group)
            needed = asked and config.baseline != "permutation" and name in rotated
            recipes.append(partial(Extremes, name, n, group=group))
            recipes.append(partial(SumSquares, name, n, group=group))
            if "statistics" in config.stages or (needed and signs is None):
                recipes.append(partial(layers, name))
            if asked and signs is not None:
                recipes.append(partial(SumSquares, Key(name, What.SUMS), n, group=group))
                recipes.append(partial(ShardEnergies, name, n, signs, group=group))
                if needed:
                    recipes.append(partial(layers, Key(name, What.SUMS)))
    return recipes


def study_recipes(
    models: Sequence[Described],
    pairs: Sequence[tuple[Described, Described]],
    config: Settings,
    groups: int = 1,
    *,
    compensated: bool = False,
) -> list[Recipe]:
    """All that a comparison of whole matrices needs."""
    whole = [Panel(left, right, (0, left.n_neurons)) for left, right in pairs]
    rotated = {model.name for pair in pairs for model in (pair if config.pairs == "all" else pair[1:])}
    own = model_recipes(models, rotated, config, groups)
    return own + panel_recipes(whole, config, groups, compensated=compensated)
