"""The published code's running sums against NumPy's correlations in float64."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def sums_of():
    sys.path.insert(0, str(FOLDER))
    try:
        from authors_way import LayerPairSums
    finally:
        sys.path.remove(str(FOLDER))
    return LayerPairSums


def test_running_sums_give_the_highest_correlation_of_every_neuron(sums_of):
    layers, tokens, width = 2, 600, 5
    chance = np.random.default_rng(0)
    left = chance.normal(0.5, 1, (layers, tokens, width)).astype(np.float16)
    right = (left[::-1] + chance.normal(0, 1, left.shape)).astype(np.float16)
    left[0, :, 3] = 0  # dead
    sums = sums_of(layers, width)
    for start, end in ((0, 200), (200, 450), (450, 600)):
        sums.update(*(torch.from_numpy(values[:, start:end]) for values in (left, right)))
    x, y = (values.astype(np.float64).transpose(1, 0, 2).reshape(tokens, -1) for values in (left, right))
    with np.errstate(invalid="ignore"):
        rho = np.corrcoef(x.T, y.T)[: layers * width, layers * width :]
    wanted = np.where(np.isnan(rho).all(1), -np.inf, np.nan_to_num(rho, nan=-np.inf).max(1))
    np.testing.assert_allclose(sums.best().numpy(), wanted, atol=3e-3)  # its squares and results are float16
    assert np.isinf(wanted).sum() == 1
