"""Similarity of layers: against a float64 NumPy reference by other routes, on independent and on the same layers."""

import numpy as np
import pytest
import torch

from universal_neurons.matching import Layer, drawn_shifts, similarity_of
from universal_neurons.matching.similarity import MEASURES, NOTHING

ENDS = tuple(60 * n for n in range(1, 11))
N = ENDS[-1]


def activations(seed, width=24, n=N, common=None, mix=0.0, smooth=1, latents=8):
    """Skewed, correlated, of uneven variance; `common` with weight `mix`, rows that depend on their neighbours."""
    chooser = np.random.default_rng(seed)
    noise = chooser.normal(size=(n + smooth - 1, latents))
    latent = np.stack([np.convolve(column, np.ones(smooth) / np.sqrt(smooth), "valid") for column in noise.T], 1)
    if common is not None:
        latent = mix * common + np.sqrt(1 - mix**2) * latent
    values = latent @ chooser.normal(size=(latents, width)) + 0.3 * chooser.normal(size=(n, width))
    return (np.maximum(values, 0) * np.logspace(0, -1.5, width) + 3).astype(np.float32)


def biased_cka(x, y):
    x, y = (v.astype(float) - v.astype(float).mean(0) for v in (x, y))
    return np.square(x.T @ y).sum() / np.sqrt(np.square(x.T @ x).sum() * np.square(y.T @ y).sum())


def unbiased_cka(x, y):
    """By n × n Gram matrices with an empty diagonal (Song et al. 2012, eq 5)."""

    def hsic(k, other):
        n, ones = len(k), np.ones(len(k))
        trace = (k * other).sum()
        middle = (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
        return trace + middle - 2 / (n - 2) * (ones @ k @ other @ ones)

    def gram(values):
        values = values.astype(float) - 2.9  # the estimate does not depend on what is subtracted
        k = values @ values.T
        np.fill_diagonal(k, 0)
        return k

    k, other = gram(x), gram(y)
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def mean_squared_canonical_correlation(x, y, components=None):
    """By singular value decompositions: principal components, then the angles of their spans."""
    bases = []
    for place, values in enumerate((x, y)):
        left, sizes, _ = np.linalg.svd(values.astype(float) - values.astype(float).mean(0), full_matrices=False)
        share = np.cumsum(sizes**2) / (sizes**2).sum()
        enough = min(int((share < 0.99).sum()) + 1, len(x) // 10) if components is None else components[place]
        bases.append(left[:, :enough])
    return np.square(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)).mean()


def explained_by_ridge(x, y):
    """By least squares with a row for every weight that is to stay small."""
    x, y = (v.astype(float) - v.astype(float).mean(0) for v in (x, y))
    strength = 0.01 * np.square(x).sum() / (x.std(0) > 0).sum()
    wide = np.concatenate([x, np.sqrt(strength) * np.eye(x.shape[1])])
    weights = np.linalg.lstsq(wide, np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]
    return 1 - np.square(y - x @ weights).sum() / np.square(y).sum()


def by_numpy(x, y, components=None):
    return np.array(
        [
            unbiased_cka(x, y),
            mean_squared_canonical_correlation(x, y, components),
            explained_by_ridge(x, y),
            explained_by_ridge(y, x),
        ]
    )


def layers_of(*values, ends=ENDS):
    return [Layer(torch.from_numpy(v), ends) for v in values]


@pytest.fixture(scope="module")
def related():
    common = np.random.default_rng(9).normal(size=(N, 8))
    return activations(0, 24, common=common, mix=0.8), activations(1, 33, common=common, mix=0.8)


def test_measures_and_their_chance_are_numpys(related):
    x, y = related
    shifts = drawn_shifts(N, 3)
    found = similarity_of(*layers_of(x, y), shifts)
    np.testing.assert_allclose(found.value, by_numpy(x, y), atol=1e-6)
    chance = np.mean([by_numpy(x, np.roll(y, -shift, 0)) for shift in shifts], 0)
    np.testing.assert_allclose(found.chance, chance, atol=1e-6)
    np.testing.assert_allclose(found.calibrated, (found.value - chance) / (1 - chance), atol=2e-6)
    assert (found.value > found.chance).all()
    assert (found.low < found.calibrated).all()
    assert (found.calibrated < found.high).all()


@pytest.mark.parametrize("change", ["dead", "twice", "wide", "huge"])
def test_layers_that_lack_some_directions(related, change):
    x, y = (v.copy() for v in related)
    ends = ENDS
    if change == "dead":
        x[:, 3], y[:, :9] = 1, 0
    elif change == "twice":
        x[:, 5] = 2 * x[:, 6]
    elif change == "huge":
        x[:, 0] *= 3000
    else:  # more units than positions
        x, y, ends = x[:20], y[:20], (10, 20)
    found = similarity_of(*layers_of(x, y, ends=ends), [len(x) // 2])
    np.testing.assert_allclose(found.value, by_numpy(x, y), atol=1e-6)


def test_intervals_are_the_jackknifes_of_the_measures_made_anew(related):
    x, y = related
    layers = layers_of(x, y)
    found = similarity_of(*layers, [150, 300, 450])
    components = [layer.components for layer in layers]
    kept = [np.r_[0:start, end:N] for start, end in zip((0, *ENDS), ENDS)]
    without = np.stack([by_numpy(x[rows], y[rows], components) for rows in kept])
    error = np.sqrt(len(kept) - 1) * without.std(0)
    reach = 2.2622 * error / (1 - found.chance)  # Student's t of 9 degrees of freedom
    np.testing.assert_allclose((found.high - found.low) / 2, reach, rtol=0.12)


def test_independent_layers_are_alike_by_no_more_than_chance_and_biased_cka_is_wrong_about_it():
    """Rows depend on their neighbours; over several layers nearly all intervals hold 0."""
    held = []
    for seed in range(12):
        x, y = (activations(100 + 2 * seed + place, 60, smooth=3, latents=60) for place in range(2))
        found = similarity_of(*layers_of(x, y), drawn_shifts(N, seed))
        held.append((found.low <= 0) & (found.high >= 0))
        half = (found.high[0] - found.low[0]) / 2
        assert biased_cka(x, y) - half > 0.02  # 0 is not within its interval
        assert (np.abs(found.calibrated) < 0.03).all()
        assert (found.value[1:] > 0.05).all()  # as they are they look alike
    assert (np.mean(held, 0) >= 0.8).all()


def test_a_permuted_copy_is_the_same_layer_and_signs_do_not_matter(related):
    x, y = related
    order = np.random.default_rng(0).permutation(24)
    signs = np.where(np.arange(24) % 2, -1, 1).astype(np.float32)
    found = similarity_of(*layers_of(x, x[:, order] * signs), drawn_shifts(N, 0))
    np.testing.assert_allclose(found.value[:2], 1, atol=1e-6)
    np.testing.assert_allclose(found.calibrated[:2], 1, atol=1e-6)
    assert (found.calibrated[2:] > 0.98).all()
    np.testing.assert_allclose(found.low[:2], 1, atol=1e-4)
    one, other = (similarity_of(*layers_of(x * signs, y), [99, 200]), similarity_of(*layers_of(x, y), [99, 200]))
    for name, values in vars(one).items():
        np.testing.assert_allclose(values, getattr(other, name), atol=1e-6)


def test_both_directions_are_one_another_turned_round(related):
    x, y = layers_of(*related)
    one, other = similarity_of(x, y, [100]), similarity_of(y, x, [N - 100])
    np.testing.assert_allclose(one.value[[0, 1, 3, 2]], other.value, atol=1e-6)
    np.testing.assert_allclose(one.chance[[0, 1, 3, 2]], other.chance, atol=1e-6)


def test_large_layers_take_the_same_way(related, monkeypatch):
    whole = similarity_of(*layers_of(*related), [100, 200])
    monkeypatch.setattr("universal_neurons.matching.similarity.KEPT_BYTES", 0)
    monkeypatch.setattr("universal_neurons.matching.similarity.ROWS_AT_ONCE", 47)
    apart = similarity_of(*layers_of(*related), [100, 200])
    for name, values in vars(whole).items():
        np.testing.assert_allclose(values, getattr(apart, name), atol=1e-6)


def test_what_cannot_be_said_is_nan(related):
    x, y = related
    assert similarity_of(*layers_of(np.ones_like(x), y), [9]) is NOTHING
    assert similarity_of(*layers_of(x[:3], y[:3], ends=(3,)), [1]) is NOTHING
    one = similarity_of(*layers_of(x, y, ends=(N,)), [99, 200])
    assert np.isfinite(one.calibrated).all()
    assert np.isnan(one.low).all()


def test_shifts_are_far_from_nothing_and_drawn_alike():
    shifts = drawn_shifts(1000, 7)
    assert len(set(shifts)) == len(shifts) == 3
    assert 100 <= min(shifts) < max(shifts) < 900
    assert shifts == drawn_shifts(1000, 7)
    assert len(MEASURES) == 4
