"""Untrained networks: the model's own class and configuration, its own initialiser, the same weights under the same seed."""

import pytest
import torch
from conftest import FAMILIES, model_on, tiny_model, tiny_network
from transformers import AutoModelForCausalLM

from universal_neurons.errors import ArchitectureError
from universal_neurons.models import Model, require_initialiser, untrained_model, verify


def weights(model):
    return dict(model.hf.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_is_a_network_of_the_same_kind(family):
    model = tiny_model(family)
    one, same, other = (untrained_model(model, seed) for seed in (1, 1, 2))
    assert type(one.hf) is type(model.hf)
    assert one.hf is not model.hf
    assert one.units == model.units
    assert one.digest == same.digest != other.digest
    assert model.digest not in (one.digest, other.digest)
    for name, parameter in weights(model).items():
        torch.testing.assert_close(weights(one)[name], weights(same)[name], rtol=0, atol=0)
        assert weights(one)[name].shape == parameter.shape
        assert weights(one)[name].dtype == parameter.dtype
        assert not weights(one)[name].requires_grad
    assert verify(one) < 1e-4
    assert not one.hf.training


def test_weights_are_those_of_the_initialiser():
    """What `transformers` itself makes of the configuration under this seed: deviation 0.3, biases 0, norms 1."""
    trained = tiny_model(n_embd=32, n_inner=512)
    model = untrained_model(trained, 7)
    w_in = model.part(0, "w_in")
    assert float(w_in.weight.std()) == pytest.approx(0.3, rel=0.05)
    assert not w_in.bias.any()
    assert (model.part(0, "mlp_norm").weight == 1).all()
    torch.manual_seed(7)
    expected = AutoModelForCausalLM.from_config(trained.hf.config)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(weights(model)[name], parameter.detach(), rtol=0, atol=0)


def test_nobody_else_draws_other_numbers_and_the_seed_alone_decides():
    model = tiny_model()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    digest = untrained_model(model, 11).digest
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)
    torch.rand(100)
    assert untrained_model(model, 11).digest == digest


def test_it_has_the_models_precision_and_its_buffers_theirs():
    network = tiny_network("llama")
    halved = Model(network.to(torch.bfloat16), "half")
    made = untrained_model(halved, 0)
    assert made.dtype == torch.bfloat16
    there = dict(halved.hf.named_buffers())
    assert {name: buffer.dtype for name, buffer in made.hf.named_buffers()} == {n: b.dtype for n, b in there.items()}
    single = untrained_model(tiny_model("llama"), 0)
    torch.testing.assert_close(made.part(0, "w_in").weight, single.part(0, "w_in").weight.bfloat16(), rtol=0, atol=0)


def test_a_model_without_a_head_has_an_untrained_one_without():
    network = tiny_network("gpt2")
    network.lm_head = None
    assert not untrained_model(Model(network, "headless"), 0).has_unembedding


def test_what_has_no_initialiser_is_refused():
    class Odd(torch.nn.Module):
        def __init__(self, like):
            super().__init__()
            self.config, self.transformer, self.lm_head = like.config, like.transformer, like.lm_head

        def get_input_embeddings(self):
            return self.transformer.wte

    odd = Model(Odd(tiny_network("gpt2")), "odd")
    for refused in (require_initialiser, lambda model: untrained_model(model, 0)):
        with pytest.raises(ArchitectureError, match="odd: no untrained network"):
            refused(odd)


@pytest.mark.cuda
def test_the_device_does_not_decide_the_weights(device):
    made = untrained_model(model_on(device), 5)
    assert made.device.type == torch.device(device).type
    assert made.digest == untrained_model(tiny_model(), 5).digest
