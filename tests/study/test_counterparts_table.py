"""Counterparts of a study, against the models' own activations and a choice of windows by NumPy."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from conftest import save_tiny, small_tokenizer, some_text, tiny_model, tiny_network
from polars.testing import assert_frame_equal
from test_correlation import some_tokens
from test_studies_of_spans import letters_of
from test_study import contents, quiet

from universal_neurons import Model, StudyConfig, make_sketch
from universal_neurons.matching import Counterparts
from universal_neurons.progress import Reporter
from universal_neurons.statistics import AFTER, BANDS, BEFORE, QUANTILES, Key, seed_of
from universal_neurons.storage import Store
from universal_neurons.study import decide
from universal_neurons.study.detail import DetailPass
from universal_neurons.study.estimate import COUNTERPART_DISK_BYTES
from universal_neurons.study.memory import counterparts, memory_plan
from universal_neurons.study.resolve import resolve
from universal_neurons.text import Passages

K = 3
STAGES = ("statistics", "universality")
PLACE = ["asker", "layer", "neuron"]


def three_models():
    return [tiny_model("gpt2", 0, "m0"), tiny_model("llama", 0, "gated"), tiny_model("gpt2", 1, "m1")]


@pytest.fixture(scope="module")
def tokens():
    return some_tokens(400)


def study(folder, tokens, models=None, **settings):
    given = {"stages": STAGES, "draws": 2, "examples": K, "top_k": 2} | settings
    return quiet(StudyConfig(out=str(folder / "run"), **given), models=models or three_models(), tokens=tokens)


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory) -> Store:
    return study(tmp_path_factory.mktemp("counterparts"), tokens, pairs="all", subset=("all",))


def own_activations(models, tokens, rows):
    """Every model's at all positions of some rows, NaN where a position is not counted."""
    counted = torch.from_numpy(tokens.mask(rows))[..., None]
    ids = torch.from_numpy(tokens.ids(rows))
    return {m.name: m.activations(ids).double().where(counted, torch.nan).numpy() for m in models}


def matches_of(store):
    """By asker, neuron and other model the number of the best match."""
    best = store.matches.filter(pl.col("rank") == 1)
    places = best.select(*PLACE, "match_model", "match_layer", "match_neuron").iter_rows()
    return {(asker, 24 * layer + n, model): 24 * there + m for asker, layer, n, model, there, m in places}


def require_own(store, values, rows):
    """Every window is what the models' own activations are there, to 1e-5 of their scale."""
    number = {row: place for place, row in enumerate(rows.tolist())}
    scale = {name: np.nanmax(np.abs(of_model)) for name, of_model in values.items()}
    matches, table = matches_of(store), store.table("counterparts")
    assert len(table)
    for window in table.iter_rows(named=True):
        neuron, asker = 24 * window["layer"] + window["neuron"], window["asker"]
        row, stop = number[window["row"]], window["start"] + len(window["activations"])
        assert window["start"] == max(window["position"] - BEFORE, 0)
        assert stop <= window["position"] + AFTER + 1
        shown = [(asker, neuron, window["activations"])]
        others = [name for name in store.models if name != asker]
        assert len(window["match_activations"]) == len(others)
        shown += [(m, matches[asker, neuron, m], v) for m, v in zip(others, window["match_activations"])]
        for model, unit, activations in shown:
            expected = values[model][row, window["start"] : stop, unit]
            np.testing.assert_allclose(np.array(activations) / scale[model], expected / scale[model], atol=1e-5)
        assert window["activation"] == window["activations"][window["position"] - window["start"]]


def test_windows_hold_what_the_models_do_there(whole, tokens):
    held = np.concatenate(tokens.split()[1])
    require_own(whole, own_activations(three_models(), tokens, held), held)
    for row, start, ids in whole.side_by_side.select("row", "start", "tokens").unique(("row", "start")).iter_rows():
        assert tokens.ids(np.array([row]))[0, start : start + len(ids)].tolist() == ids
    assert whole.side_by_side["asker"].unique(maintain_order=True).to_list() == ["m0", "gated", "m1"]


def bounds_by_numpy(model, tokens):
    """Quantiles of some rows spread over those that choose."""
    chosen = tokens.split()[0]
    rows = chosen[np.unique(np.linspace(0, len(chosen) - 1, 4096 // tokens.context).astype(int))]
    values = own_activations([model], tokens, rows)[model.name]
    ranked = np.sort(values[tokens.mask(rows)], 0)
    return ranked[[int(q * len(ranked)) for q in QUANTILES]]


@pytest.mark.parametrize("name", ["m0", "gated"])
def test_windows_are_those_that_numpy_chooses_among_held_out_rows(whole, tokens, name):
    held = np.sort(np.concatenate(tokens.split()[1]))
    model = next(one for one in three_models() if one.name == name)
    values, bounds = own_activations([model], tokens, held)[name], bounds_by_numpy(model, tokens)
    hashes = [seed_of("example", whole.config.seed, row) for row in held.tolist()]
    counted = [np.flatnonzero(mask) for mask in tokens.mask(held)]
    at = np.array([where[h % len(where)] for h, where in zip(hashes, counted)])
    sampled = values[np.arange(len(held)), at]
    table = whole.side_by_side.filter(pl.col("asker") == name)
    assert set(table["band"].unique()) == {*BANDS} | ({"bottom"} if name == "gated" else set())
    for (layer, neuron), of_neuron in table.group_by("layer", "neuron"):
        unit, bands = 24 * layer + neuron, dict(iter(of_neuron.group_by("band", maintain_order=True)))
        for band, sign in (("top", -1), ("bottom", 1)):
            if (band,) in bands:
                extremes = np.nanmin(sign * values[:, :, unit], 1)
                best = np.lexsort((held, extremes))[:K]
                np.testing.assert_allclose(bands[(band,)]["activation"], sign * extremes[best], atol=1e-5)
                assert bands[(band,)]["row"].to_list() == held[best].tolist()
        for number, band in enumerate(BANDS[1:]):
            inside = (sampled[:, unit] >= bounds[number, unit]) & (sampled[:, unit] < bounds[number + 1, unit])
            if np.abs(sampled[:, [unit]] - bounds[:, unit]).min() < 1e-5:
                continue
            chosen = sorted(np.flatnonzero(inside), key=lambda place: hashes[place] >> 24)[:K]
            kept = bands.get((band,), table.clear())
            assert kept["row"].to_list() == held[chosen].tolist()
            assert kept["position"].to_list() == at[chosen].tolist()
    assert table["rank"].max() == K
    ranks = table.select(pl.int_range(pl.len()).over(*PLACE, "band") + 1).to_series()
    assert table["rank"].to_list() == ranks.to_list()


def test_only_the_reference_is_shown_by_default(whole, tokens, tmp_path):
    store = study(tmp_path, tokens)
    assert_frame_equal(store.side_by_side, whole.side_by_side.filter(pl.col("asker") == "m0"))


@pytest.mark.parametrize("settings", [{"panels": 3, "lanes": 2}, {"batch_tokens": 300}], ids=str)
def test_however_the_study_is_made_its_counterparts_are_the_same(whole, tokens, tmp_path, settings):
    made = study(tmp_path, tokens, pairs="all", **settings).side_by_side
    assert_frame_equal(made, whole.side_by_side, abs_tol=1e-5, rel_tol=1e-5)


def test_a_screened_search_shows_the_matches_that_it_found(whole, tokens, tmp_path):
    store = study(tmp_path, tokens, search="screened", batch_tokens=700)
    held = np.concatenate(tokens.split()[1])
    require_own(store, own_activations(three_models(), tokens, held), held)
    places = [*PLACE, "band", "rank", "row", "position"]
    assert_frame_equal(store.side_by_side[places], whole.side_by_side.filter(pl.col("asker") == "m0")[places])


def test_an_interrupted_detail_pass_ends_with_the_same_bytes(tokens, tmp_path, monkeypatch):
    undisturbed = study(tmp_path / "once", tokens)
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 4096)
    read = DetailPass.read

    def interrupted(self, statistics):
        raise KeyboardInterrupt

    monkeypatch.setattr(DetailPass, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "again", tokens)
    monkeypatch.setattr(DetailPass, "read", read)
    resumed = study(tmp_path / "again", tokens)
    again = contents(resumed)
    assert again["counterparts.parquet"] == contents(undisturbed)["counterparts.parquet"]
    assert "counterparts" in resumed.manifest["tables"]


def test_rounded_products_do_not_round_what_is_shown(tokens, tmp_path):
    store = study(tmp_path, tokens, gemm_dtype="bfloat16")
    held = np.concatenate(tokens.split()[1])
    require_own(store, own_activations(three_models(), tokens, held), held)


def test_of_spans_they_are_what_the_spans_tokens_are_pooled_to(tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": some_text(100, seed)}) for seed in range(20)))
    tokenizers = {"words": small_tokenizer(), "letters": letters_of(text)}
    pair = [Model(tiny_network("gpt2", n), name, tokenizer=t) for n, (name, t) in enumerate(tokenizers.items())]
    config = StudyConfig(
        data=str(text), out=str(tmp_path / "run"), context=32, draws=2, stages=STAGES, examples=K, pairs="all"
    )
    store = quiet(config, models=pair)
    passages = Passages.load(store.config, tokenizers, context=32)
    held = np.concatenate(passages.split()[1])
    require_own(store, {m.name: pooled(m, passages, held) for m in pair}, held)
    row = store.side_by_side.row(0, named=True)
    ids = passages.ids(np.array([row["row"]]))[0, row["start"] :][: len(row["tokens"])]
    assert row["tokens"] == ids.tolist()


def pooled(model, passages, rows):
    """The mean activation of every counted span's tokens, by a loop; NaN of others."""
    tokens = passages.tokens_of(model.name)
    values = model.activations(torch.from_numpy(tokens.ids(rows))).double().numpy()
    numbers, mask, counted = passages.numbers(model.name, rows), tokens.mask(rows), passages.mask(rows)
    out = np.full((*counted.shape, values.shape[2]), np.nan)
    for row, span in zip(*np.nonzero(counted)):
        out[row, span] = values[row][(numbers[row] == span) & mask[row]].mean(0)
    return out


def test_dead_neurons_have_no_counterparts(tokens, tmp_path):
    models = three_models()
    for parameter in (
        models[0].hf.transformer.h[0].mlp.c_fc.weight[:, 3],
        models[0].hf.transformer.h[0].mlp.c_fc.bias[3],
    ):
        parameter.zero_()
    store = study(tmp_path, tokens, models)
    shown = store.side_by_side.select("layer", "neuron").unique()
    assert len(shown) == 47
    assert (0, 3) not in shown.rows()


@pytest.mark.parametrize("stages", [("universality",), ("statistics",)], ids=str)
def test_without_statistics_and_universality_there_are_none(tokens, tmp_path, stages):
    assert not study(tmp_path, tokens, stages=stages).has("counterparts")


@pytest.mark.parametrize("pairs", ["reference", "all"])
def test_the_plan_has_room_for_them_in_memory_and_on_disk(whole, pairs):
    models = three_models()
    given = {"stages": STAGES, "pairs": pairs, "examples": K}
    settings = resolve(decide(StudyConfig(**given), len(models)), models)
    askers = models if pairs == "all" else models[:1]
    match = torch.zeros(2, 48, dtype=torch.int64)
    made = [Counterparts(Key("a"), [Key("b"), Key("c")], match, k=K, both_tails=m.gated).nbytes() for m in askers]
    alone = settings.model_copy(update={"stages": ("universality",)})
    more = memory_plan(settings, models).detail - memory_plan(alone, models).detail
    assert 2 * sum(made) - 2**13 < more < 4 * sum(made)
    assert counterparts(alone, models) == []
    windows = sum(model.n_neurons * many for model, many in counterparts(settings, models))
    table = whole.side_by_side.filter(pl.col("asker").is_in([model.name for model in askers]))
    assert 0.5 * windows < len(table) <= windows
    size = (whole.path / "counterparts.parquet").stat().st_size / len(whole.side_by_side)
    assert size == pytest.approx(3 * COUNTERPART_DISK_BYTES, rel=0.25)


def test_sketches_have_none(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(some_text(3000))
    files = tuple(str(tmp_path / f"m{seed}.safetensors") for seed in (0, 1))
    for seed, file in enumerate(files):
        folder = save_tiny(tmp_path / f"m{seed}", seed=seed)
        config = StudyConfig(models=(str(folder),), data=str(text), out=file, search="sketch")
        make_sketch(config, reporter=Reporter(quiet=True))
    store = quiet(StudyConfig(models=files, out=str(tmp_path / "run"), draws=2))
    assert store.has("matches")
    assert not store.has("counterparts")
