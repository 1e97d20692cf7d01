"""Sinks of tiny models, some planted: norms, counts and ρ without them, against plain float64 computations."""

import copy
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import FAMILIES, small_tokenizer, some_text, tiny_model, tiny_network
from described import require_described
from hand_written import run
from test_correlation import captured, some_tokens
from test_studies_of_spans import renumbered

from universal_neurons import Model, StudyConfig, run_study
from universal_neurons.config import DynamicsConfig
from universal_neurons.dynamics import run_dynamics
from universal_neurons.errors import ConfigError, StoreConflictError
from universal_neurons.features import NeuronSource, Pooling, counted_positions, inputs_of, settings_of
from universal_neurons.features.stream import StreamNorms
from universal_neurons.report.facts import asker_lines
from universal_neurons.statistics import Key, SinkPositions, What
from universal_neurons.study import decide, make_sketch, roles_again, study_roles
from universal_neurons.study.estimate import estimate
from universal_neurons.study.masked_sinks import MaskedSinks
from universal_neurons.study.resolve import resolve
from universal_neurons.text import Passages

SINK = 11  # a token whose embedding is enormous
FACTOR = 5.0
WIDE = {"n_embd": 64}


def with_sink(family="gpt2", seed=0, name=None, **changes):
    """A tiny model that has a token of enormous norm."""
    model = tiny_model(family, seed, name, **changes)
    model.embedding[SINK] *= 1000
    model.digest = f"{seed:063}s"
    return model


def firing_at_sink(seed):
    """One whose neurons fire there far above all else, whatever they read elsewhere."""
    model = with_sink("gpt2", seed, f"m{seed}", **WIDE)
    for block in model.blocks:
        read = block.ln_2(model.embedding[SINK])
        block.mlp.c_fc.weight.mul_(0.2).add_((20 * read / read.norm())[:, None])
    return model


def plain_norms(model, tokens, rows, mask=None):
    """The highest over blocks of the residual norm over the row's median, in float64: models cut after every block."""
    ids, mask = torch.from_numpy(tokens.ids(rows)), tokens.mask(rows) if mask is None else mask
    highest = np.zeros(mask.shape)
    for layers in range(1, model.n_layers + 1):
        cut = copy.copy(model.hf.config)
        cut.num_hidden_layers = layers
        plain = copy.copy(model.hf)
        plain.config = cut
        norms = run(plain, ids).residual.norm(dim=-1).numpy()
        for row in range(len(rows)):
            counted = np.sort(norms[row][mask[row]])
            highest[row] = np.maximum(highest[row], norms[row] / counted[(len(counted) - 1) // 2])
    return highest


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_norms_are_those_of_the_residual_stream_over_its_rows_median(family):
    model, tokens, rows = with_sink(family), some_tokens(12), np.arange(12)
    source = NeuronSource(model)
    source.streams = True
    positions = counted_positions(tokens, rows)
    inputs = inputs_of(tokens, [model.name], rows, positions)[model.name]
    source.settle(source.provisional_of(*inputs))
    found = source.blocks(*inputs)[Key(model.name, What.STREAM)].values[:, 0]
    expected = plain_norms(model, tokens, rows)[tokens.mask(rows)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    planted = tokens.ids(rows)[tokens.mask(rows)] == SINK
    assert planted.any()
    assert expected[planted].min() > 50 > expected[~planted].max() * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_after_each_block_is_the_models_own_hidden_state(family):
    """But for the last, which transformers gives after the final norm."""
    model, ids, streams = tiny_model(family), torch.arange(40).view(2, 20), {}
    with model.after_blocks(streams.__setitem__):
        model.forward(ids)
    with torch.inference_mode():
        hidden = model.hf(ids, output_hidden_states=True).hidden_states[1:-1]
    assert list(streams) == list(range(len(hidden) + 1))
    for layer, expected in enumerate(hidden):
        torch.testing.assert_close(streams[layer].view_as(expected), expected)


@pytest.mark.parametrize("kind", ["mean", "last", "max"])
def test_a_span_stands_out_as_its_highest_token_does(kind):
    streams = torch.randn(2, 3 * 8, 4, generator=torch.Generator().manual_seed(0))
    spans = [[1], [2, 3], [5, 6, 7], [9], [10, 12], [18, 19]]
    pooling = Pooling(
        kind,
        torch.tensor([token for span in spans for token in span]),
        torch.tensor(np.cumsum([len(s) for s in spans])),
        24,
    )
    norms = StreamNorms(pooling, (3, 8))
    for stream in streams:
        norms.take(0, stream)
    lengths = streams.double().norm(dim=-1).numpy()
    medians = [[np.sort(of[[t for s in spans for t in s if t // 8 == row]]) for row in range(3)] for of in lengths]
    expected = [
        max(of[t] / rows[t // 8][(len(rows[t // 8]) - 1) // 2] for of, rows in zip(lengths, medians) for t in span)
        for span in spans
    ]
    np.testing.assert_allclose(norms.of_positions()[:, 0], expected, rtol=1e-5)


@pytest.fixture(scope="module")
def models():
    return [firing_at_sink(0), firing_at_sink(1), tiny_model("gpt2", 2, "m2", **WIDE)]


@pytest.fixture(scope="module")
def tokens():
    """Every twentieth token or so is one that is a sink."""
    tokens = some_tokens(200)
    chooser = np.random.default_rng(5)
    tokens.rows[(chooser.random(tokens.rows.shape) < 0.03) & (tokens.rows != 0)] = SINK
    return tokens


@pytest.fixture(scope="module")
def store(models, tokens, tmp_path_factory):
    config = StudyConfig(
        out=str(tmp_path_factory.mktemp("sinks") / "run"), draws=2, stages=("universality",), top_k=1, sinks=FACTOR
    )
    return run_study(config, models=models, tokens=tokens, progress=False)


@pytest.fixture(scope="module")
def held(models, tokens):
    """Of the counted held-out positions: each model's activations, whether it has a sink there, the token."""
    rows = np.concatenate(tokens.split()[1])
    mask = tokens.mask(rows)
    there = replace(tokens, rows=tokens.rows[rows], lengths=tokens.lengths[rows], subsets=tokens.subsets[rows])
    values = [captured(model, there) for model in models]
    sinks = [plain_norms(model, tokens, rows)[mask] > FACTOR for model in models]
    return values, sinks, tokens.ids(rows)[mask]


def test_the_table_counts_each_models_sinks(store, held):
    _, sinks, ids = held
    table = store.table("sinks")
    assert table["model"].to_list() == ["m0", "m1", "m2", None]
    expected = [*sinks, np.logical_or.reduce(sinks)]
    assert table["sinks"].to_list() == [of.sum() for of in expected]
    assert (table["positions"] == len(ids)).all()
    np.testing.assert_allclose(table["share"], [of.mean() for of in expected])
    first = table.row(0, named=True)
    assert first["token_sinks"][0] == (ids[sinks[0]] == SINK).sum() > 20
    about = store.manifest["sinks"]
    assert about == {"factor": FACTOR, "positions": len(ids), "sinks": expected[-1].sum()}


def test_a_common_sink_makes_a_match_of_independent_neurons(store, held):
    """ρ with and without the sinks of any model, against NumPy; the false ones vanish."""
    values, sinks, _ = held
    kept = ~np.logical_or.reduce(sinks)
    best = store.matches.filter(pl.col("rank") == 1)
    for row in best.iter_rows(named=True):
        a = values[0][:, row["layer"] * 24 + row["neuron"]]
        b = values[int(row["match_model"][1])][:, row["match_layer"] * 24 + row["match_neuron"]]
        assert row["corr_heldout"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=2e-5)
        assert row["corr_without_sinks"] == pytest.approx(np.corrcoef(a[kept], b[kept])[0, 1], abs=2e-5)
    false = best.filter(pl.col("match_model") == "m1")
    assert false["corr_heldout"].median() > 0.7
    assert false["corr_without_sinks"].abs().median() < 0.1


def test_the_summary_says_what_they_carry(store):
    line = dict(asker_lines(store, "m0"))["scale, vocabulary, sinks"]
    about = store.manifest["sinks"]
    told = f"; {about['sinks']:,} of {about['positions']:,} held-out positions have a residual norm over 5 times their"
    best = store.matches.filter((pl.col("rank") == 1) & (pl.col("corr_heldout") > 0.5))
    fallen = (best["corr_without_sinks"].fill_nan(0) <= 0.5).sum()
    assert told in line
    assert f"without them {fallen} of {len(best)} matches of ρ above 0.5 fall below it" in line


def test_where_nothing_stands_out_nothing_changes(tokens, tmp_path):
    plain = [tiny_model("gpt2", seed, f"m{seed}") for seed in range(2)]
    config = StudyConfig(out=str(tmp_path / "run"), draws=2, stages=("universality",), top_k=1, sinks=1000)
    store = run_study(config, models=plain, tokens=tokens, progress=False)
    best = store.matches.filter(pl.col("rank") == 1)
    assert store.manifest["sinks"]["sinks"] == 0
    np.testing.assert_allclose(best["corr_without_sinks"], best["corr_heldout"], atol=1e-12)
    line = dict(asker_lines(store, "m0"))["scale, vocabulary, sinks"]
    assert f"none of {store.manifest['sinks']['positions']:,} held-out" in line


def test_a_factor_that_nothing_would_read_is_refused(tokens, tmp_path):
    config = StudyConfig(out=str(tmp_path / "run"), stages=("statistics",), sinks=20)
    with pytest.raises(ConfigError, match="sinks"):
        run_study(config, models=[tiny_model()], tokens=tokens, progress=False)


def test_sketches_know_no_sinks():
    with pytest.raises(ConfigError, match=r"--sinks 5\.0 needs models"):
        settings_of(StudyConfig(models=("a.safetensors", "b.safetensors"), sinks=5))


MASKED = StudyConfig(
    draws=2, stages=("weights", "statistics", "universality"), top_k=1, sinks=FACTOR, mask=("bos", 7, "sinks")
)


def masked_study(out, models, tokens, **changes):
    config = MASKED.model_copy(update={"out": str(out), **changes})
    return run_study(config, models=models, tokens=tokens, progress=False, checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def masked(models, tokens, tmp_path_factory):
    return masked_study(tmp_path_factory.mktemp("masked") / "run", models, tokens)


@pytest.fixture(scope="module")
def everywhere(models, tokens):
    """Which positions of all rows are sinks of any model."""
    rows = np.arange(len(tokens))
    highest = np.maximum.reduce([plain_norms(model, tokens, rows) for model in models])
    return (highest > FACTOR) & tokens.mask(rows)


def test_masked_sinks_enter_no_statistic(masked, models, tokens, everywhere):
    """The study is what NumPy makes of the other positions: matches, held-out ρ, moments, counts."""
    table = masked.table("left_out")
    require_described(table, "left_out")
    np.testing.assert_array_equal(table.to_numpy(), np.argwhere(everywhere))
    about = masked.manifest["tokens"]["sinks"]
    assert (about["factor"], about["left_out"]) == (FACTOR, everywhere.sum())
    chosen, stretches = tokens.split()
    rows = np.arange(len(tokens))
    every, row = tokens.mask(rows), np.nonzero(tokens.mask(rows))[0]
    kept = ~everywhere[every]
    choose, held = (kept & np.isin(row, of) for of in (chosen, np.concatenate(stretches)))
    values = [captured(model, tokens) for model in models]
    assert masked.manifest["counted_tokens"] == choose.sum()
    best = masked.matches.filter(pl.col("rank") == 1).sort("match_model", "layer", "neuron")
    for other in (1, 2):
        rho = np.corrcoef(values[0][choose].T, values[other][choose].T)[:48, 48:]
        found = best.filter(pl.col("match_model") == f"m{other}")
        match = (found["match_layer"] * 24 + found["match_neuron"]).to_numpy()
        np.testing.assert_allclose(found["corr"], rho.max(1), atol=2e-6)
        np.testing.assert_array_equal(match, rho.argmax(1))
        there = [np.corrcoef(values[0][held, n], values[other][held, match[n]])[0, 1] for n in range(48)]
        np.testing.assert_allclose(found["corr_heldout"], there, atol=2e-5)
    mean = masked.neurons.filter(pl.col("model") == "m0").sort("layer", "neuron")["activation_mean"]
    np.testing.assert_allclose(mean, values[0][choose].mean(0), rtol=1e-4, atol=1e-5)
    fires = masked.examples.select("row", "position").unique()
    assert not everywhere[fires["row"], fires["position"]].any()
    assert best.filter(pl.col("match_model") == "m1")["corr"].max() < 0.5
    line = dict(asker_lines(masked, "m0"))["scale, vocabulary, sinks"]
    assert f"; {everywhere.sum():,} positions were left out" in line


def test_a_finished_study_needs_no_second_look(masked, models, tokens, monkeypatch):
    monkeypatch.setattr(MaskedSinks, "_find", None)
    again = masked_study(masked.path, models, tokens)
    assert again.manifest == masked.manifest
    with pytest.raises(StoreConflictError, match="another study"):
        masked_study(masked.path, models, tokens, sinks=2 * FACTOR)


class Seen(Exception):
    """With what roles would have been asked of."""


def test_roles_are_asked_of_the_same_positions(masked, models, tokens, monkeypatch):
    def stops(_settings, _models, tokens, *_):
        raise Seen(tokens.mask(np.arange(len(tokens))))

    monkeypatch.setattr(roles_again, "Roles", stops)
    with pytest.raises(Seen) as seen:
        study_roles(masked, models=models, tokens=tokens)
    mask = seen.value.args[0]
    left_out = masked.table("left_out")
    assert not mask[left_out["row"], left_out["position"]].any()
    assert mask.sum() == tokens.counted - len(left_out)


def test_interrupted_while_they_are_found_it_goes_on(masked, models, tokens, tmp_path, monkeypatch):
    """In the second shard; what was found of the first is not looked for again."""
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 2000)
    read, update = [], SinkPositions.update

    def stops(self, batch):
        read.append(batch.shard)
        if len(read) == 2:
            raise KeyboardInterrupt
        update(self, batch)

    monkeypatch.setattr(SinkPositions, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        masked_study(tmp_path / "run", models, tokens)
    store = masked_study(tmp_path / "run", models, tokens)
    assert read[:4] == [0, 1, 1, 2]
    assert store.table("left_out").equals(masked.table("left_out"))
    assert not (store.path / "work").exists()


def test_spans_are_left_out_where_a_token_of_any_tokenizer_is_a_sink(tmp_path):
    """Of two numberings of one tokenizer: each span is a token of either."""
    (tmp_path / "text.txt").write_text(some_text(1500))
    order = np.random.default_rng(0).permutation(1024)
    readers = {"plain": small_tokenizer(), "other": renumbered(order)}
    pair = [Model(tiny_network("gpt2", seed), name, tokenizer=readers[name]) for seed, name in enumerate(readers)]
    pair[1].embedding[order[readers["plain"]("a the")["input_ids"][-1]]] *= 1000
    config = MASKED.model_copy(update={"data": str(tmp_path / "text.txt"), "context": 32, "mask": ("bos", "sinks")})
    config = config.model_copy(update={"out": str(tmp_path / "run"), "stages": ("universality",)})
    store = run_study(config, models=pair, progress=False)
    text = Passages.load(config, readers, context=32)
    rows = np.arange(len(text))
    expected = np.zeros((len(text), 32), bool)
    for model in pair:
        spans = text.pooled(model.name, rows)
        row, token = np.nonzero(
            (plain_norms(model, text.tokens_of(model.name), rows, spans >= 0) > FACTOR) & (spans >= 0)
        )
        expected[row, spans[row, token]] = True
    np.testing.assert_array_equal(store.table("left_out").to_numpy(), np.argwhere(expected))
    assert 50 < expected.sum() < text.counted // 3
    chosen, _ = text.split()
    assert store.manifest["counted_tokens"] == (text.mask(chosen) & ~expected[chosen]).sum()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda config: make_sketch(config), "a sketch cannot mask sinks"),
        (lambda config: run_dynamics(DynamicsConfig(mask=config.mask)), "training dynamics cannot mask sinks"),
        (lambda config: decide(config.model_copy(update={"stages": ("weights",)})), "is of text"),
    ],
)
def test_where_they_cannot_be_masked_it_is_said(make, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        make(StudyConfig(models=("some/model",), out=str(tmp_path / "a.safetensors"), mask=("bos", "sinks")))


def test_the_estimate_counts_the_pass_that_finds_them(models):
    given = StudyConfig(max_tokens=4000, context=40, draws=2, stages=("universality",))
    masked = given.model_copy(update={"mask": ("bos", "sinks")})
    plain, more = (estimate(resolve(decide(config, 3), models), models) for config in (given, masked))
    assert plain.seconds_sinks == 0 < more.seconds_sinks < more.seconds
