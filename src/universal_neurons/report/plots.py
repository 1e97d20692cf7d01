"""`store.plot`, `dynamics.plot`, `store.neuron("L0.49").plot`: the figures of a report, one by one, for a notebook."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from universal_neurons.diff import Diff
from universal_neurons.dynamics import Dynamics
from universal_neurons.errors import InputError
from universal_neurons.report.figures import DIFF_KINDS, DYNAMICS_KINDS, NEURON_KINDS, STUDY_KINDS, FigureKind
from universal_neurons.storage import Neuron, Results, Store


class Plots:
    """A method for every figure: `plot.universality()` gives a matplotlib `Figure`, with its caption as `caption`.

    Nothing is shown or saved; a notebook shows what a cell ends with.  `dir(plot)` lists the figures whose tables are
    there; of others a method raises `InputError`, which names the stage that makes them.
    """

    def __init__(
        self, results: Results, kinds: Sequence[FigureKind], models: Sequence[str], subject: object = None
    ) -> None:
        self._results = results
        self._kinds = {kind.name: kind for kind in kinds}
        self._models = list(models)
        self._subject = results if subject is None else subject

    def __dir__(self) -> list[str]:
        return [name for name, kind in self._kinds.items() if kind.has_tables(self._results)]

    def __repr__(self) -> str:
        return "\n".join(f"plot.{name}(): {self._kinds[name].title}" for name in dir(self))

    def __getattr__(self, name: str) -> Callable[..., Figure]:
        kind = self.__dict__.get("_kinds", {}).get(name)
        if kind is None:
            raise AttributeError(f"no figure {name!r}; there are {', '.join(self.__dict__.get('_kinds', {}))}")
        return self._method(kind)

    def _method(self, kind: FigureKind) -> Callable[..., Figure]:
        def of_model(model: str | None = None) -> Figure:
            return self._draw(kind, self._models[0] if model is None else model)

        def of_all() -> Figure:
            return self._draw(kind, self._models[0])

        method: Any = of_all if kind.per == "study" else of_model
        method.__name__ = method.__qualname__ = kind.name
        method.__doc__ = (
            f"{kind.title}{'' if kind.title.endswith('?') else '.'}\n\n{kind.axes}\n\nWhat to look for: {kind.look}"
        )
        if kind.per != "study":
            method.__doc__ += "\n\n`model`: of the reference, unless another one is named."
        return method

    def _draw(self, kind: FigureKind, model: str) -> Figure:
        kind.require_tables(self._results)
        models = getattr(self._results, "askers", self._models) if kind.asked else self._models
        if model not in models:
            raise InputError(
                f"{self._results.path}: no figure {kind.name} of {model}",
                given=model,
                wanted="one of " + ", ".join(models),
            )
        shown = kind.of(self._subject, model)
        if shown is None:
            raise kind.nothing(self._results)
        return shown.figure


def study_plots(store: Store) -> Plots:
    """`store.plot`."""
    return Plots(store, STUDY_KINDS, store.models)


def dynamics_plots(dynamics: Dynamics) -> Plots:
    """`dynamics.plot`."""
    return Plots(dynamics, DYNAMICS_KINDS, dynamics.seeds)


def diff_plots(diff: Diff) -> Plots:
    """`diff.plot`."""
    return Plots(diff, DIFF_KINDS, diff.models)


def neuron_plots(neuron: Neuron) -> Plots:
    """`store.neuron("L0.49").plot`."""
    return Plots(neuron.store, NEURON_KINDS, [neuron.model], neuron)
