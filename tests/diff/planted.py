"""A base and a fine-tune of it in which we know what became of some units of the last layer."""

import copy

import numpy as np
import torch
from conftest import small_tokenizer, tiny_network

from universal_neurons.models import Model
from universal_neurons.text import TokenDataset

LAYER, WIDTH, D_MODEL = 1, 48, 32  # plants in the last layer change no unit elsewhere
PLANTED = {
    "re-tuned": (0, 1, 2, 3),
    "moved": (4, 5, 6, 7),  # two swapped pairs
    "re-scaled": (8, 9, 10, 11),
    "died": (12, 13, 14, 15),  # two that are silent, two that write nothing
    "born": (16, 17),
    "copied": (19, 21),  # from the unit before
    "redirected": (24, 25, 26),
    "shifted": (30, 31, 32),  # where there is a bias
}
NEGATED = (40, 41)  # of gated models: the same function, the other sign


def network(family: str, width: int = WIDTH):
    sizes = {
        "gpt2": {"n_embd": D_MODEL, "n_inner": width},
        "opt": {"hidden_size": D_MODEL, "ffn_dim": width, "word_embed_proj_dim": D_MODEL},
        "llama": {"hidden_size": D_MODEL, "intermediate_size": width},
    }
    return tiny_network(family, 0, **sizes[family])


def named(made, name: str) -> Model:
    return Model(made, name, tokenizer=small_tokenizer())


def some_tokens(rows: int = 80) -> TokenDataset:
    chooser = np.random.default_rng(0)
    pieces = [("", chooser.integers(1, 1024, 63)) for _ in range(rows)]
    return TokenDataset.from_pieces(pieces, context=64, bos=0, masked=(0,))


class Unit:
    """One unit's weights in a network, to be read and set."""

    def __init__(self, model: Model, unit: int):
        self.readers = [model.part(LAYER, role) for role in (("w_in", "w_up") if model.gated else ("w_in",))]
        self.transposed = type(self.readers[0]).__name__ == "Conv1D"
        self.writer, self.unit = model.part(LAYER, "w_out"), unit

    def get(self):
        inputs = [m.weight[:, self.unit] if self.transposed else m.weight[self.unit] for m in self.readers]
        biases = [None if m.bias is None else m.bias[self.unit] for m in self.readers]
        out = self.writer.weight[self.unit] if self.transposed else self.writer.weight[:, self.unit]
        return [t if t is None else t.clone() for t in (*inputs, *biases, out)]

    def set(self, values):
        n = len(self.readers)
        for module, weight, bias in zip(self.readers, values[:n], values[n : 2 * n]):
            (module.weight[:, self.unit] if self.transposed else module.weight[self.unit]).copy_(weight)
            if bias is not None:
                module.bias[self.unit] = bias
        (self.writer.weight[self.unit] if self.transposed else self.writer.weight[:, self.unit]).copy_(values[-1])


def plant(base: Model, tuned: Model) -> None:
    """The changes of `PLANTED` in the last layer of two equal models; what is born was silent in the base."""
    chance = torch.Generator().manual_seed(1)

    def new(values):
        return [t if t is None else torch.randn(t.shape, generator=chance) * 0.3 for t in values]

    def silent(values):  # of gated ones the gate stays
        *inputs, out = values
        return [None if t is None else t if base.gated and place == 0 else t * 0 for place, t in enumerate(inputs)] + [
            out
        ]

    def both(unit):
        return Unit(base, unit), Unit(tuned, unit)

    for unit in PLANTED["re-tuned"]:
        Unit(tuned, unit).set(new(Unit(tuned, unit).get()))
    for left, right in ((4, 5), (6, 7)):
        one, other = Unit(tuned, left).get(), Unit(tuned, right).get()
        Unit(tuned, left).set(other)
        Unit(tuned, right).set(one)
    for unit in PLANTED["re-scaled"]:
        values = Unit(tuned, unit).get()
        scaled = (1,) if base.gated else range(len(values) - 1)
        Unit(tuned, unit).set(
            [t if t is None else t * 2 if n in scaled else t for n, t in enumerate(values[:-1])] + [values[-1] / 2]
        )
    for unit in PLANTED["died"][:2]:
        Unit(tuned, unit).set(silent(Unit(tuned, unit).get()))
    for unit in PLANTED["died"][2:]:
        values = Unit(tuned, unit).get()
        Unit(tuned, unit).set([*values[:-1], values[-1] * 0])
    for unit in PLANTED["born"]:
        Unit(base, unit).set(silent(Unit(base, unit).get()))
    for unit in PLANTED["copied"]:
        Unit(tuned, unit).set(Unit(tuned, unit - 1).get())
    for unit in PLANTED["redirected"]:
        values = Unit(tuned, unit).get()
        Unit(tuned, unit).set([*values[:-1], new(values[-1:])[0]])
    for unit in PLANTED["shifted"] if not base.gated else ():
        values = Unit(tuned, unit).get()
        values[1] = values[1] + 0.5
        Unit(tuned, unit).set(values)
    for unit in NEGATED if base.gated else ():
        gate, up, *biases, out = Unit(tuned, unit).get()
        Unit(tuned, unit).set([gate, -up, *biases, -out])


def planted_pair(family: str) -> tuple[Model, Model]:
    made = network(family)
    base, tuned = named(made, "base"), named(copy.deepcopy(made), "tuned")
    plant(base, tuned)
    return base, tuned


def drifted(base: Model, name: str, seed: int, size: float = 0.02) -> Model:
    """A fine-tune as chance makes one: every weight has moved a little."""
    made = copy.deepcopy(base.hf)
    chance = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=chance))
    return named(made, name)
