"""Pooling against float64 NumPy; positions of one token take no product."""

import numpy as np
import pytest
import torch

from universal_neurons.features import Pooling
from universal_neurons.features import pooling as module

VALUES = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
SPANS = [[1], [2, 3], [5, 6, 9], [11], [20, 21, 22, 23]]
BY_NUMPY = {"mean": lambda v: v.mean(0), "last": lambda v: v[-1], "max": lambda v: v.max(0)}


def pooling(kind, spans=SPANS):
    return Pooling(
        kind,
        torch.tensor([token for span in spans for token in span]),
        torch.tensor(np.cumsum([len(s) for s in spans])),
        len(VALUES),
    )


@pytest.mark.parametrize("kind", BY_NUMPY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_numpy(kind, dtype):
    values = VALUES.to(dtype)
    found = pooling(kind).take(values)
    assert found.dtype == dtype
    expected = np.stack([BY_NUMPY[kind](values.double().numpy()[span]) for span in SPANS])
    np.testing.assert_allclose(found.double(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("kind", BY_NUMPY)
def test_tokens_that_are_their_own_span_are_taken_as_they_are(kind, monkeypatch):
    monkeypatch.setattr(module, "sparse_rows", None)  # no product
    monkeypatch.setattr(torch, "segment_reduce", None)
    alone = pooling(kind, [[3], [7], [8]])
    assert torch.equal(alone.take(VALUES), VALUES[[3, 7, 8]])
