"""The sign of a gated neuron is nobody's choice: a model whose neurons were negated at random gives the same answers."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from conftest import CONTEXT, FEW_ROLES, small_tokenizer, tiny_model, tiny_network
from polars.testing import assert_frame_equal

import universal_neurons as un
from universal_neurons.cli import main
from universal_neurons.errors import ArchitectureError
from universal_neurons.models import Model, is_gated, quiet_transformers
from universal_neurons.progress import Reporter
from universal_neurons.report.facts import facts
from universal_neurons.report.summary import match_cells
from universal_neurons.storage import StoreWriter
from universal_neurons.study import make_sketch

PLACE = ["model", "layer", "neuron"]
NEGATED = ["activation_mean", "in_out_sim", "in_up_sim", "vocab_mean", "vocab_skew"]  # with the neuron
OF_RAW_WEIGHTS = ["out_cos_max", "out_cos_min", "in_out_sim_percentile"]  # of the signs that neurons happen to have
UNIVERSALITY = ("universality",)
EASY_ROLES = FEW_ROLES.model_copy(
    update={
        "attention_pairs": 6,
        "kurtosis": 2.5,
        "mediated": 0.1,
        "frequency": 0.1,
        "attention_deviations": 0.2,
        "attention_corr": 0.02,
        "attention_effect": 0.0,
        "attention_sink": 1e-3,
    }
)


def negated(network, seed):
    """A copy with (w_up, w_out) of random neurons negated, and every neuron's sign."""
    network = copy.deepcopy(network)
    signs = np.where(np.random.default_rng(seed).random((2, 24)) < 0.5, -1.0, 1.0)
    for block, of_layer in zip(network.model.layers, torch.from_numpy(signs).float()):
        block.mlp.up_proj.weight.mul_(of_layer[:, None])
        block.mlp.down_proj.weight.mul_(of_layer)
    return network, signs.ravel()


def perturbed(network):
    network = copy.deepcopy(network)
    torch.manual_seed(5)
    for parameter in network.parameters():
        parameter.add_(0.03 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def networks():
    """A model, one like it with signs of its own, the first negated at random; the latter's signs."""
    original = tiny_network("llama", 0)
    original.model.embed_tokens.weight[0] = torch.randn(16)  # BOS, whose embedding pads: no key of nothing
    flipped, signs = negated(original, 1)
    return original, negated(perturbed(original), 2)[0], flipped, signs


def named(network, name):
    return Model(copy.deepcopy(network), name, tokenizer=small_tokenizer())


def study(models, text, out, **settings):
    common = {"out": str(out), "draws": 3, "pairs": "all", "top_k": 3, "threshold": 0.2}
    tokens = None
    if "subset" in settings:
        tokens = in_two_subsets()
    else:
        common["data"] = str(text)
    return un.run_study(un.StudyConfig(**common | settings), models=models, tokens=tokens, progress=False)


def in_two_subsets():
    chooser = np.random.default_rng(0)
    pieces = [("xy"[row % 2], chooser.integers(1, 1024, CONTEXT - 1)) for row in range(120)]
    return un.TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0,))


@pytest.fixture(scope="module")
def studies(networks, text_file, tmp_path_factory):
    """Studies of the original and of the negated model, each beside the same two others; by the search's settings."""
    original, relative, flipped, _ = networks
    made = {}

    def of(**settings):
        key = tuple(settings.items())
        if key not in made:
            out = tmp_path_factory.mktemp("signs")
            made[key] = [
                study(
                    [named(first, "a"), named(relative, "b"), tiny_model("gpt2", 1, "c")],
                    text_file,
                    out / name,
                    **settings,
                )
                for name, first in (("original", original), ("flipped", flipped))
            ]
        return made[key]

    return of


SEARCHES = {
    "exact": {"labels": ("tokens", "unigrams", "position"), "roles": EASY_ROLES},
    "screened": {"search": "screened", "group_size": 4, "stages": UNIVERSALITY},
    "sketch": {"search": "sketch", "group_size": 4, "stages": UNIVERSALITY},
    "panels, subsets": {"panels": 2, "subset": ("all",), "stages": UNIVERSALITY},
    "permutation": {"baseline": "permutation", "stages": UNIVERSALITY},
}


def sign_of(table, signs, model, prefix=""):
    """The sign of each row's neuron: that of the negated model's, 1 of others."""
    flat = 24 * table[f"{prefix}layer"].to_numpy() + table[f"{prefix}neuron"].to_numpy()
    return np.where((table[model] == "a").to_numpy(), signs[flat], 1.0)


@pytest.mark.parametrize("search", SEARCHES)
def test_partners_and_layers_are_the_same_with_the_sign_of_the_neuron(studies, networks, search):
    original, flipped = (store.table("one_to_one") for store in studies(**SEARCHES[search]))
    assert original.drop("corr", "cost").equals(flipped.drop("corr", "cost"))
    paired = (original["rank"].is_not_null()).to_numpy()
    one, other = original.filter(paired), flipped.filter(paired)
    sign = sign_of(one, networks[3], "asker") * sign_of(one, networks[3], "match_model", "match_")
    np.testing.assert_allclose(other["corr"].to_numpy(), sign * one["corr"].to_numpy(), atol=1e-6)
    for name in ("consistency", "consistency_levels", *(["similarity"] if search == "exact" else [])):
        one, other = (store.table(name) for store in studies(**SEARCHES[search]))
        assert_frame_equal(one, other, check_exact=False, abs_tol=2e-6)


@pytest.mark.parametrize("search", SEARCHES)
def test_matches_are_the_same_with_the_sign_of_the_neuron(studies, networks, search):
    original, flipped = (store.matches.filter(pl.col("rank") > 0) for store in studies(**SEARCHES[search]))
    signs = networks[3]
    same = ["asker", "layer", "neuron", "match_model", "rank", "match_layer", "match_neuron", "mutual", "certified"]
    assert original.select(same).equals(flipped.select(same))
    sign = sign_of(original, signs, "asker") * sign_of(original, signs, "match_model", "match_")
    assert (sign < 0).any()
    first = (original["rank"] == 1).to_numpy()
    for column in ("corr", "corr_heldout", "corr_within_tokens"):
        expected, found = original[column].to_numpy(), flipped[column].to_numpy()
        np.testing.assert_allclose(found[first], (sign * expected)[first], atol=1e-6)
    ranks, sign_of_ranks = (store["corr_ranks"].to_numpy()[first] for store in (flipped, original))
    np.testing.assert_allclose(ranks, sign[first] * sign_of_ranks, atol=0.02)  # classes of ranks begin at lower ends
    low, high = original["corr_low"].to_numpy(), original["corr_high"].to_numpy()
    np.testing.assert_allclose(flipped["corr_low"].to_numpy()[first], np.where(sign > 0, low, -high)[first], atol=1e-5)
    related = original.filter((pl.col("rank") == 1) & (pl.col("asker") != "c") & (pl.col("match_model") != "c"))
    assert ((related["match_neuron"] == related["neuron"]) & (related["match_layer"] == related["layer"])).mean() > 0.7
    assert 0.2 < (related["corr"] < 0).mean() < 0.8
    if search == "screened":
        assert 0 < original["certified"].sum() < first.sum()


@pytest.mark.parametrize("search", SEARCHES)
def test_the_neuron_table_is_the_same(studies, networks, search):
    original, flipped = (store.neurons for store in studies(**SEARCHES[search]))
    sign = sign_of(original, networks[3], "model")
    for column in NEGATED:
        if original[column].null_count() < len(original):
            expected = np.where(original[column].is_null(), np.nan, original[column].to_numpy() * sign)
            np.testing.assert_allclose(flipped[column].to_numpy(), expected, atol=1e-6)
    excepted = [*NEGATED, *OF_RAW_WEIGHTS]
    assert_frame_equal(original.drop(excepted), flipped.drop(excepted), abs_tol=1e-5)
    assert 0 < original["is_universal"].sum() < len(original)


@pytest.mark.parametrize("search", SEARCHES)
def test_convergence_and_the_layer_profile_are_the_same(studies, search):
    original, flipped = studies(**SEARCHES[search])
    assert original.layers.equals(flipped.layers)
    assert_frame_equal(original.convergence, flipped.convergence, abs_tol=1e-5)
    assert original.has("subsets") == (search == "panels, subsets")
    if original.has("subsets"):
        assert_frame_equal(original.subsets, flipped.subsets, abs_tol=1e-5)


def test_labels_are_the_same(studies):
    original, flipped = studies(**SEARCHES["exact"])
    assert_frame_equal(original.labels, flipped.labels, abs_tol=1e-6)
    assert original.neurons["family"].n_unique() > 2
    assert set(original.labels.filter(pl.col("model") == "a")["sign"]) == {-1, 1}


ROLE_TABLES = (
    "effects", "ensembles", "interventions", "ablations", "heads", "attention", "functional", "functional_gains",
    "costs", "effect_histograms", "class_histograms", "head_scores", "attention_samples",
)  # fmt: skip


@pytest.mark.parametrize("name", ROLE_TABLES)
def test_roles_are_the_same(studies, networks, name):
    original, flipped = studies(**SEARCHES["exact"])
    mine, theirs = original.table(name), flipped.table(name)
    if name == "effects":
        sign = sign_of(mine, networks[3], "model")
        np.testing.assert_array_equal(theirs["orientation"], mine["orientation"].to_numpy() * sign)
        assert (mine["orientation"] < 0).any()
        assert (mine.filter(pl.col("model") == "c")["orientation"] == 1).all()
        mine, theirs = mine.drop("orientation"), theirs.drop("orientation")
    if name == "functional":
        mine, theirs = (table.with_columns(pl.col("corr", "second_corr").abs()) for table in (mine, theirs))
    assert_frame_equal(mine, theirs, abs_tol=1e-4)


def test_neurons_of_either_orientation_have_roles(studies):
    original, _ = studies(**SEARCHES["exact"])
    both = original.neurons.join(original.table("effects"), on=PLACE).filter(pl.col("model") == "a")
    for orientation in (-1, 1):
        roles = set(both.filter(pl.col("orientation") == orientation)["roles"].explode().drop_nulls())
        assert {"prediction", "suppression", "partition"} & roles, roles
    assert {"attention_deactivation", "attention_activation"} & set(both["roles"].explode())
    assert "a" in original.table("ensembles")["model"]


def test_orientation_is_that_of_the_mean_activation(studies):
    for store in studies(**SEARCHES["exact"]):
        both = store.neurons.join(store.table("effects"), on=PLACE).filter(pl.col("model") != "c")
        np.testing.assert_array_equal(both["orientation"] < 0, both["activation_mean"] < 0)


def test_matches_that_fire_by_opposite_signs_act_alike(studies):
    for store in studies(**SEARCHES["exact"]):
        table = store.table("functional").filter(
            (pl.col("match_model") == "b") & (pl.col("match_neuron") == pl.col("neuron"))
        )
        assert len(table) > 3
        assert (table["corr"] < 0).any()
        assert (table["effect_corr"] > 0.8).all()


def test_the_lowest_activations_take_the_place_of_the_highest(studies, networks):
    original, flipped = (store.examples for store in studies(**SEARCHES["exact"]))
    signs = networks[3]
    for table in (original, flipped):
        assert set(table.filter(pl.col("model") == "c")["band"]) == set(table["band"]) - {"bottom"}
    of_a = original.filter((pl.col("model") == "a") & pl.col("band").is_in(["top", "bottom"]))
    swapped = pl.when(pl.Series(sign_of(of_a, signs, "model")) < 0).then(
        pl.col("band").replace({"top": "bottom", "bottom": "top"})
    )
    expected = of_a.with_columns(
        band=swapped.otherwise("band"),
        activation=pl.col("activation") * pl.Series(sign_of(of_a, signs, "model")).cast(pl.Float32),
    )
    key = [*PLACE, "band", "rank"]
    found = flipped.join(expected, on=key, suffix="_expected")
    assert len(found) == len(of_a)
    for column in ("row", "position", "activation"):
        np.testing.assert_allclose(found[column], found[f"{column}_expected"], rtol=2e-3)
    lowest = original.filter(pl.col("band") == "bottom")
    shown = lowest["activations"].list.eval(pl.element().fill_nan(None)).list.min()
    np.testing.assert_allclose(shown, lowest["activation"], rtol=2e-3)  # shown to three digits


def test_tokens_are_those_of_the_largest_mean_activation_of_either_sign(studies, networks):
    original, flipped = (store.table("tokens") for store in studies(**SEARCHES["exact"]))
    assert original.drop("mean_activation").equals(flipped.drop("mean_activation"))
    sign = sign_of(original, networks[3], "model")
    np.testing.assert_allclose(flipped["mean_activation"], original["mean_activation"] * sign, atol=1e-6)
    size = (
        original.filter(pl.col("model") != "c")
        .group_by(*PLACE, maintain_order=True)
        .agg(falls=pl.col("mean_activation").abs().diff().max() <= 0)
    )
    assert size["falls"].all()
    assert (original.filter(pl.col("model") == "a")["mean_activation"] < 0).any()


def test_a_negated_model_is_matched_to_itself(networks, text_file, tmp_path):
    original, _, flipped, signs = networks
    for search in ("exact", "screened"):
        settings = {"search": search, "stages": UNIVERSALITY} | ({"group_size": 4} if search == "screened" else {})
        store = study([named(original, "a"), named(flipped, "f")], text_file, tmp_path / search, **settings)
        best = store.matches.filter(pl.col("rank") == 1)
        alive = store.neurons.filter(~pl.col("dead"))
        assert len(best) == len(alive) > 90
        assert (best["layer"] == best["match_layer"]).all()
        assert (best["neuron"] == best["match_neuron"]).all()
        assert best["mutual"].all()
        flat = 24 * best["layer"].to_numpy() + best["neuron"].to_numpy()
        np.testing.assert_allclose(best["corr"], signs[flat], atol=1e-6)
        np.testing.assert_allclose(best["corr_heldout"], signs[flat], atol=1e-6)
        np.testing.assert_allclose(alive["max_corr"], 1, atol=1e-6)
        np.testing.assert_allclose(alive["excess_heldout"], 1 - alive["mean_baseline"], atol=0.15)  # that of other rows


@pytest.fixture(scope="module")
def saved(networks, tmp_path_factory):
    """The original, the negated model and one like them, as folders."""
    root = tmp_path_factory.mktemp("saved")
    folders = {}
    for name, network in zip(("original", "relative", "flipped"), networks):
        folders[name] = root / name
        with quiet_transformers():
            network.save_pretrained(folders[name])
            small_tokenizer().save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("search", ["sketch", "screened"])
def test_sketches_in_files_know_that_their_models_are_gated(saved, networks, text_file, tmp_path, search):
    made = {}
    for name, folder in saved.items():
        made[name] = tmp_path / f"{name}.safetensors"
        config = un.StudyConfig(
            models=(str(folder),), data=str(text_file), out=str(made[name]), search="sketch", group_size=4
        )
        make_sketch(config, reporter=Reporter(quiet=True))
    tables = []
    for name in ("original", "flipped"):
        models = (str(made[name]), str(made["relative"]))
        config = un.StudyConfig(models=models, out=str(tmp_path / f"run-{name}"), draws=2, search=search)
        store = un.run_study(config, progress=False)
        assert store.gated == {name, "relative"}
        tables.append((store.neurons.drop("model"), store.matches.filter(pl.col("rank") == 1)))
    (neurons, matches), (flipped_neurons, flipped_matches) = tables
    flat = 24 * matches["layer"].to_numpy() + matches["neuron"].to_numpy()
    np.testing.assert_allclose(flipped_matches["corr"], matches["corr"] * networks[3][flat], atol=1e-5)
    assert (matches["corr"] < 0).any()
    places = ["layer", "neuron", "match_layer", "match_neuron", "mutual", "certified"]
    assert flipped_matches.select(places).equals(matches.select(places))
    assert_frame_equal(neurons.drop("activation_mean"), flipped_neurons.drop("activation_mean"), abs_tol=1e-5)
    sign = np.concatenate([networks[3], np.ones(48)])
    np.testing.assert_allclose(flipped_neurons["activation_mean"], neurons["activation_mean"] * sign, atol=1e-6)


def test_a_family_that_nobody_knows_may_be_gated_or_not():
    assert is_gated("Llama", "a sketch")
    assert not is_gated("GPT-2", "a sketch")
    with pytest.raises(ArchitectureError, match="a sketch: of an unknown architecture"):
        is_gated("GPT-9", "a sketch")


def test_roles_of_a_study_without_mean_activations_take_those_of_the_sample(saved, text_file, tmp_path):
    """A study as an earlier version left it: no column, the same roles from the held-out rows' means."""
    config = un.StudyConfig(
        models=(str(saved["original"]),),
        data=str(text_file),
        out=str(tmp_path / "run"),
        stages=("weights", "statistics", "roles"),
        roles=EASY_ROLES,
    )
    store = un.run_study(config, progress=False)
    expected = store.table("effects")
    with StoreWriter(store.path) as writer:
        writer.replace({"neurons": store.neurons.drop("activation_mean")}, store.manifest)
    later = un.study_roles(store.path)
    assert "activation_mean" not in later.neurons.columns
    found = later.table("effects")
    assert (found["orientation"] == expected["orientation"]).mean() > 0.9  # other rows: means near 0 may differ
    assert (found["orientation"] < 0).any()


def test_what_is_shown_says_the_sign_of_a_match_and_both_tails(studies, capsys):
    store, _ = studies(**SEARCHES["exact"])
    best = store.matches.filter((pl.col("rank") == 1) & (pl.col("asker") == "a") & (pl.col("match_model") == "b"))
    row = best.sort("corr").row(0, named=True)
    assert row["corr"] < -0.5
    main(["show", str(store.path), f"L{row['layer']}.{row['neuron']}"])
    said = capsys.readouterr().out
    assert f"{row['corr']:.3f}".replace("-", "−") in said
    assert "Highest activations" in said
    assert "Lowest activations" in said
    main(["show", str(store.path), "c/L0.3"])
    assert "Lowest activations" not in capsys.readouterr().out
    shown = store.neurons.filter(pl.col("model") == "a")
    cells = [
        cell for by_model in match_cells(store, "a", shown, intervals=False).values() for cell in by_model.values()
    ]
    assert any(" −0." in cell for cell in cells)
    lost = (best["corr"] - best["corr_heldout"]) * best["corr"].sign()
    assert abs(lost.mean()) < 0.1
    everything = store.matches.filter((pl.col("rank") == 1) & (pl.col("asker") == "a"))
    expected = ((everything["corr"] - everything["corr_heldout"]) * everything["corr"].sign()).mean()
    assert facts(store, "a").optimism == pytest.approx(expected)
    assert facts(store, "a").optimism > 0
