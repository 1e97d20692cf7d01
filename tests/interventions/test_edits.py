"""Changing neurons while a model runs, against forward passes written out by hand and hooks on the MLPs."""

import functools

import pytest
import torch
from conftest import FAMILIES, tiny_network
from hand_written import run

from universal_neurons.errors import ConfigError
from universal_neurons.interventions import Edit, FinalNorm, final_residual, flat_numbers, frozen_norm, intervene
from universal_neurons.models import Model, module_at

IDS = torch.arange(1, 37).view(3, 12) * 11
NEURONS = ["L1.3", "L0.7", "L1.20"]
VALUES = torch.tensor([-0.7, 0.4, 2.5])
WRITTEN = {
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt_neox sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "llama": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
}
EDITS = [
    Edit("zero"),
    Edit("relu"),
    *(Edit(kind, value) for kind in ("mean", "threshold", "multiply", "fix") for value in (0.3, VALUES)),
]
MASKS = {
    "everywhere": None,
    "some of every row": torch.arange(12) % 3 == 1,
    "some of each row": torch.arange(36).view(3, 12) % 5 < 2,
}


@functools.cache
def written(which: str) -> Model:
    family, changes = WRITTEN[which]
    return Model(tiny_network(family, **changes), which)


@functools.cache
def any_model(family: str) -> Model:
    return Model(tiny_network(family), family)


def by_hand(kind: str, before: torch.Tensor, value: float) -> torch.Tensor:
    return {
        "zero": 0 * before,
        "relu": torch.where(before > 0, before, 0.0),
        "mean": torch.full_like(before, value),
        "fix": torch.full_like(before, value),
        "threshold": torch.where(before > value, value, before),
        "multiply": before * value,
    }[kind]


def change_by_hand(edit: Edit, mask: torch.Tensor | None):
    values = torch.zeros(3) if edit.value is None else torch.as_tensor(edit.value).expand(3)
    where = torch.ones(3, 12, dtype=torch.bool) if mask is None else mask.expand(3, 12)

    def change(layer: int, activation: torch.Tensor) -> torch.Tensor:
        changed = activation.clone()
        for name, value in zip(NEURONS, values.tolist()):
            own, neuron = (int(part) for part in name[1:].split("."))
            if own == layer:
                after = by_hand(edit.kind, activation[..., neuron], value)
                changed[..., neuron] = torch.where(where, after, activation[..., neuron])
        return changed

    return change


def hooks(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((found.double() - expected.double()).abs().max() / expected.abs().max()) <= tolerance


@pytest.mark.parametrize("which", WRITTEN)
def test_the_forward_passes_written_by_hand_are_the_models(which):
    model = written(which)
    expected = run(model.hf, IDS)
    assert same(model.logits(IDS), expected.logits)
    assert same(model.activations(IDS), torch.cat(expected.activations, -1))


@pytest.mark.parametrize("which", WRITTEN)
@pytest.mark.parametrize("mask", MASKS)
def test_every_edit_is_the_same_edit_in_the_pass_written_by_hand(which, mask):
    model, clean = written(which), written(which).logits(IDS)
    for edit in EDITS:
        with intervene(model, NEURONS, edit, MASKS[mask]):
            found = model.logits(IDS)
        assert same(found, run(model.hf, IDS, change_by_hand(edit, MASKS[mask])).logits), edit
        assert not same(found, clean), edit
        assert not hooks(model)


def test_names_and_flat_numbers_name_the_same_neurons():
    model = written("gpt2")
    numbers = [24 + 3, 7, 24 + 20]
    assert flat_numbers(model, NEURONS) == flat_numbers(model, torch.tensor(numbers)) == numbers
    found = []
    for neurons in (NEURONS, numbers, torch.tensor(numbers)):
        with intervene(model, neurons, Edit("fix", VALUES)):
            found.append(model.logits(IDS))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_interventions_within_interventions():
    model = written("gpt2")
    with intervene(model, ["L0.7"], Edit("fix", 1.0)), intervene(model, ["L0.7"], Edit("multiply", 3.0)):
        found = model.logits(IDS)
    with intervene(model, ["L0.7"], Edit("fix", 3.0)):
        torch.testing.assert_close(found, model.logits(IDS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neurons_own_activation_changes_nothing(family):
    model = any_model(family)
    clean, activation = model.logits(IDS), model.activations(IDS)[1, 7, 24 + 5]
    here = torch.zeros(3, 12, dtype=torch.bool)
    here[1, 7] = True
    with intervene(model, ["L1.5"], Edit("fix", float(activation)), here):
        assert same(model.logits(IDS), clean, 1e-6)
    with intervene(model, range(48), Edit("multiply", 1.0)):
        assert same(model.logits(IDS), clean, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_zero_takes_what_the_neuron_writes_from_what_the_mlp_adds(family, layer):
    model = any_model(family)
    block = model.blocks[layer]
    mlp = {"opt": "fc2", "bert": "output.dense"}.get(family, "mlp")
    activation = model.activations(IDS)[..., layer * 24 + 5]
    with torch.no_grad():
        weight = module_at(block, model.architecture.w_out).weight
        written_by_it = weight[5] if family == "gpt2" else weight[:, 5]
    handle = module_at(block, mlp).register_forward_hook(
        lambda _m, _a, out: out - (activation[..., None] * written_by_it).view_as(out)
    )
    expected = model.logits(IDS)
    handle.remove()
    with intervene(model, [f"L{layer}.5"], Edit("zero")):
        found = model.logits(IDS)
    assert same(found, expected)
    assert not same(found, model.logits(IDS), 1e-4)


@pytest.mark.parametrize("which", WRITTEN)
def test_a_frozen_norm_divides_by_the_scale_it_is_given(which):
    model = written(which)
    scale = 0.5 + torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    change = change_by_hand(EDITS[-1], None)
    with frozen_norm(model, scale):
        found = model.logits(IDS)
        with intervene(model, NEURONS, EDITS[-1]):
            both = model.logits(IDS)
    assert same(found, run(model.hf, IDS, scale=scale.double()).logits)
    assert same(both, run(model.hf, IDS, change, scale.double()).logits)
    own = run(model.hf, IDS).scale
    assert same(FinalNorm(model).scale(run(model.hf, IDS).residual.float()), own, 1e-6)
    with frozen_norm(model, own.float()):
        assert same(model.logits(IDS), run(model.hf, IDS).logits)
    assert not hooks(model)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
def test_freezing_the_norm_at_the_runs_own_scale_changes_nothing(family):
    model = any_model(family)
    with final_residual(model) as seen:
        clean = model.logits(IDS)
    x = seen[0].double()
    if model.architecture.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    epsilon = 1e-6 if family in ("llama", "mistral", "qwen2", "qwen3", "smollm3") else 1e-5
    with frozen_norm(model, (x.square().mean(-1) + epsilon).sqrt().float()):
        assert same(model.logits(IDS), clean, 1e-5)


def test_the_final_residual_is_what_the_final_norm_reads():
    model = written("gpt_neox")
    with final_residual(model) as seen:
        model.forward(IDS)
        model.forward(IDS[:1])
    assert [len(one) for one in seen] == [3, 1]
    assert same(seen[0], run(model.hf, IDS).residual)


OPENED = {
    "intervene": lambda model: intervene(model, NEURONS, Edit("zero")),
    "final_residual": final_residual,
    "frozen_norm": lambda model: frozen_norm(model, torch.ones(3, 12)),
}


@pytest.mark.parametrize("which", OPENED)
def test_no_hook_is_left_whatever_happens(which):
    model = written("gpt2")
    clean = model.logits(IDS)
    with OPENED[which](model):
        assert hooks(model)
    assert not hooks(model)
    with pytest.raises(IndexError), OPENED[which](model):
        model.forward(torch.full((3, 12), 5000))
    assert not hooks(model)
    with pytest.raises(KeyError, match="inside"), OPENED[which](model):
        raise KeyError("inside")
    assert not hooks(model)
    assert torch.equal(model.logits(IDS), clean)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_of_other_rows_are_refused(family):
    model = any_model(family)
    masks = [torch.ones(7, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool), torch.ones(1, 12, dtype=torch.bool)]
    if family == "gpt2":  # OPT's MLP reads positions without rows
        masks.append(torch.ones(6, dtype=torch.bool))
    for mask in masks:
        with pytest.raises(AssertionError), intervene(model, ["L0.1"], Edit("zero"), mask):
            model.forward(IDS)
        assert not hooks(model)
    with pytest.raises(AssertionError), frozen_norm(model, torch.ones(2, 12)):
        model.forward(IDS)
    assert not hooks(model)


@pytest.mark.parametrize(
    "neurons",
    [
        ["L2.0"],
        ["L0.24"],
        [48],
        [-1],
        [],
        ["L0.1", "L0.1"],
        ["L0.1", "L1.0", "L0.1"],
        [3, 3],
        ["L0"],
        ["0.1"],
        ["7"],
        ["m/L0.1"],
        ["L٠.١"],
        [f"L0.{'9' * 5000}"],
    ],
)
def test_neurons_that_are_not_there_or_twice_there_are_refused(neurons):
    model = written("gpt2")
    with pytest.raises(ConfigError), intervene(model, neurons, Edit("zero")):
        pass
    assert not hooks(model)


def test_a_mean_without_a_value_says_where_to_get_it():
    model = written("gpt2")
    for edit in (Edit("mean"), "mean"):
        with pytest.raises(ConfigError, match=r"un\.ablate\(model, store, neurons\)"), intervene(model, ["L0.7"], edit):
            pass
    with pytest.raises(ConfigError, match="no value"):
        Edit("mean")(torch.zeros(3, 1))


def test_an_edit_may_be_its_kind_where_it_needs_no_value():
    model = written("gpt2")
    for kind in ("zero", "relu"):
        with intervene(model, NEURONS, Edit(kind)):
            expected = model.logits(IDS)
        with intervene(model, NEURONS, kind):
            assert torch.equal(model.logits(IDS), expected)
    with pytest.raises(ConfigError, match="intervention fix"), intervene(model, NEURONS, "fix"):
        pass
    assert not hooks(model)


def test_names_may_name_the_model():
    model = written("gpt2")
    assert flat_numbers(model, ["gpt2/L1.3", "L0.7"]) == [27, 7]
    assert flat_numbers(model, "gpt2/L1.3") == flat_numbers(model, "L1.3") == [27]
    with pytest.raises(ConfigError, match=r"another model than gpt2(.|\n)*L1.3 or gpt2/L1.3"):
        flat_numbers(model, ["seed-1/L1.3"])


def test_a_value_for_every_neuron_or_one():
    model = written("gpt2")
    for values in (VALUES[:2], VALUES[:1], torch.cat([VALUES, VALUES])):
        with pytest.raises(ConfigError, match="values"), intervene(model, NEURONS, Edit("fix", values)):
            pass
    assert not hooks(model)


def test_edits_that_say_too_little_or_too_much_are_refused():
    edit = Edit("fix", 1.0)
    object.__setattr__(edit, "kind", "remove")  # the tests' type checker would refuse it before the check did
    with pytest.raises(ConfigError, match="no such intervention"):
        edit.__post_init__()
    for kind in ("threshold", "multiply", "fix"):
        with pytest.raises(ConfigError, match=kind):
            Edit(kind)
    for kind in ("zero", "relu"):
        with pytest.raises(ConfigError, match=kind):
            Edit(kind, 0.0)


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_oriented_edit_is_one_of_the_negated_neuron(edit):
    """Of a neuron whose w_up and w_out are negated, an edit of the activation times −1 does what it did before."""
    plain, negated = Model(tiny_network("llama"), "plain"), Model(tiny_network("llama"), "negated")
    signs = torch.tensor([1.0, -1.0, -1.0])
    for name, sign in zip(NEURONS, signs):
        layer, neuron = (int(part) for part in name[1:].split("."))
        mlp = negated.blocks[layer].mlp
        mlp.up_proj.weight[neuron] *= sign
        mlp.down_proj.weight[:, neuron] *= sign
    oriented = Edit(edit.kind, edit.value, signs)
    ids = torch.arange(24).view(2, 12)
    with intervene(plain, NEURONS, edit):
        expected = plain.logits(ids)
    with intervene(negated, NEURONS, oriented):
        found = negated.logits(ids)
    assert torch.equal(found, expected)
    assert not same(found, plain.logits(ids))


def test_an_orientation_is_one_per_neuron():
    with (
        pytest.raises(ConfigError, match="values of an intervention"),
        intervene(any_model("llama"), NEURONS, Edit("zero", None, torch.ones(2))),
    ):
        pass
