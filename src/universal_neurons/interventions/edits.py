"""Change neurons while a model runs (paper §5): context managers on its own forward pass.

    with intervene(model, ["L3.17"], Edit("fix", 6.0)):
        logits = model.logits(ids)

Each says what it hooked by asserting it, and leaves no hook behind, whatever happens inside.  Removing one neuron's
direct path into one head's query is `paths.without_path`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from universal_neurons.errors import ConfigError
from universal_neurons.models import Model, hooked
from universal_neurons.units import parse_unit, unit_name

Kind = Literal["zero", "relu", "mean", "threshold", "multiply", "fix"]
VALUELESS = ("zero", "relu")
Neurons = str | Sequence[int] | Sequence[str] | Tensor


@dataclass(frozen=True)
class Edit:
    """What becomes of an activation a.

    zero: 0; relu: max(a, 0); mean, fix: the value; threshold: min(a, value); multiply: a · value.  `value` is one
    number, or one per neuron; `mean` without one is for `ablate`, which takes it from a study.  `orientation`, 1 or −1
    per neuron, says what a is: the activation times it.  Raises `ConfigError` where a value is missing or not used.
    """

    kind: Kind
    value: float | Float[Tensor, " neurons"] | None = None
    orientation: Float[Tensor, " neurons"] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError("no such intervention", given=self.kind, wanted=", ".join(get_args(Kind)))
        if (self.value is None) != (self.kind in VALUELESS) and not self.lacks_mean:
            wanted = "no value" if self.kind in VALUELESS else "a value"
            raise ConfigError(f"intervention {self.kind}", given=self.value, wanted=wanted)

    @property
    def lacks_mean(self) -> bool:
        """Whether it is a mean ablation that does not know the mean."""
        return self.kind == "mean" and self.value is None

    def __call__(self, activation: Float[Tensor, "*positions neurons"]) -> Float[Tensor, "*positions neurons"]:
        """The activations after the edit, in the shape of those before."""
        if self.orientation is None:
            return self._edited(activation)
        signs = self.orientation.to(activation)
        return self._edited(activation * signs) * signs

    def of(self, places: Sequence[int]) -> "Edit":
        """The same for some of its neurons."""

        def some(values: Any) -> Any:
            return values[list(places)] if isinstance(values, Tensor) and values.dim() else values

        return Edit(self.kind, some(self.value), some(self.orientation))

    def _edited(self, activation: Float[Tensor, "*positions neurons"]) -> Float[Tensor, "*positions neurons"]:
        if self.kind == "zero":
            return torch.zeros_like(activation)
        if self.kind == "relu":
            return activation.relu()
        if self.lacks_mean:
            raise _meanless()
        value = torch.as_tensor(self.value).to(activation)
        if self.kind == "threshold":
            return activation.minimum(value.expand_as(activation))
        return activation * value if self.kind == "multiply" else value.expand_as(activation).clone()


def _meanless() -> ConfigError:
    return ConfigError(
        "intervention mean has no value",
        given="an edit without one, and no study",
        wanted="the mean of each neuron's activation (not of its pre-activation)",
        fix='un.ablate(model, store, neurons), or un.Edit("mean", value) with `activation_mean` of store.neurons',
    )


def as_edit(given: Edit | str) -> Edit:
    """An edit, also from its kind alone (`zero`, `relu`); else `ConfigError`."""
    if isinstance(given, Edit):
        return given
    if not isinstance(given, str):
        wanted = 'an un.Edit, such as un.Edit("fix", 2.0), or "zero" or "relu"'
        raise ConfigError("not an intervention", given=type(given).__name__, wanted=wanted)
    return Edit(cast(Kind, given))


def flat_numbers(model: Model, neurons: Neurons) -> list[int]:
    """Neurons as numbers; names are `L3.17`, or `seed-1/L3.17` of the model of that name.

    One name alone is one neuron.  Raises `ConfigError` where there is none such.
    """
    if not model.of_neurons:
        raise ConfigError(
            f"{model.name}: its units are no neurons",
            wanted="a model, whose neurons are edited",
            fix="intervene on its model's neurons",
        )
    numbers = []
    units = model.units
    named = [neurons] if isinstance(neurons, str) else neurons
    listed = named.tolist() if isinstance(named, Tensor) else named
    for neuron in listed:
        place = _place_of_name(neuron, model.name) if isinstance(neuron, str) else None
        if not (units.has(*place) if place else 0 <= int(neuron) < len(units)):
            raise ConfigError(f"{model.name} has no such neuron", given=neuron, wanted=units.range_said)
        numbers.append(units.number_of(*place) if place else int(neuron))
    if len(set(numbers)) < len(numbers) or not numbers:
        raise ConfigError("neurons to intervene on", given=list(neurons), wanted="some, each once")
    return numbers


def _place_of_name(name: str, model: str) -> tuple[int, int]:
    """Layer and neuron of `L3.17`, or of `seed-1/L3.17` where the model is seed-1."""
    parsed = parse_unit(name)
    if parsed is None:
        wanted = f"a layer and a neuron, such as L3.17 or {model}/L3.17"
        raise ConfigError("not a neuron's name", given=name, wanted=wanted)
    if parsed[0] not in (None, model):
        raise ConfigError(
            f"a neuron of another model than {model}",
            given=name,
            wanted=f"{unit_name(*parsed[1:])} or {unit_name(*parsed[1:], model)}",
            fix=f"intervene on {parsed[0]}, or name it by layer and neuron alone",
        )
    return parsed[1:]


@contextlib.contextmanager
def intervene(
    model: Model,
    neurons: Neurons,
    edit: Edit | str,
    positions: Bool[Tensor, "*rows context"] | None = None,
) -> Iterator[None]:
    """While open, every forward pass has these neurons' activations edited, at all positions or where `positions` is
    true (of a row, or of every row).

    `neurons` are numbers or names (`L3.17`, `seed-1/L3.17`); an edit that needs no value may be its kind ("zero").
    Raises `ConfigError` for neurons that are not there, twice there, or values that are not one per neuron.
    """
    edit = as_edit(edit)
    if edit.lacks_mean:
        raise _meanless()
    numbers = flat_numbers(model, neurons)
    for values in (edit.value, edit.orientation):
        if isinstance(values, Tensor) and values.dim() and values.shape != (len(numbers),):
            raise ConfigError("values of an intervention", given=tuple(values.shape), wanted=f"one, or {len(numbers)}")
    by_layer = model.units.by_layer(numbers)
    calls = dict.fromkeys(by_layer, 0)
    place = {number: place for place, number in enumerate(numbers)}

    def edited(layer: int, in_layer: list[int]) -> Any:
        columns = torch.tensor(model.units.within_layers(in_layer))
        width = model.units.widths[layer]
        layer_edit = edit.of([place[number] for number in in_layer])

        def hook(activation: Tensor) -> Tensor:
            assert activation.shape[-1] == width, "hooked something that is not the output projection"
            calls[layer] += 1
            flat = activation.reshape(-1, width).clone()
            edited_columns = columns.to(flat.device)
            before = flat[:, edited_columns]
            after = layer_edit(before)
            if positions is not None:
                edited_positions = positions.to(flat.device).reshape(-1)
                context = activation.shape[1] if activation.dim() == 3 else positions.shape[-1]  # OPT's reads no rows
                rows = len(flat) // context if positions.dim() == 1 else 1
                fits = positions.shape[-1] == context and len(edited_positions) * rows == len(flat)
                assert fits, "positions of other rows than the model reads"
                after = torch.where(edited_positions.repeat(rows)[:, None], after, before)
            flat[:, edited_columns] = after
            return flat.view_as(activation)

        return hook

    handles = [model.read(layer, edited(layer, in_layer)) for layer, in_layer in by_layer.items()]
    with hooked(handles):
        yield
        assert len(set(calls.values())) == 1, "not every layer was run"


def repeated(value: Any, rows: int, copies: int) -> Any:
    """Nested arguments of a module for so many copies of a batch: tensors with a row each are repeated, others kept."""
    if isinstance(value, Tensor):
        per_row = value.dim() > 1 and len(value) == rows
        return value.repeat(copies, *[1] * (value.dim() - 1)) if per_row else value
    if isinstance(value, dict):
        return {key: _repeated_argument(key, part, rows, copies) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(repeated(part, rows, copies) for part in value)
    return value


def _repeated_argument(name: str, value: Any, rows: int, copies: int) -> Any:
    """One named argument: biases by position are of every row and head (BLOOM, Falcon) or of the heads alone (MPT)."""
    if name == "alibi" and isinstance(value, Tensor):
        return value.repeat(copies, *[1] * (value.dim() - 1))
    return value if name == "position_bias" else repeated(value, rows, copies)
