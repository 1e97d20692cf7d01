"""ρ of mid-ranks against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from universal_neurons.matching import RankMoments, RankTable
from universal_neurons.statistics import Batch, Block, Key

GENERATOR = torch.Generator().manual_seed(0)


def seen(values, sample=None, **settings):
    """The rank table of values, and their ranks by it."""
    table = RankTable.of(values if sample is None else sample, **settings)
    return table, table.rank(values.T.contiguous(), slice(None)).T


def test_few_distinct_values_have_their_mid_ranks_exactly():
    values = torch.randint(0, 20, (500, 7), generator=GENERATOR).float()
    values[:, 6] = 3
    _, ranks = seen(values)
    expected = (stats.rankdata(values.numpy(), axis=0) - 0.5) / 500
    np.testing.assert_allclose(ranks.numpy(), expected, atol=1e-6)


def test_classes_hold_as_many_distinct_values_and_zeros_tie():
    """Three quarters of a rectified neuron's values are 0: one class, of mid-rank 3/8 with its few small companions."""
    values = (torch.randn(4096, 1, generator=GENERATOR) - 0.6745).relu()
    table, ranks = seen(values)
    assert table.ends.shape == (1, 64)
    zero = float((values == 0).float().mean())
    assert abs(float(ranks[values == 0][0]) - zero / 2) < 0.01
    assert len(ranks.unique()) == 64
    assert float(ranks.mean()) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("power", [1, 2])
def test_against_spearman(power):
    """Two models' rectified neurons, whatever is done to their scale."""
    common = torch.randn(6000, 4, generator=GENERATOR)
    a = (common + torch.randn(6000, 4, generator=GENERATOR)).relu() ** power
    b = (common + torch.randn(6000, 4, generator=GENERATOR)).relu() ** (2 * power)
    matches = torch.tensor([[2, 0, -1, 3], [0, 1, -1, 2]])
    others = {"b": b, "c": a}
    tables = [RankTable.of(values[:4096]) for values in (a, *others.values())]
    moments = RankMoments("a", tuple(others), matches, tables)
    for part in torch.arange(6000).split(1700):
        moments.update(Batch({Key("a"): Block(a[part])} | {Key(name): Block(v[part]) for name, v in others.items()}))
    found = moments.result()
    for model, values in enumerate(others.values()):
        for neuron, match in enumerate(matches[model].tolist()):
            if match < 0:
                assert np.isnan(found[model, neuron])
            else:
                expected = stats.spearmanr(a[:, neuron], values[:, match]).statistic
                assert found[model, neuron] == pytest.approx(expected, abs=0.005)
    assert found[1, 0] == pytest.approx(1)


def test_values_outside_the_sample_have_the_ranks_of_its_ends():
    table = RankTable.of(torch.arange(10.0)[:, None])
    ranks = table.rank(torch.tensor([[-5.0, 0.0, 9.0, 50.0]]), slice(None))
    np.testing.assert_allclose(ranks.numpy(), [[0, 0.05, 0.95, 0.95]], atol=1e-6)
