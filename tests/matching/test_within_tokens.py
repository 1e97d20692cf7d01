"""ρ within single tokens against pandas-free float64 NumPy, and planted truth."""

import numpy as np
import torch
from test_correlation import some_tokens

from universal_neurons.matching import FrequentTokens, WithinTokens
from universal_neurons.statistics import BY_TOKEN, Batch, Block, GroupMeans, Key

GENERATOR = torch.Generator().manual_seed(0)


def within(a, b, match, number, tokens):
    """ρ by the accumulators, in two batches."""
    pair, sums = (
        WithinTokens("a", "b", match, tokens),
        {name: GroupMeans(name, BY_TOKEN, tokens + 1, values.shape[1]) for name, values in (("a", a), ("b", b))},
    )
    for part in torch.arange(len(a)).split(len(a) // 2 + 1):
        batch = Batch({Key("a"): Block(a[part]), Key("b"): Block(b[part])}, index={BY_TOKEN: number[part]})
        for accumulator in (pair, *sums.values()):
            accumulator.update(batch)
    return pair.corr(sums["a"].result(), sums["b"].result())


def test_against_numpy():
    number = torch.randint(0, 9, (600,), generator=GENERATOR)
    a, b = torch.randn(2, 600, 3, generator=GENERATOR) + number[:, None] - 4
    b[:, 1] += a[:, 2]
    found = within(a, b, torch.tensor([0, 2, 1]), number.clamp_max(7), 7)
    for neuron, match in enumerate((0, 2, 1)):
        x, y = a[:, neuron].double().numpy(), b[:, match].double().numpy()
        rest = [(x[number == t] - x[number == t].mean(), y[number == t] - y[number == t].mean()) for t in range(7)]
        dx, dy = (np.concatenate(parts) for parts in zip(*rest))
        np.testing.assert_allclose(found[neuron], (dx @ dy) / np.sqrt((dx @ dx) * (dy @ dy)), atol=3e-6)


def test_neurons_of_one_word_have_nothing_left_within_it():
    """Two neurons that are functions of the token alone correlate 1, and within tokens not at all."""
    number = torch.randint(0, 5, (400,), generator=GENERATOR)
    of_token = torch.tensor([0.0, 1, 4, 9, 25])[number][:, None]
    noise = torch.randn(2, 400, 1, generator=GENERATOR)
    assert np.isnan(within(of_token, of_token, torch.tensor([0]), number, 5)).all()
    left, right = of_token + noise[0], of_token + noise[1]
    assert np.corrcoef(left[:, 0], right[:, 0])[0, 1] > 0.9
    assert abs(within(left, right, torch.tensor([0]), number, 5)[0]) < 0.15


def test_the_frequent_tokens_are_those_and_cover_what_they_say():
    tokens = some_tokens()
    rows = np.arange(0, len(tokens), 2)
    frequent = FrequentTokens(tokens, rows, 5)
    keep = np.flatnonzero(tokens.mask(rows))
    counted = tokens.ids(rows).ravel()[keep]
    known, counts = np.unique(counted, return_counts=True)
    assert set(frequent.ids) <= set(known)
    chosen = np.isin(known, frequent.ids)
    assert counts[chosen].min() >= counts[~chosen].max()
    np.testing.assert_allclose(frequent.coverage, counts[chosen].sum() / len(counted))
    blocks, index = frequent.batch(rows, keep)
    assert not blocks
    for place, token in enumerate(frequent.ids):
        np.testing.assert_array_equal(index[BY_TOKEN].numpy() == place, counted == token)
