"""The neurons that figures show: the best of each family, and what is kept of their activations."""

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_model
from test_correlation import some_tokens
from test_study import quiet

import universal_neurons.study.shown as shown_module
from universal_neurons import StudyConfig
from universal_neurons.study import ranking, same_label
from universal_neurons.study.shown import choose_shown
from universal_neurons.units import Units


def table(**columns):
    n = len(columns["family"])
    missing = {"is_universal": [None] * n, "excess_corr": [None] * n, "label": ["x"] * n}
    schema = {"is_universal": pl.Boolean, "excess_corr": pl.Float64}
    places = {"layer": [0] * n, "neuron": list(range(n))}
    return pl.DataFrame(places | missing | columns, schema_overrides=schema)


def test_universal_neurons_come_first_and_by_what_their_label_explains():
    neurons = table(
        family=["syntax"] * 3, is_universal=[True, False, True], excess_corr=[0.9, 0.1, 0.6],
        variance_reduction=[0.2, 0.8, 0.5],
    )  # fmt: skip
    ranked, why = ranking(neurons)
    assert ranked["neuron"].to_list() == [2, 0, 1]
    assert why == "universal ones first"


def test_where_none_is_universal_the_best_by_excess_and_said_so():
    neurons = table(
        family=["syntax"] * 3, is_universal=[False] * 3, excess_corr=[0.1, float("nan"), 0.3],
        variance_reduction=[0.9, 0.8, 0.5],
    )  # fmt: skip
    ranked, why = ranking(neurons)
    assert ranked["neuron"].to_list() == [2, 0, 1]
    assert "none universal" in why
    ranked, why = ranking(
        neurons.with_columns(excess_corr=pl.lit(None, pl.Float64), is_universal=pl.lit(None, pl.Boolean))
    )
    assert ranked["neuron"].to_list() == [0, 1, 2]
    assert why == "by variance reduction"


def test_duplicates_share_the_commonest_label():
    neurons = table(
        family=["unigram"] * 4 + ["alphabet"], label=["on", "of", "on", "the", "on"],
        variance_reduction=[0.3, 0.9, 0.4, 0.8, 0.99],
    )  # fmt: skip
    assert same_label(neurons)["neuron"].to_list() == [2, 0]
    chosen = choose_shown(neurons, np.arange(5), Units.equal(1, 5))
    assert chosen.neurons.tolist() == [0, 1, 2, 3, 4]
    assert not chosen.pre.any()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    model, tokens = tiny_model("gpt2", 0, "m"), some_tokens(300)
    config = StudyConfig(out=str(tmp_path_factory.mktemp("s") / "r"), stages=("labels",), labels=("tokens", "position"),
                         unexplained=0.01)  # fmt: skip
    return quiet(config, models=[model], tokens=tokens), model, tokens


def test_details_are_the_activations_and_labels_of_the_shown_neurons(study):
    store, model, tokens = study
    details = store.table("details")
    rows, positions = details["row"].to_numpy(), details["position"].to_numpy()
    heldout = np.concatenate(tokens.split()[1])
    assert set(rows) == set(heldout.tolist())
    assert (details["token"].to_numpy() == tokens.ids(rows)[np.arange(len(rows)), positions]).all()
    known = np.unique(rows)
    values = model.activations(torch.from_numpy(tokens.ids(known))).numpy()
    pre = model.activations(torch.from_numpy(tokens.ids(known)), pre_activations=True).numpy()
    names = [name for name in details.columns if f"{name} label" in details.columns]
    assert names
    table = {f"L{row['layer']}.{row['neuron']}": row for row in store.neurons.iter_rows(named=True)}
    for name in names:
        row = table[name]
        flat = 24 * row["layer"] + row["neuron"]
        at = (np.searchsorted(known, rows), positions, flat)
        np.testing.assert_allclose(details[name], values[at], atol=1e-5)
        if f"{name} pre" in details.columns:
            np.testing.assert_allclose(details[f"{name} pre"], pre[at], atol=1e-5)
        if row["label"] != "position" and np.isfinite(row["variance_reduction_heldout"]):
            rho = np.corrcoef(details[name], details[f"{name} label"])[0, 1]
            signed = max(0.0, np.sign(rho) * row["label_sign"]) * rho**2
            assert signed == pytest.approx(row["variance_reduction_heldout"], abs=1e-5)


def test_details_stay_small_and_spread_over_the_text(study, tmp_path, monkeypatch):
    _, model, tokens = study
    monkeypatch.setattr(shown_module, "MOST_TOKENS", 900)
    config = StudyConfig(out=str(tmp_path / "r"), stages=("labels",), labels=("position",), unexplained=0.0)
    details = quiet(config, models=[model], tokens=tokens).table("details")
    heldout = np.concatenate(tokens.split()[1])
    assert 300 < len(details) <= 900
    assert details["row"].max() > np.quantile(heldout, 0.8)
