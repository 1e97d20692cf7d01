"""What a study says of its matches on held-out rows, against NumPy and scipy on separately captured activations."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from conftest import tiny_model
from scipy import stats
from test_correlation import captured, some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.matching.baselines import rotation
from universal_neurons.storage import Store

DRAWS = 3


@pytest.fixture(scope="module")
def models():
    return [tiny_model("gpt2", seed, f"m{seed}") for seed in range(3)]


@pytest.fixture(scope="module")
def tokens():
    return some_tokens(200)


@pytest.fixture(scope="module")
def store(models, tokens, tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("detail") / "run"
    config = StudyConfig(out=str(out), draws=DRAWS, stages=("universality",), top_k=2)
    return run_study(config, models=models, tokens=tokens, progress=False)


def rows_of(tokens, rows):
    """The rows as a text of their own."""
    return replace(tokens, rows=tokens.rows[rows], lengths=tokens.lengths[rows], subsets=tokens.subsets[rows])


@pytest.fixture(scope="module")
def seen(models, tokens):
    """Activations on the rows that choose, on held-out rows, the stretch of each held-out position and its token."""
    chosen, stretches = tokens.split()
    held = np.concatenate(stretches)
    of_row = np.repeat(np.arange(len(stretches)), [len(s) for s in stretches])
    mask = tokens.mask(held)
    return {
        "choose": [captured(model, rows_of(tokens, chosen)) for model in models],
        "held": [captured(model, rows_of(tokens, held)) for model in models],
        "stretch": np.repeat(of_row[:, None], tokens.context, 1)[mask],
        "token": tokens.ids(held)[mask],
    }


def numbers(store):
    """Each other model's best matches as numbers, in the order of the asker's neurons."""
    table = store.matches.filter(pl.col("rank") == 1).sort("match_model", "layer", "neuron")
    return {
        name: (of_model["match_layer"] * 24 + of_model["match_neuron"]).to_numpy()
        for (name,), of_model in table.group_by("match_model", maintain_order=True)
    }, table


def rho(x, y):
    return np.corrcoef(x, y)[0, 1]


def test_ranks_words_variances_and_stretches(store, seen):
    places, table = numbers(store)
    for name, match in places.items():
        other = int(name[1])
        rows = table.filter(pl.col("match_model") == name)
        a, b = seen["held"][0], seen["held"][other][:, match]
        spearman = [stats.spearmanr(a[:, n], b[:, n]).statistic for n in range(48)]
        np.testing.assert_allclose(rows["corr_ranks"], spearman, atol=0.02)
        known, of_token = np.unique(seen["token"], return_inverse=True)
        da, db = a.copy(), b.copy()
        for t in range(len(known)):
            here = of_token == t
            da[here] -= da[here].mean(0)
            db[here] -= db[here].mean(0)
        expected = (da * db).sum(0) / np.sqrt((da**2).sum(0) * (db**2).sum(0))
        np.testing.assert_allclose(rows["corr_within_tokens"], expected, atol=1e-5)
        ratio = np.stack([a.var(0) / seen["choose"][0].var(0), b.var(0) / seen["choose"][other][:, match].var(0)])
        further = np.abs(np.log(ratio)).argmax(0)
        np.testing.assert_allclose(rows["variance_ratio"], ratio[further, np.arange(48)], rtol=1e-5)
        products = (a - a.mean(0)) * (b - b.mean(0))
        parts = np.abs([products[seen["stretch"] == s].sum(0) for s in np.unique(seen["stretch"])])
        np.testing.assert_allclose(rows["stretches"], parts.sum(0) ** 2 / (parts**2).sum(0), rtol=1e-4)
    assert store.manifest["within_tokens"] == {"tokens": len(known), "coverage": 1.0}


def test_both_excesses_and_the_held_out_ones(store, seen):
    places, _ = numbers(store)
    neurons = store.neurons.filter(pl.col("model") == "m0").sort("layer", "neuron")
    seed = store.config.seed
    excess, normalised, heldout = [], [], {False: [], True: []}
    for name, match in places.items():
        other = int(name[1])
        choose, held = (seen[key][other] for key in ("choose", "held"))
        best = np.array([rho(seen["choose"][0][:, n], choose[:, match[n]]) for n in range(48)])
        there = np.array([rho(seen["held"][0][:, n], held[:, match[n]]) for n in range(48)])
        for standardised in (False, True):
            scale = choose.std(0) if standardised else 1.0
            maxima, again = [], []
            for draw in range(DRAWS):
                turn = rotation("rotation", 24, seed, draw).numpy()
                rotated, later = (
                    np.concatenate([layer @ turn.T for layer in np.split(values / scale, 2, 1)], 1)
                    for values in (choose, held)
                )
                table = np.corrcoef(seen["choose"][0].T, rotated.T)[:48, 48:]
                maxima.append(table.max(1))
                again.append([rho(seen["held"][0][:, n], later[:, table[n].argmax()]) for n in range(48)])
            heldout[standardised].append(there - np.mean(again, 0))
            if standardised:
                excess.append(best - np.mean(maxima, 0))
                normalised.append((best - np.mean(maxima, 0)) / (1 - np.mean(maxima, 0)))
    np.testing.assert_allclose(neurons["excess_standardised"], np.mean(excess, 0), atol=2e-6)
    np.testing.assert_allclose(neurons["excess_normalised"], np.mean(normalised, 0), atol=1e-5)
    np.testing.assert_allclose(
        neurons["baseline_standardised"], neurons["mean_corr"] - neurons["excess_standardised"], atol=1e-12
    )
    np.testing.assert_allclose(neurons["excess_heldout"], np.mean(heldout[False], 0), atol=5e-6)
    np.testing.assert_allclose(neurons["excess_standardised_heldout"], np.mean(heldout[True], 0), atol=5e-6)
    for name in ("excess", "excess_standardised", "excess_normalised"):
        assert (neurons[f"{name}_low"] <= neurons[f"{name}_heldout"]).all()
        assert (neurons[f"{name}_heldout"] <= neurons[f"{name}_high"]).all()
        assert (neurons[f"{name}_high"] <= 1).all()
    most = 1 - neurons["baseline_standardised_low"]
    assert (neurons["excess_standardised_high"] <= most + 1e-12).all()


def test_how_much_one_position_holds(store, seen):
    for number, values in enumerate(seen["choose"]):
        of_model = store.neurons.filter(pl.col("model") == f"m{number}").sort("layer", "neuron")
        squares = (values - values.mean(0)) ** 2
        np.testing.assert_allclose(of_model["position_share"], squares.max(0) / squares.sum(0), rtol=1e-5)


def test_marks_are_what_they_say(store):
    places, table = numbers(store)
    shares = {
        name: store.neurons.filter(pl.col("model") == name).sort("layer", "neuron")["position_share"].to_numpy()
        for name in store.models
    }
    marked = shares["m0"] > 0.05
    for name, match in places.items():
        rows = table.filter(pl.col("match_model") == name)
        marked |= shares[name][match] > 0.05
        marked |= rows["stretches"].to_numpy() < 3
        marked |= np.abs(np.log(rows["variance_ratio"].to_numpy())) > np.log(1.5)
    neurons = store.neurons.filter(pl.col("model") == "m0").sort("layer", "neuron")
    np.testing.assert_array_equal(neurons["carried_by_few"], marked)


def test_shuffled_positions_have_no_rotated_neuron_to_ask_again(models, tokens, tmp_path):
    """The permutation baseline is what it was on the rows that choose, whatever the scale of a neuron."""
    config = StudyConfig(out=str(tmp_path / "run"), draws=2, stages=("universality",), baseline="permutation")
    neurons = run_study(config, models=models, tokens=tokens, progress=False).neurons
    asked = neurons.filter(pl.col("model") == "m0")
    np.testing.assert_allclose(asked["excess_standardised"], asked["excess_corr"])
    np.testing.assert_allclose(asked["excess_standardised_heldout"], asked["excess_heldout"])
