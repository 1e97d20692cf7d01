"""Strings and ids that a model reads, against the Hugging Face model on ids made by the tokenizer itself."""

import numpy as np
import pytest
import torch
from conftest import CONTEXT, VOCABULARY, small_tokenizer, tiny_model, tiny_network

from universal_neurons.errors import ContextError, TokenizerError, TokenRangeError
from universal_neurons.models import Model

TEXT = "The miller had three sons."


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_string_is_read_behind_bos(model):
    tokenizer = small_tokenizer()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT)["input_ids"]]])
    with torch.no_grad():
        expected = model.hf(input_ids=ids).logits
    assert torch.equal(model.logits(TEXT), expected)
    assert torch.equal(model.activations(TEXT), model.activations(ids))
    for given in (ids, ids[0], ids.tolist(), ids[0].tolist(), ids.int(), ids.numpy()):
        assert torch.equal(model.logits(given), expected)


def test_rows_longer_than_the_context_are_named(model):
    assert model.logits(torch.ones(1, CONTEXT, dtype=torch.long)).shape == (1, CONTEXT, VOCABULARY)
    for given in (torch.ones(2, CONTEXT + 1, dtype=torch.long), [1] * (CONTEXT + 1), "word " * CONTEXT):
        for read in (model.logits, model.activations):
            with pytest.raises(ContextError, match=f"cannot read rows(.|\n)*at most {CONTEXT}"):
                read(given)


@pytest.mark.parametrize(
    "given",
    [
        torch.empty(1, 0, dtype=torch.long),
        [],
        [[1, 2], [3]],
        np.array([1.0, 2.0]),
        torch.ones(1, 3),
        torch.ones(1, 2, 3, dtype=torch.long),
        [VOCABULARY],
        [1, -1],
        torch.tensor(3),
    ],
    ids=str,
)
def test_what_are_no_ids_is_refused(model, given):
    for read in (model.logits, model.activations):
        with pytest.raises(TokenRangeError):
            read(given)


def test_a_string_needs_a_tokenizer():
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Model(tiny_network("gpt2"), "bare").logits(TEXT)
