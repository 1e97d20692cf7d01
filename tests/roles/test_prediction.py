"""Roles, classes and ensembles against float64 NumPy, scipy, scikit-learn and planted truths."""

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from conftest import tiny_model
from sklearn.metrics import roc_auc_score

from universal_neurons import processed_weights
from universal_neurons.labels import Label
from universal_neurons.labels.own_labels import OwnLabels
from universal_neurons.models import ProcessedWeights
from universal_neurons.report.figures import render
from universal_neurons.report.figures.prediction import (
    effects_examples,
    ensembles_figure,
    same_class_figure,
)
from universal_neurons.report.figures.role_layers import role_by_layer
from universal_neurons.role_settings import RoleSettings
from universal_neurons.roles import prediction
from universal_neurons.roles.ensembles import (
    ENSEMBLES_SCHEMA,
    Ensemble,
    auc,
    ensemble_histograms,
    ensembles_of,
    ensembles_table,
    same_class,
)
from universal_neurons.roles.prediction import (
    EFFECTS_SCHEMA,
    class_labels,
    effect_histograms,
    effects_table,
    relative_roles,
    role_examples,
    roles_of,
    used_tokens,
    with_nearest,
)
from universal_neurons.roles.reach import DEVIATIONS, DIRECTIONS, kurtosis_reach
from universal_neurons.text import Vocabulary

LAYERS, D_MLP, WIDTH = 2, 30, 256
YEARS = range(20, 34)
SETTINGS = RoleSettings(partition_variance=0.005 * WIDTH / 1024)


def some_vocabulary():
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (560, 5))
    digits = ["12", "345", "7", "9999", "0042", "88", "6", "1", "2", "3", "4", "51", "52", "53"]
    years = [f" {year}" for year in range(1900, 1914)]
    words = ["".join(row) for row in letters]
    words = [f" {word}" if n % 3 else word for n, word in enumerate(words)]
    strings = ["", "", "(", " (", ",", ".", *digits, *years, *words]
    special = np.zeros(len(strings), bool)
    special[:2] = True
    return Vocabulary(tuple(strings), special)


VOCABULARY = some_vocabulary()
LABELS = class_labels(VOCABULARY)
MASKS = {label.name: mask for label, mask in LABELS}
ZERO_TOKEN, ZERO_NEURON = 40, 17


def planted_weights(seed=0):
    """Random weights in which L1.3 writes the years, L1.4 their opposite, L0.5 what starts with a space."""
    generator = torch.Generator().manual_seed(seed)
    w_u = torch.randn(len(VOCABULARY), WIDTH, generator=generator, dtype=torch.float64)
    w_u[list(YEARS)] += 3 * torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    spaced = torch.tensor([s.startswith(" ") for s in VOCABULARY.strings])
    w_u[spaced] += 1.0 * torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    w_u[:2] += 40.0  # special tokens, far from all others
    w_u = w_u - w_u.mean(0)
    w_u[ZERO_TOKEN] = 0
    w_out = torch.randn(LAYERS, D_MLP, WIDTH, generator=generator, dtype=torch.float64)
    plain = spaced.clone()
    plain[list(YEARS)] = False
    w_out[1, 3] = w_u[list(YEARS)].mean(0) - w_u[plain].mean(0)
    w_out[1, 4] = -2 * w_out[1, 3]
    w_out[0, 5] = w_u[plain].mean(0)
    w_out[0, ZERO_NEURON] = 0
    zeros = torch.zeros(LAYERS, D_MLP, dtype=torch.float64)
    return ProcessedWeights(
        w_in=torch.zeros_like(w_out), b_in=zeros, w_up=None, b_up=None, w_out=w_out,
        b_out=torch.zeros(LAYERS, WIDTH, dtype=torch.float64), w_u=w_u,
        b_u=torch.zeros(len(VOCABULARY), dtype=torch.float64), folded=True,
    )  # fmt: skip


def stats_of(weights):
    """The vocabulary moments by scipy."""
    w_out, w_u = weights.w_out.flatten(0, 1).numpy(), weights.w_u.numpy()
    norms = np.linalg.norm(w_u, axis=1)
    with np.errstate(invalid="ignore"):
        units = w_out / np.linalg.norm(w_out, axis=1, keepdims=True)
    cosines = units @ (w_u[norms > 0] / norms[norms > 0, None]).T
    return pl.DataFrame(
        {
            "vocab_var": cosines.var(1),
            "vocab_skew": scipy.stats.skew(cosines, axis=1),
            "vocab_kurt": scipy.stats.kurtosis(cosines, axis=1, fisher=False),
        }
    )


WEIGHTS = planted_weights()
STATS = stats_of(WEIGHTS)


REACH = kurtosis_reach(WEIGHTS.w_u, centred=False)
EACH_OFTEN = np.full(len(VOCABULARY), 5)


def table(labels=LABELS, weights=WEIGHTS, vocabulary=VOCABULARY, stats=STATS, settings=SETTINGS, counts=EACH_OFTEN):
    return effects_table("a", weights, stats, vocabulary, counts, labels, settings, REACH)


def row_of(effects, layer, neuron):
    return effects.filter((pl.col("layer") == layer) & (pl.col("neuron") == neuron)).row(0, named=True)


def test_table_has_its_columns_in_flat_order():
    found = table()
    assert dict(found.schema) == EFFECTS_SCHEMA
    assert found["layer"].to_list() == [0] * D_MLP + [1] * D_MLP
    assert found["neuron"].to_list() == 2 * list(range(D_MLP))
    assert set(found["model"]) == {"a"}


def test_class_is_numpys():
    found = table()
    used = [t for t in range(2, len(VOCABULARY)) if t != ZERO_TOKEN]
    effects = WEIGHTS.w_out.flatten(0, 1).numpy() @ WEIGHTS.w_u.numpy()[used].T
    for row, values in zip(found.iter_rows(named=True), effects):
        if not values.any():
            continue
        scores = {}
        for label, mask in LABELS:
            inside = mask[used]
            if 2 <= inside.sum() < len(used):
                scores[label.name] = np.corrcoef(values, inside)[0, 1]
        best = max(rho**2 for rho in scores.values())
        rho = scores[row["class"]]
        assert row["class_variance_reduction"] == pytest.approx(best, rel=1e-4, abs=1e-9)
        assert rho**2 == pytest.approx(best, rel=2e-5)
        assert row["class_sign"] == np.sign(rho)
        assert row["class_group"] == "tokens"


def test_top_and_bottom_tokens_are_numpys():
    found = table()
    used = np.array([t for t in range(2, len(VOCABULARY)) if t != ZERO_TOKEN])
    effects = WEIGHTS.w_out.flatten(0, 1).numpy() @ WEIGHTS.w_u.numpy()[used].T
    for n in (0, 7, 33, 59):
        order = np.argsort(effects[n])
        row = found.row(n, named=True)
        assert row["top_tokens"] == used[order[::-1][:10]].tolist()
        assert row["bottom_tokens"] == used[order[:10]].tolist()
        np.testing.assert_allclose(row["top_effects"], effects[n, order[::-1][:10]], rtol=1e-4)
        np.testing.assert_allclose(row["bottom_effects"], effects[n, order[:10]], rtol=1e-4)


def test_tokens_that_hardly_occur_are_not_listed_and_change_nothing_else():
    """Lists by a loop over sorted effects; L1.3 writes the years, of which few occur often."""
    counts = np.random.default_rng(5).integers(0, 10, len(VOCABULARY))
    counts[list(YEARS)] = 10 * [4] + 4 * [5]
    found = table(counts=counts)
    used = [t for t in range(2, len(VOCABULARY)) if t != ZERO_TOKEN]
    effects = WEIGHTS.w_out.flatten(0, 1).numpy() @ WEIGHTS.w_u.numpy().T
    for n in (0, 7, D_MLP + 3):
        listed = [t for t in sorted(used, key=lambda t: -effects[n, t]) if counts[t] >= 5]
        row = found.row(n, named=True)
        assert row["top_tokens"] == listed[:10]
        assert row["bottom_tokens"] == listed[::-1][:10]
        np.testing.assert_allclose(row["top_effects"], effects[n, listed[:10]], rtol=1e-4)
    assert set(found["tokens_left_out"]) == {sum(counts[t] < 5 for t in used)}
    others = [name for name in found.columns if name.startswith(("role", "class"))]
    assert found.select(others).equals(table().select(others), null_equal=True)


def test_a_text_too_short_to_tell_leaves_out_no_token():
    counts = np.zeros(len(VOCABULARY), int)
    counts[100:119] = 5
    assert table(counts=counts).equals(table(), null_equal=True)
    assert set(table()["tokens_left_out"]) == {0}
    counts[119] = 5
    assert set(table(counts=counts)["top_tokens"].explode().drop_nulls()) == set(range(100, 120))


def test_planted_neurons_have_their_roles_and_classes():
    found = table()
    raises, lowers, parts = row_of(found, 1, 3), row_of(found, 1, 4), row_of(found, 0, 5)
    assert (raises["role"], raises["class"], raises["class_sign"]) == ("prediction", "is_year", 1)
    assert (lowers["role"], lowers["class"], lowers["class_sign"]) == ("suppression", "is_year", -1)
    assert (parts["role"], parts["class"], parts["class_sign"]) == ("partition", "starts_w_space", 1)
    assert min(row["class_variance_reduction"] for row in (raises, lowers, parts)) > 0.5
    assert set(raises["top_tokens"]) <= set(YEARS)
    assert set(lowers["bottom_tokens"]) <= set(YEARS)
    assert found["role"].is_in(["prediction", "suppression"]).sum() == 2
    assert found["role"].eq("partition").sum() == STATS["vocab_var"].fill_nan(0).gt(0.005).sum() - 2 < D_MLP


def test_roles_are_scipys_thresholds():
    chooser = np.random.default_rng(0)
    stats = pl.DataFrame(
        {
            "vocab_var": [*chooser.uniform(0, 0.01, 50), np.nan],
            "vocab_skew": [*chooser.normal(size=50), np.nan],
            "vocab_kurt": [*chooser.uniform(3, 17, 50), np.nan],
        }
    )
    expected = []
    for var, skew, kurt in stats.iter_rows():
        if kurt > 10:
            expected.append("prediction" if skew > 0 else "suppression")
        else:
            expected.append("partition" if var > 0.005 else None)
    assert roles_of(stats, RoleSettings(), 1024) == expected
    assert {"prediction", "suppression", "partition", None} == set(expected)
    assert set(roles_of(stats, RoleSettings(kurtosis=20, partition_variance=1), 1024)) == {None}
    narrow = stats.with_columns(pl.col("vocab_var") * 8)  # cosines of an eighth of the width vary eight times as much
    assert roles_of(narrow, RoleSettings(), 128) == expected


def test_neurons_without_values_have_no_role_where_columns_are_null():
    stats = pl.DataFrame({f"vocab_{name}": [None, 12.0] for name in ("var", "skew", "kurt")})
    assert roles_of(stats, RoleSettings(), 1024) == [None, "prediction"]


def test_a_neuron_that_writes_nothing_has_no_class():
    row = row_of(table(), 0, ZERO_NEURON)
    assert np.isnan(row["class_variance_reduction"])
    for name in ("role", "class", "class_group", "class_sign", "top_tokens", "bottom_tokens", "top_effects"):
        assert row[name] is None


def test_of_two_complements_the_class_is_what_the_neuron_writes():
    year = MASKS["is_year"]
    labels = [(Label("not year", "own"), ~year), (Label("year", "own"), year), (Label("again", "own"), year)]
    for order in (labels, labels[:2][::-1]):
        found = table(order)
        raises, lowers = row_of(found, 1, 3), row_of(found, 1, 4)
        assert (raises["class"], raises["class_sign"]) == ("year", 1)
        assert (lowers["class"], lowers["class_sign"]) == ("year", -1)


def test_labels_of_one_token_or_all_are_no_classes():
    one, every = np.zeros(len(VOCABULARY), bool), ~VOCABULARY.special
    one[25] = True
    found = table([(Label("one", "own"), one), (Label("all", "own"), every)])
    assert found["class"].is_null().all()
    assert found["class_variance_reduction"].is_nan().all()
    assert found["top_tokens"].is_not_null().sum() == LAYERS * D_MLP - 1
    assert table([])["class"].is_null().all()


def test_panels_do_not_matter(monkeypatch):
    whole = table()
    monkeypatch.setattr(prediction, "PANEL_ELEMENTS", 7 * len(VOCABULARY))
    split = table()
    for name in whole.columns:
        if name == "class_variance_reduction":
            np.testing.assert_allclose(split[name], whole[name], rtol=1e-4)
        elif not name.endswith("effects"):
            assert split[name].equals(whole[name], null_equal=True)


def test_a_model_without_a_tokenizer_has_roles_and_tokens():
    nothing = Vocabulary(("",) * len(VOCABULARY), np.ones(len(VOCABULARY), bool))
    found = table(class_labels(nothing), vocabulary=nothing)
    assert found["class"].is_null().all()
    assert row_of(found, 1, 3)["role"] == "prediction"
    assert set(row_of(found, 1, 3)["top_tokens"]) <= set(YEARS)


def test_class_labels_speak_of_tokens_alone():
    embedding = torch.ones(len(VOCABULARY) + 3, 4) * torch.linspace(0.9, 1.1, len(VOCABULARY) + 3)[:, None]
    embedding[30] = 0
    own = OwnLabels()
    own.add("mine", mask=np.arange(len(VOCABULARY)) < 30)
    found = class_labels(VOCABULARY, embedding, own=own.tokens)
    by_name = {label.name: (label, mask) for label, mask in found}
    assert by_name["small_norm"][1].nonzero()[0].tolist() == [30]
    assert by_name["mine"][0].group == "own"
    assert {label.group for label, _ in found} == {"tokens", "own"}
    assert all(mask.shape == (len(VOCABULARY),) and not label.previous for label, mask in found)


def test_a_real_model_has_effects(tokenizer):
    from universal_neurons.statistics import weight_statistics
    from universal_neurons.text import read_vocabulary

    model = tiny_model("gpt2")
    weights, vocabulary = processed_weights(model), read_vocabulary(tokenizer, model.vocab_size)
    stats = pl.DataFrame({k: v for k, v in weight_statistics(weights).items() if k.startswith("vocab")})
    labels = class_labels(vocabulary, model.hf.get_input_embeddings().weight)
    found = effects_table("m", weights, stats, vocabulary, np.full(len(vocabulary), 5), labels, SETTINGS, REACH)
    assert found["class"].is_not_null().all()
    assert found["class_variance_reduction"].is_between(0, 1).all()
    special = set(np.flatnonzero(vocabulary.special).tolist())
    assert not special & set(found["top_tokens"].explode().to_list())


def classed(roles, classes, reductions):
    n = len(roles)
    return pl.DataFrame(
        {
            "model": ["a"] * n,
            "layer": [n // 2 for n in range(n)],
            "neuron": list(range(n)),
            "role": roles,
            "class": classes,
            "class_group": ["tokens" if c else None for c in classes],
            "class_sign": [None] * n,
            "class_variance_reduction": reductions,
        },
        schema_overrides={"role": pl.String, "class_sign": pl.Int8, "layer": pl.Int32, "neuron": pl.Int32},
    )


def test_same_class_groups_prediction_and_suppression():
    roles = ["prediction", "prediction", "suppression", "partition", None, "prediction", "prediction"]
    classes = ["x", "x", "x", "x", "x", "y", "x"]
    found = same_class(classed(roles, classes, [0.1, 0.5, 0.9, 0.9, 0.9, 0.3, 0.2])).to_dicts()
    assert [(row["role"], row["class"], row["number"]) for row in found] == [
        ("prediction", "x", 3),
        ("prediction", "y", 1),
        ("suppression", "x", 1),
    ]
    assert found[0]["neurons"] == [1, 6, 0]
    assert found[0]["layers"] == [0, 3, 0]
    assert (found[0]["best_layer"], found[0]["best_neuron"]) == (0, 1)
    assert not any(row["nearest"] for row in found)


def test_where_no_neuron_has_a_role_the_nearest_are_named(monkeypatch):
    effects = classed([None] * 6, ["x", "x", "y", "y", None, "x"], [0.1] * 6)
    stats = pl.DataFrame(
        {
            "vocab_kurt": [4.0, 5.0, 6.0, 7.0, 9.0, np.nan],
            "vocab_skew": [1.0, 2.0, -1.0, -2.0, 1.0, np.nan],
            "vocab_var": [0.1, 0.2, 0.3, 0.4, 0.5, np.nan],
            "is_universal": [True, None, False, None, None, None],
        }
    )
    one = with_nearest(effects, stats)
    assert one["role"].to_list() == [None, "prediction", "partition", "suppression", None, None]
    assert one["nearest"].to_list() == [False, True, True, True, False, False]
    two = with_nearest(effects, stats, 2)
    assert two["role"].to_list() == ["prediction"] * 2 + ["suppression"] * 2 + [None] * 2
    assert same_class(two).filter(pl.col("nearest"))["number"].to_list() == [2, 2]
    monkeypatch.setattr(prediction, "PER_ROLE", 1)
    assert role_examples(two)["neuron"].to_list() == [0, 2]  # the universal one, and the first of equals


def test_the_nearest_to_prediction_raises_its_class_and_to_suppression_lowers_it():
    effects = classed([None] * 6, ["x"] * 6, [0.1] * 6)
    effects = effects.with_columns(class_sign=pl.Series([-1, 1, 1, 1, -1, -1], dtype=pl.Int8))
    stats = pl.DataFrame(
        {
            "vocab_kurt": [9.0, 5.0, 6.0, 8.0, 4.0, 3.0],
            "vocab_skew": [1.0, 1.0, 1.0, -1.0, -1.0, -1.0],
            "vocab_var": [0.1] * 6,
        }
    )
    assert with_nearest(effects, stats)["role"].to_list() == [
        "partition", None, "prediction", None, "suppression", None,
    ]  # fmt: skip
    three = with_nearest(effects, stats, 3)["role"].to_list()
    assert three == ["prediction"] * 3 + ["suppression"] * 3  # of the other sign where no more are left


def test_only_a_role_that_no_neuron_has_is_given_to_the_nearest():
    effects = classed(["partition", "prediction", None, None], ["x", "y", "y", "y"], [0.1, 0.9, 0.5, 0.4])
    stats = pl.DataFrame(
        {"vocab_kurt": [9.0, 16.0, 5.0, 6.0], "vocab_skew": [-1.0, 2.0, -1.0, 1.0], "vocab_var": [0.1] * 4}
    )
    found = with_nearest(effects, stats, 2)
    assert found["role"].to_list() == ["partition", "prediction", "suppression", None]
    assert found["nearest"].to_list() == [False, False, True, False]


ROWS, LENGTH, WORDS = 60, 150, 50
MASK = np.arange(WORDS) < 6


def some_text(seed=0):
    next_tokens = np.random.default_rng(seed).integers(0, WORDS, ROWS * LENGTH)
    return next_tokens, np.repeat(np.arange(ROWS) * 3, LENGTH)


def ensemble_of(count, *, sign=1.0, first=0, role="prediction", nearest=False):
    places = np.arange(first, first + count)
    effects = sign * np.linspace(1, 1.2, count)
    return Ensemble(role, "x", places // 4, places % 4, places, effects, MASK, nearest)


def noisy(next_tokens, count, *, shared=0.0, seed=1):
    """Activations that know the class, with independent or shared errors of standard deviation 3."""
    chooser = np.random.default_rng(seed)
    own, common = chooser.normal(size=(len(next_tokens), count)), chooser.normal(size=(len(next_tokens), 1))
    noise = np.sqrt(1 - shared) * own + np.sqrt(shared) * common
    return (MASK[next_tokens][:, None] + 3 * noise).astype(np.float32)


def test_independent_errors_gain_and_identical_ones_do_not():
    next_tokens, rows = some_text()
    for shared, gains in ((0.0, True), (1.0, False)):
        activations = noisy(next_tokens, 8, shared=shared)
        row = ensembles_table("a", [ensemble_of(8)], activations, next_tokens, rows).row(0, named=True)
        assert row["neurons"] == 8
        assert row["positions"] == ROWS * LENGTH // 2
        assert row["base_rate"] == pytest.approx(0.12, abs=0.02)
        if gains:
            assert row["gain_low"] > 0
            assert row["corr_sum"] > 2 * row["corr_best"] > 0
            assert row["auc_sum"] > row["auc_best"] + 0.1
            assert abs(row["activation_corr"]) < 0.02
            assert row["error_corr"] > 0.9  # they share their target: no measure of independence
        else:
            assert abs(row["gain"]) < 1e-6
            assert row["activation_corr"] == pytest.approx(1)
            assert row["auc_sum"] == pytest.approx(row["auc_best"], abs=1e-5)


def test_activation_correlation_given_the_class_is_the_planted_one():
    next_tokens, rows = some_text()
    activations = noisy(next_tokens, 6, shared=0.4) + 20 * MASK[next_tokens][:, None]
    row = ensembles_table("a", [ensemble_of(6)], activations.astype(np.float32), next_tokens, rows).row(0, named=True)
    assert row["activation_corr"] == pytest.approx(0.4, abs=0.03)


def by_hand(activations, group, next_tokens, rows):
    """An ensemble's row by loops."""
    known = sorted(set(rows.tolist()))
    judges = known[1::2]
    groups = min(20, len(known) // 2)
    group_of = {row: known.index(row) * groups // len(known) for row in judges}
    stretch = np.array([group_of.get(row, -1) for row in rows.tolist()])
    inside = group.mask[next_tokens].astype(float)
    signals = activations[:, group.columns].astype(float) * group.effects
    even, odd = stretch < 0, stretch >= 0
    first = [np.corrcoef(signals[even, n], inside[even])[0, 1] for n in range(len(group.columns))]
    best = int(np.argmax(np.abs(first)))
    total = signals.sum(1)
    ways = np.sign(first[best]), np.sign(np.corrcoef(total[even], inside[even])[0, 1])

    def corr(values, where):
        return np.corrcoef(values[where], inside[where])[0, 1]

    def gain(where):
        return ways[1] * corr(total, where) - ways[0] * corr(signals[:, best], where)

    without = [gain(odd & (stretch != left)) for left in range(groups)]
    n = len(without)
    error = np.sqrt((n - 1) / n * sum((g - np.mean(without)) ** 2 for g in without))
    reach = scipy.stats.t(n - 1).ppf(0.975) * error
    residuals, given = [], []
    for column in signals[odd].T:
        fit = scipy.stats.linregress(column, inside[odd])
        residuals.append(inside[odd] - fit.intercept - fit.slope * column)
        middle = [column[inside[odd] == side].mean() for side in (0, 1)]
        given.append(column - np.array(middle)[inside[odd].astype(int)])
    pairs = [(i, j) for i in range(len(residuals)) for j in range(i)]
    return {
        "best": int(group.columns[best]),
        "corr_best": corr(signals[:, best], odd),
        "corr_sum": corr(total, odd),
        "auc_best": roc_auc_score(inside[odd], signals[odd, best]),
        "auc_sum": roc_auc_score(inside[odd], total[odd]),
        "gain": gain(odd),
        "gain_low": gain(odd) - reach,
        "gain_high": gain(odd) + reach,
        "error_corr": np.mean([np.corrcoef(residuals[i], residuals[j])[0, 1] for i, j in pairs]),
        "activation_corr": np.mean([np.corrcoef(given[i], given[j])[0, 1] for i, j in pairs]),
        "base_rate": inside[odd].mean(),
        "positions": odd.sum(),
    }


@pytest.mark.parametrize("rows_there", [60, 7])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ensembles_are_those_of_a_loop(sign, rows_there):
    next_tokens, rows = some_text(3)
    kept = np.isin(rows, np.unique(rows)[:rows_there])
    activations = noisy(next_tokens, 9, shared=0.2, seed=5)
    next_tokens, rows, activations = next_tokens[kept], rows[kept], activations[kept]
    groups = [ensemble_of(5, sign=sign), ensemble_of(4, first=5, sign=sign, role="suppression", nearest=True)]
    found = ensembles_table("a", groups, activations, next_tokens, rows)
    assert dict(found.schema) == ENSEMBLES_SCHEMA
    for group, row in zip(groups, found.iter_rows(named=True)):
        expected = by_hand(activations, group, next_tokens, rows)
        assert 4 * row["best_layer"] + row["best_neuron"] == expected.pop("best")
        assert (row["role"], row["nearest"], row["neurons"]) == (group.role, group.nearest, len(group.columns))
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_suppressors_that_fire_before_their_class_gain_too():
    next_tokens, rows = some_text()
    activations = noisy(next_tokens, 8)
    row = ensembles_table("a", [ensemble_of(8, sign=-1.0)], activations, next_tokens, rows).row(0, named=True)
    assert row["corr_sum"] < row["corr_best"] < 0
    assert row["auc_sum"] < 0.5
    assert row["gain_low"] > 0


def test_choosing_the_best_is_not_rewarded():
    next_tokens, rows = some_text()
    activations = np.random.default_rng(9).normal(size=(len(next_tokens), 200))
    row = ensembles_table("a", [ensemble_of(200)], activations, next_tokens, rows).row(0, named=True)
    inside = MASK[next_tokens]
    highest = max(abs(np.corrcoef(column, inside)[0, 1]) for column in activations.T)
    deviation = 1 / np.sqrt(len(inside) / 2)
    assert abs(row["corr_best"]) < 3 * deviation
    assert highest > abs(row["corr_best"])


def test_positions_without_a_next_token_are_left_out():
    next_tokens, rows = some_text()
    activations = noisy(next_tokens, 4)
    ends = np.arange(len(next_tokens)) % LENGTH == LENGTH - 1
    masked = np.where(ends, -1, next_tokens)
    spoilt = np.where(ends[:, None], np.float32(1e6), activations)
    found = ensembles_table("a", [ensemble_of(4)], spoilt, masked, rows)
    expected = ensembles_table("a", [ensemble_of(4)], activations[~ends], next_tokens[~ends], rows[~ends])
    assert found.equals(expected)


def test_dead_neurons_are_never_best_and_have_no_part_in_the_correlations():
    next_tokens, rows = some_text()
    activations = noisy(next_tokens, 4)
    activations[:, 0] = 0.3
    row = ensembles_table("a", [ensemble_of(4)], activations, next_tokens, rows).row(0, named=True)
    three = Ensemble("prediction", "x", *[np.arange(1, 4)] * 3, np.linspace(1, 1.2, 4)[1:], MASK)
    alive = ensembles_table("a", [three], activations, next_tokens, rows).row(0, named=True)
    assert row["best_neuron"] == alive["best_neuron"] != 0
    for name in ("corr_best", "corr_sum", "activation_corr", "error_corr", "gain_low"):
        assert row[name] == pytest.approx(alive[name], rel=1e-9)


def test_a_class_that_never_comes_next_has_no_answer():
    next_tokens, rows = some_text()
    activations = noisy(next_tokens, 4)
    for tokens, text in (
        (np.full_like(next_tokens, WORDS - 1), rows),
        (next_tokens, np.zeros_like(rows)),
        (np.full_like(next_tokens, -1), rows),
    ):
        row = ensembles_table("a", [ensemble_of(4)], activations, tokens, text).row(0, named=True)
        assert row["neurons"] == 4
        for name in ("best_layer", "corr_best", "corr_sum", "gain", "gain_low", "activation_corr"):
            assert row[name] is None
    assert ensembles_table("a", [], activations, next_tokens, rows).schema == ENSEMBLES_SCHEMA


def test_auc_is_sklearns_ties_included():
    chooser = np.random.default_rng(0)
    inside = chooser.random(500) < 0.2
    for values in (chooser.normal(size=500), chooser.integers(0, 4, 500) + inside.astype(float), np.zeros(500)):
        assert auc(values, inside) == pytest.approx(roc_auc_score(inside, values), rel=1e-12)


def year_groups():
    """The planted year neurons, and noisy copies of them."""
    weights = planted_weights()
    noise = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights.w_out[0, 8:11] = weights.w_out[1, 3] + 0.1 * noise
    stats = stats_of(weights)
    effects = with_nearest(table(weights=weights, stats=stats), stats)
    return weights, effects, same_class(effects)


def test_ensembles_have_the_mean_effects_of_numpy():
    weights, _, groups = year_groups()
    flat, ensembles = ensembles_of(groups, weights, VOCABULARY, LABELS)
    assert flat.tolist() == [8, 9, 10, D_MLP + 3]
    (one,) = ensembles
    assert (one.role, one.name, one.nearest) == ("prediction", "is_year", False)
    np.testing.assert_array_equal(flat[one.columns], one.layers * D_MLP + one.neurons)
    used = [t for t in range(2, len(VOCABULARY)) if t != ZERO_TOKEN]
    for layer, neuron, effect in zip(one.layers, one.neurons, one.effects):
        logits = weights.w_u.numpy()[used] @ weights.w_out[layer, neuron].numpy()
        inside = np.isin(used, list(YEARS))
        assert effect == pytest.approx(logits[inside].mean() - logits[~inside].mean(), rel=1e-9)
    assert groups["number"].to_list() == [4, 1]


def test_no_groups_no_ensembles():
    flat, ensembles = ensembles_of(same_class(table()), WEIGHTS, VOCABULARY, LABELS)
    assert len(flat) == 0
    assert ensembles == []


def drawn_year():
    weights, effects, groups = year_groups()
    flat, ensembles = ensembles_of(groups, weights, VOCABULARY, LABELS)
    chooser = np.random.default_rng(0)
    next_tokens = chooser.integers(-1, len(VOCABULARY), 4000)
    activations = chooser.normal(size=(4000, len(flat))) + np.isin(next_tokens, list(YEARS))[:, None]
    return weights, effects, ensembles, activations, next_tokens


def test_effect_histograms_hold_every_token():
    weights, effects, *_ = drawn_year()
    found = effect_histograms(role_examples(effects), weights, VOCABULARY, LABELS)
    used = used_tokens(weights, VOCABULARY)
    for (layer, neuron), rows in found.group_by("layer", "neuron"):
        row = row_of(effects, layer, neuron)
        inside = MASKS[row["class"]][used]
        assert rows.filter("in_class")["count"].sum() == inside.sum()
        assert rows.filter(~pl.col("in_class"))["count"].sum() == (~inside).sum()
        logits = weights.w_u.numpy()[used] @ weights.w_out[layer, neuron].numpy()
        part = rows.filter("in_class").sort("low")
        expected = np.histogram(logits[inside], np.linspace(logits.min(), logits.max(), 61))[0]
        np.testing.assert_array_equal(part["count"], expected)
        assert rows["class_variance_reduction"].unique().to_list() == [row["class_variance_reduction"]]


def test_ensemble_histograms_hold_tokens_and_positions():
    weights, _, ensembles, activations, next_tokens = drawn_year()
    found = ensemble_histograms("a", ensembles, weights, VOCABULARY, activations, next_tokens)
    counts = found.group_by("layer", "neuron", "kind", "in_class").agg(pl.col("count").sum())
    before = int(np.isin(next_tokens, list(YEARS)).sum())
    totals = {("effect", True): len(YEARS), ("activation", True): before}
    totals["activation", False] = int((next_tokens >= 0).sum()) - before
    totals["effect", False] = len(used_tokens(weights, VOCABULARY)) - len(YEARS)
    assert len(counts) == 4 * len(ensembles[0].columns)
    for row in counts.iter_rows(named=True):
        assert row["count"] == totals[row["kind"], row["in_class"]]


def is_drawn(figure):
    return render(figure, "svg").startswith(b"<?xml")


def texts(figure):
    return figure.get_suptitle() + " ".join(axes.get_title() for axes in figure.axes)


def test_examples_are_drawn():
    weights, effects, *_ = drawn_year()
    histograms = effect_histograms(role_examples(effects), weights, VOCABULARY, LABELS)
    for per_role, panels in ((1, 3), (3, 7)):
        figure = effects_examples(histograms, "Fig 5", per_role)
        assert is_drawn(figure)
        assert sum(axes.axison for axes in figure.axes) == panels
        assert "raises is_year" in texts(figure)
        assert "nearest" not in texts(figure)


def test_examples_say_where_no_neuron_has_a_role():
    strict = RoleSettings(kurtosis=1000, partition_variance=1)
    effects = with_nearest(table(settings=strict), STATS)
    histograms = effect_histograms(role_examples(effects), WEIGHTS, VOCABULARY, LABELS)
    figure = effects_examples(histograms, "Fig 5")
    assert is_drawn(figure)
    assert "no prediction or suppression or partition neuron: the nearest are shown" in texts(figure)
    assert "nearest to prediction" in texts(figure)
    assert effects_examples(histograms.clear(), "Fig 5") is None


def some_neurons(scale=6.0):
    chooser = np.random.default_rng(0)
    n, layers = 40, 6
    return pl.DataFrame(
        {
            "model": np.repeat(["a", "b"], n * layers),
            "layer": np.tile(np.repeat(np.arange(layers), n), 2),
            "vocab_kurt": 3 + scale * chooser.exponential(size=2 * n * layers),
            "vocab_skew": [*chooser.normal(size=2 * n * layers - 1), np.nan],
        }
    )


def test_roles_by_layer_are_drawn():
    neurons = some_neurons()
    figure = role_by_layer(neurons, 10.0, "Fig 6")
    assert is_drawn(figure)
    high = neurons.filter((pl.col("vocab_kurt") > 10) & pl.col("vocab_skew").is_finite() & (pl.col("layer") >= 4))
    counts = [high.filter(pl.col("layer") == layer).height / 2 for layer in (4, 5)]
    assert " / ".join(f"{count:g}" for count in counts) in figure.axes[2].get_title().replace("\n", " ")
    assert "2 models" in figure.get_suptitle()


def test_roles_by_layer_without_a_role_are_drawn():
    figure = role_by_layer(some_neurons(0.1), 10.0, "Fig 6")
    assert is_drawn(figure)
    assert "none has kurtosis > 10" in figure.axes[2].get_title().replace("\n", " ")
    one = some_neurons().filter(pl.col("model") == "a").head(2)
    assert is_drawn(role_by_layer(one, 10.0, "Fig 6"))
    assert role_by_layer(one.with_columns(vocab_kurt=pl.lit(None, pl.Float64)), 10.0, "Fig 6") is None


def test_neurons_of_one_class_are_drawn():
    weights, _, ensembles, activations, next_tokens = drawn_year()
    histograms = ensemble_histograms("a", ensembles, weights, VOCABULARY, activations, next_tokens)
    figure = same_class_figure(histograms, "Fig 24")
    assert is_drawn(figure)
    assert len(figure.axes) == 8
    assert figure.get_suptitle() == "Fig 24: prediction neurons of is_year"
    near = same_class_figure(histograms.with_columns(nearest=pl.lit(True)), "Fig 24")
    assert "nearest to prediction" in near.get_suptitle()
    assert same_class_figure(histograms.clear(), "Fig 24") is None


def test_ensembles_are_drawn():
    next_tokens, rows = some_text()
    groups = [ensemble_of(5), ensemble_of(4, first=5, nearest=True), ensemble_of(2)]
    found = ensembles_table("a", groups, noisy(next_tokens, 9), next_tokens, rows)
    figure = ensembles_figure(found, "Ensembles")
    assert is_drawn(figure)
    assert "only nearest" in figure.get_suptitle()
    nothing = ensembles_table("a", groups, noisy(next_tokens, 9), np.full_like(next_tokens, WORDS - 1), rows)
    assert ensembles_figure(nothing, "Ensembles") is None
    assert ensembles_figure(found.clear(), "Ensembles") is None


def test_the_reach_of_an_unembedding_is_scipys():
    chosen = np.arange(3, len(VOCABULARY), 2)
    w_u = WEIGHTS.w_u.numpy()
    norms = np.linalg.norm(w_u, axis=1)
    directions = w_u[norms > 0] / norms[norms > 0, None]
    taken = chosen[np.unique(np.linspace(0, len(chosen) - 1, DIRECTIONS).astype(int))]
    taken = taken[norms[taken] > 0]
    own = scipy.stats.kurtosis(w_u[taken] / norms[taken, None] @ directions.T, axis=1, fisher=False)
    found = kurtosis_reach(WEIGHTS.w_u, chosen, centred=False)
    assert found.tokens == DIRECTIONS
    assert found.token_kurt == pytest.approx(np.median(own), rel=1e-4)
    assert found.token_kurt_high == pytest.approx(np.quantile(own, 0.95), rel=1e-4)
    draws = np.random.default_rng(0).normal(size=(4000, WIDTH))
    random = scipy.stats.kurtosis(draws @ directions.T / np.linalg.norm(draws, axis=1)[:, None], axis=1, fisher=False)
    assert found.random_kurt == pytest.approx(random.mean(), abs=4 * random.std() / np.sqrt(DIRECTIONS))
    assert found.random_kurt_sd == pytest.approx(random.std(), rel=0.3)
    assert kurtosis_reach(WEIGHTS.w_u, chosen, centred=False) == found
    halfway = (found.random_kurt + found.token_kurt) / 2
    assert found.cut(0.5) == max(halfway, found.random_kurt + DEVIATIONS * found.random_kurt_sd)
    np.testing.assert_allclose(found.shares(np.array([found.random_kurt, halfway, found.token_kurt])), [0, 0.5, 1])


def test_a_class_planted_in_a_narrow_unembedding_is_told_by_the_relative_cut_alone():
    """d² / V is 1.7: even a token's own unembedding stays far below the paper's 10.  Beside the planted neuron stands
    one of equal norm that writes a random direction."""
    generator, width = torch.Generator().manual_seed(3), 32
    w_u = torch.randn(len(VOCABULARY), width, generator=generator, dtype=torch.float64)
    shared = torch.randn(width, generator=generator, dtype=torch.float64)
    w_u[list(YEARS)] += 2 * shared
    w_u -= w_u.mean(0)
    w_out = torch.randn(1, 6, width, generator=generator, dtype=torch.float64)
    w_out[0, 2] = w_u[list(YEARS)].mean(0)
    w_out[0, 3] *= w_out[0, 2].norm() / w_out[0, 3].norm()
    w_out[0, 4] = -w_out[0, 2]
    zeros = torch.zeros(1, 6, dtype=torch.float64)
    weights = ProcessedWeights(
        w_in=torch.zeros_like(w_out), b_in=zeros, w_up=None, b_up=None, w_out=w_out, w_u=w_u, folded=True,
        b_out=torch.zeros(1, width, dtype=torch.float64), b_u=torch.zeros(len(VOCABULARY), dtype=torch.float64),
    )  # fmt: skip
    reach = kurtosis_reach(w_u, centred=False)
    assert reach.token_kurt_high < SETTINGS.kurtosis
    found = effects_table("a", weights, stats_of(weights), VOCABULARY, EACH_OFTEN, LABELS, SETTINGS, reach)
    assert not {"prediction", "suppression"} & set(found["role"])
    assert found["role_relative"].to_list() == [None, None, "prediction", None, "suppression", None]
    assert found["class"][2] == found["class"][4] == "is_year"
    assert found["kurtosis_share"][2] > SETTINGS.kurtosis_share > found["kurtosis_share"][3]
    assert relative_roles(stats_of(weights), reach, RoleSettings(kurtosis_share=50)) == [None] * 6
