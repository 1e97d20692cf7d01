"""Studies of mixtures of experts: a copy whose experts and neurons stand in another order is found again, name by name."""

import copy
import json

import numpy as np
import polars as pl
import pytest
import torch
from conftest import CONTEXT, FEW_ROLES, small_tokenizer, tiny_network
from hand_site import STATIC

import universal_neurons as un
from universal_neurons.cli import main
from universal_neurons.errors import InputError
from universal_neurons.explorer import write_site
from universal_neurons.models import Model
from universal_neurons.progress import Reporter
from universal_neurons.study import make_sketch
from universal_neurons.units import Units, name_column, parse_unit, unit_name

pytest_plugins = ["visits"]
EXPERTS, EACH = 4, 16


def reordered(network, seed=3):
    """A copy with its experts, and the neurons of each and of all else, in another order; old names by new ones."""
    network = copy.deepcopy(network)
    chooser, names = np.random.default_rng(seed), {}
    for layer, block in enumerate(network.model.layers):
        mlp, sparse = block.mlp, hasattr(block.mlp, "experts")
        dense = getattr(mlp, "shared_expert", None) if sparse else mlp
        if dense is not None:
            order = chooser.permutation(dense.down_proj.weight.shape[1])
            for part in (dense.gate_proj, dense.up_proj):
                part.weight.copy_(part.weight[order].clone())
            dense.down_proj.weight.copy_(dense.down_proj.weight[:, order].clone())
            names |= {f"L{layer}.{new}": f"L{layer}.{old}" for new, old in enumerate(order)}
        if not sparse:
            continue
        experts = chooser.permutation(EXPERTS)
        mlp.gate.weight.copy_(mlp.gate.weight[experts].clone())
        gate_up, down = mlp.experts.gate_up_proj.clone(), mlp.experts.down_proj.clone()
        for new, old in enumerate(experts):
            order = chooser.permutation(EACH)
            mlp.experts.gate_up_proj[new] = gate_up[old][[*order, *(EACH + order)]]
            mlp.experts.down_proj[new] = down[old][:, order]
            names |= {f"L{layer}.E{new}.{place}": f"L{layer}.E{old}.{unit}" for place, unit in enumerate(order)}
    return network, names


@pytest.fixture(scope="module")
def networks():
    network = tiny_network("qwen2_moe")
    return network, *reordered(network)


@pytest.fixture(scope="module")
def pair(networks):
    return [Model(network, name, tokenizer=small_tokenizer()) for network, name in zip(networks[:2], "ab")]


@pytest.fixture(scope="module")
def tokens():
    chooser = np.random.default_rng(0)
    pieces = [("all", chooser.integers(1, 1024, CONTEXT - 1)) for _ in range(100)]
    return un.TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0,))


@pytest.fixture(scope="module")
def study(pair, tokens, tmp_path_factory):
    """The whole study, run of the models in memory."""
    out = tmp_path_factory.mktemp("experts") / "run"
    config = un.StudyConfig(out=str(out), pairs="all", draws=2, top_k=2, roles=FEW_ROLES, labels=("tokens", "unigrams"))
    return un.run_study(config, models=pair, tokens=tokens, progress=False)


def best(store, asker="a"):
    rows = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1))
    return rows.select(
        name_column().alias("name"), name_column("match_").alias("match"), "corr", "corr_heldout", "mutual"
    )


def test_every_unit_finds_itself_whatever_its_place(study, networks):
    found, names = best(study), networks[2]
    assert len(found) == 20 + EXPERTS * EACH + 24
    assert [names[match] for match in found["match"]] == found["name"].to_list()
    assert found["corr"].min() > 1 - 1e-5
    assert found["corr_heldout"].min() > 1 - 1e-5
    assert found["mutual"].all()
    functional = study.table("functional")
    assert functional["effect_corr"].min() > 0.999


def test_the_store_knows_the_units_again(study, pair):
    assert study.units["a"] == pair[0].units == Units((84, 24), ((EXPERTS, EACH), (0, 0)))
    rows = study.neurons.filter(pl.col("model") == "a")
    names = rows.select(name_column()).to_series().to_list()
    assert names == [unit_name(*pair[0].units.place_of(number)) for number in range(108)]
    neuron = study.neuron("b/L0.E1.3")
    assert (neuron.name, neuron.row["neuron"]) == ("b/L0.E1.3", 2_000_003)
    nearest = rows["layer_corr_neuron"].to_list()
    assert all(study.units["a"].has(layer, unit) for layer, unit in zip(rows["layer"], nearest))
    for wrong in ("L0.E4.0", "L0.E0.16", "L1.E0.0", "L0.20"):
        with pytest.raises(InputError, match="no such neuron"):
            study.neuron(wrong)


def test_columns_are_of_the_units_they_stand_beside(study, pair, networks):
    """Norms by hand of one expert's weights, which are folded; and the mean activation of the model's own pass."""
    block = networks[0].model.layers[0]
    rows = study.neurons.filter((pl.col("model") == "a") & (pl.col("layer") == 0))
    row = rows.row(by_predicate=pl.col("neuron") == 3_000_005, named=True)
    gain = block.post_attention_layernorm.weight.double()
    read = block.mlp.experts.gate_up_proj[2].double()
    assert row["w_in_norm"] == pytest.approx(float((read[5] * gain).norm()))
    assert row["w_up_norm"] == pytest.approx(float((read[EACH + 5] * gain).norm()))
    assert row["w_out_norm"] == pytest.approx(float(block.mlp.experts.down_proj[2, :, 5].double().norm()))


def test_it_is_shown_and_exported(study, tmp_path, capsys):
    assert main(["show", str(study.path), "L0.E1.3"]) in (0, None)
    assert "a/L0.E1.3" in capsys.readouterr().out
    assert main(["export", str(study.path), "--out", str(tmp_path / "csv"), "--csv"]) in (0, None)
    tables = [path.read_text() for path in (tmp_path / "csv").rglob("*.csv")]
    assert any(",L0.E1.3," in table for table in tables)
    assert study.universal(threshold=-2.0)["neuron"].str.contains("L0.E1.3").any()


def test_pages_name_experts(study, tmp_path, visit):
    site = write_site([study], tmp_path / "site", static=STATIC).parent
    visitor = visit(site)
    page = visitor.go("unit.html?u=0/L0.E1.3")
    match = best(study).filter(pl.col("name") == "L0.E1.3")["match"].item()
    assert page.inner_text("h1 .unit-name") == "L0.E1.3"
    assert match in page.inner_text("main")
    page.click("a[rel=next]")
    visitor.arrived()
    assert page.inner_text("h1 .unit-name") == "L0.E1.4"
    assert "No unit" in visitor.go("unit.html?u=0/L0.E4.3").inner_text("main")
    visitor.well()


SEARCHES = {
    "screened": {"search": "screened", "group_size": 4},
    "sketch": {"search": "sketch", "group_size": 4},
    "panels": {"panels": 3},
    "permutation": {"baseline": "permutation"},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_other_searches_find_the_same(search, study, pair, tokens, tmp_path):
    config = un.StudyConfig(
        out=str(tmp_path / "run"), pairs="all", draws=2, stages=("universality",), **SEARCHES[search]
    )
    found = best(un.run_study(config, models=pair, tokens=tokens, progress=False))
    assert found.select("name", "match").equals(best(study).select("name", "match"))
    assert found["corr"].min() > 0.99


def test_layers_of_unequal_width_have_the_baseline_of_each(study, pair, tokens):
    """Eq 3's baseline by hand: each layer of the other model times a random rotation of its own width."""
    from universal_neurons.matching.baselines import rotation

    chosen = tokens.split()[0]
    keep = tokens.mask(chosen).ravel()
    blocks = [model.activations(torch.from_numpy(tokens.ids(chosen))).flatten(0, 1)[keep].double() for model in pair]
    signs = torch.where(blocks[1].mean(0) < 0, -1.0, 1.0)  # a gated neuron is rotated as its mean is positive
    asker, other = (block - block.mean(0) for block in (blocks[0], blocks[1] * signs))
    maxima = []
    for draw in range(2):
        layers = [layer @ rotation("rotation", layer.shape[1], 0, draw).T for layer in other.split((84, 24), 1)]
        turned = torch.cat(layers, 1)
        rho = (asker / asker.norm(dim=0)).T @ (turned / turned.norm(dim=0))
        maxima.append(rho.abs().amax(1))
    expected = torch.stack(maxima).mean(0)
    found = study.neurons.filter(pl.col("model") == "a")["mean_baseline"].to_numpy()
    alive = ~study.neurons.filter(pl.col("model") == "a")["dead"].to_numpy()
    np.testing.assert_allclose(found[alive], expected.numpy()[alive], rtol=1e-3, atol=1e-4)


def test_sketches_of_files_carry_the_experts(networks, text_file, tmp_path):
    files = []
    for network, name in zip(networks[:2], "ab"):
        network.save_pretrained(tmp_path / name)
        small_tokenizer().save_pretrained(tmp_path / name)
        files.append(str(tmp_path / f"{name}.safetensors"))
        config = un.StudyConfig(
            models=(str(tmp_path / name),), data=str(text_file), out=files[-1], search="sketch", group_size=4
        )
        make_sketch(config, reporter=Reporter(quiet=True))
    config = un.StudyConfig(models=tuple(files), out=str(tmp_path / "run"), draws=2, search="sketch")
    store = un.run_study(config, progress=False)
    found = best(store)
    assert [networks[2][match] for match in found["match"]] == found["name"].to_list()
    assert parse_unit(found["name"][30]) is not None


def test_manifests_whose_experts_do_not_fit_are_refused(study, tmp_path):
    from universal_neurons.errors import StoreConflictError
    from universal_neurons.storage.manifest import read_manifest

    manifest = json.loads((study.path / "study.json").read_text())
    assert read_manifest(study.path / "study.json") is not None
    for wrong in (
        {"experts": [[9, 16], [0, 0]]}, {"experts": [[4, 16]]}, {"widths": [84]}, {"widths": []}, {"d_mlp": 85},
        {"experts": [[3000, 0], [0, 0]]}, {"experts": [[4], [0, 0]]}, {"experts": [[-1, 16], [0, 0]]}, {"widths": [84, 2_000_000], "d_mlp": 2_000_000},
    ):  # fmt: skip
        changed = manifest | {"models": [manifest["models"][0] | wrong, manifest["models"][1]]}
        (tmp_path / "study.json").write_text(json.dumps(changed))
        with pytest.raises(StoreConflictError, match="not readable as a manifest"):
            read_manifest(tmp_path / "study.json")
