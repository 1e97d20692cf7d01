"""What is read at every place of every family, against the model's own outputs and sums and products of its weights."""

import pytest
import torch
from conftest import MIXTURES, tiny_model
from tiny_types import KINDS, model_of

from universal_neurons.errors import ArchitectureError, ConfigError
from universal_neurons.models import PLACE_KINDS, Place, captured, projection, width_of
from universal_neurons.models.norms import Norm
from universal_neurons.models.parts import module_at

IDS = torch.arange(1, 25).view(2, 12) * 7
ATTENTION = torch.ones_like(IDS)


def model_named(name):
    return model_of(name) if name in KINDS else tiny_model(name)


def lacking(name: str) -> set[str]:
    of_norms = {"mlp_normed"} if name in KINDS and KINDS[name].norm == "none" else set()
    return of_norms | ({"residual_mid"} if is_parallel(name) else set())


def is_parallel(name: str) -> bool:
    return name in KINDS and KINDS[name].parallel


def close(found, expected) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [*KINDS, *MIXTURES])
def test_the_stream_is_what_the_model_says_and_the_sum_of_what_is_added(name):
    model = model_named(name)
    kinds = [kind for kind in PLACE_KINDS if kind not in lacking(name)]
    places = [Place(kind, layer) for kind in kinds for layer in range(model.n_layers)]
    with captured(model, places) as values, torch.no_grad():
        states = model.hf.base_model(input_ids=IDS, attention_mask=ATTENTION, output_hidden_states=True).hidden_states
    post = name in KINDS and KINDS[name].norm == "post"
    for layer in range(model.n_layers):
        at = {kind: values[Place(kind, layer)] for kind in kinds}
        assert {kind: value.shape for kind, value in at.items()} == {
            kind: (*IDS.shape, width_of(model, Place(kind, layer))) for kind in kinds
        }
        if states[layer].shape == at["residual_in"].shape:
            close(at["residual_in"], states[layer])
        if layer + 1 < model.n_layers:  # the last one is given after the final norm
            close(at["residual_out"], values[Place("residual_in", layer + 1)])
        if not post:
            close(at["residual_out"], at["residual_in"] + at["attention_out"] + at["mlp_out"])
        if not post and not is_parallel(name):
            close(at["residual_mid"], at["residual_in"] + at["attention_out"])
        if post and module_at(model.blocks[layer], "output.LayerNorm") is not None:
            norm = module_at(model.blocks[layer], "output.LayerNorm")
            close(at["residual_out"], norm(at["residual_mid"] + at["mlp_out"]))


@pytest.mark.parametrize("name", [name for name in KINDS if not KINDS[name].out_norm])
def test_projections_and_norms_make_of_one_place_the_next(name):
    model, layer = model_named(name), 1
    row, block = model.architecture, model.blocks[layer]
    with captured(
        model, [Place(kind, layer) for kind in PLACE_KINDS if kind not in {"residual_mid"} | lacking(name)]
    ) as values:
        model.forward(IDS, ATTENTION if not row.causal else None)
    heads = module_at(block, row.heads_out)
    close(
        values[Place("attention_out", layer)],
        heads(values[Place("attention_heads", layer)]) * model.residual_multiplier,
    )
    weight, bias = projection(model, layer, "w_out")
    written = (values[Place("neurons", layer)].double() @ weight.T + bias) * model.residual_multiplier
    close(values[Place("mlp_out", layer)], written)
    if row.causal:
        assert torch.equal(values[Place("neurons", layer)], model.activations(IDS)[..., model.units.columns(layer)])
    if row.mlp_norm and not row.post_norm:
        stream = values[Place("residual_in", layer)]
        if not is_parallel(name):
            stream = stream + values[Place("attention_out", layer)]
        norm = model.part(layer, "mlp_norm")
        close(values[Place("mlp_in", layer)], Norm(norm, row, stream.double(), torch.float64)(stream.double()))
        gain = norm.weight + row.gain_offset if row.norm == "rms" else torch.ones(())
        close(values[Place("mlp_normed", layer)] * gain, values[Place("mlp_in", layer)])


def hooks_of(model) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.hf.modules())


def test_a_place_that_is_not_there_is_refused_by_name():
    parallel = model_of("gpt_neox")
    hooks = hooks_of(parallel)
    with (
        pytest.raises(ArchitectureError, match="gpt_neox has no residual_mid of block 0"),
        captured(parallel, [Place("mlp_in", 0), Place("residual_mid", 0)]),
    ):
        pass
    width_of(model_of("gpt_neox, sequential"), Place("residual_mid", 0))
    with pytest.raises(ConfigError, match="no mlp_in of block 2") as refusal:
        width_of(parallel, Place("mlp_in", 2))
    assert "from 0 to 1" in refusal.value.wanted
    assert hooks_of(parallel) == hooks  # those before the refused place are taken away too
