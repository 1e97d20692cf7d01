"""Entropy and token-frequency neurons: planted ones are found, every number against separate runs and NumPy."""

import functools
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from conftest import tiny_network
from hand_written import jackknife_reach, predictions

from universal_neurons.interventions import Edit, Readout, Trial, frozen_norm, intervene
from universal_neurons.models import Model, processed_weights
from universal_neurons.role_settings import QUANTILES, RoleSettings
from universal_neurons.roles.entropy import EntropyTrial, controls, entropy_candidates, spectrum_of
from universal_neurons.roles.frequency import Frequency
from universal_neurons.roles.one_model import OneModel, Sample
from universal_neurons.statistics import weight_statistics
from universal_neurons.text import TokenCounts, TokenDataset, Vocabulary

VOCABULARY, CONTEXT, WIDTH, D_MLP = 97, 12, 32, 24
ENTROPY, FREQUENCY, EARLY, LATE = 24 + 5, 24 + 9, 3, 24 + 1
KINDS = {ENTROPY: "entropy", FREQUENCY: "frequency", EARLY: "control", LATE: "control"}
SETTINGS = RoleSettings(values=(-0.17, 0.0, 2.0))
COUNTS = np.random.default_rng(5).permutation(3000 // np.arange(1, VOCABULARY + 1) ** 1.2).astype(np.int64)


def centred_log_frequency() -> np.ndarray:
    smoothed = COUNTS + 1
    log_p = np.log(smoothed / smoothed.sum())
    return log_p - log_p.mean()


@functools.cache
def planted() -> Model:
    """A model whose unembedding hardly reads v and reads u as log frequency; two last-layer neurons write v and u."""
    network = tiny_network("gpt2", n_embd=WIDTH, vocab_size=VOCABULARY, tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(1)
    directions = torch.cat([torch.ones(WIDTH, 1), torch.randn(WIDTH, 2, generator=generator)], 1)
    _, u, v = torch.linalg.qr(directions)[0].T
    with torch.no_grad():
        gain = network.transformer.ln_f.weight
        gain.copy_(0.5 + torch.rand(WIDTH, generator=generator))
        folded = network.lm_head.weight * gain
        folded -= torch.outer(folded @ u, u) + torch.outer(folded @ v, v)
        folded += torch.outer(4 * torch.from_numpy(centred_log_frequency()).float(), u)
        folded += torch.outer(1e-4 * torch.rand(VOCABULARY, generator=generator), v)
        network.lm_head.weight.copy_(folded / gain)
        out = network.transformer.h[1].mlp.c_proj.weight
        out[ENTROPY - D_MLP], out[FREQUENCY - D_MLP] = 30 * v, 0.3 * u
    return Model(network, "planted")


def null_fraction(weights, centred):
    return spectrum_of(weights.w_u, centred).null_fraction(weights.w_out.flatten(0, -2))


def neuron_table(model: Model) -> pl.DataFrame:
    numbers = np.arange(model.n_neurons)
    return pl.DataFrame(weight_statistics(processed_weights(model))).with_columns(
        layer=pl.Series(numbers // model.d_mlp, dtype=pl.Int32),
        neuron=pl.Series(numbers % model.d_mlp, dtype=pl.Int32),
        dead=pl.lit(False),
        kurt=pl.Series(3.0 + numbers % 7),
    )


def rows_of_text(rows: int) -> TokenDataset:
    """Full rows in which only BOS is masked: all positions count but the first and the last."""
    draw = np.random.default_rng(rows)
    pieces = (("a", draw.integers(1, VOCABULARY, CONTEXT - 1)) for _ in range(rows))
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0,))


class Tried(NamedTuple):
    """A trial over some rows in two batches, the rows' ids, all neurons' means."""

    trial: EntropyTrial
    ids: torch.Tensor
    means: torch.Tensor


@functools.cache
def tried(rows: int) -> Tried:
    model, tokens = planted(), rows_of_text(rows)
    ids = torch.from_numpy(tokens.ids(np.arange(rows)))
    means = model.activations(ids).mean((0, 1))
    trial = EntropyTrial(model, KINDS, means, SETTINGS, Frequency.of(COUNTS))
    assert trial.first == 0
    for part in np.split(np.arange(rows), [rows // 2] if rows > 1 else []):
        trial.add(Trial(model, Readout(model), tokens, part, trial.first))
    return Tried(trial, ids, means)


def logits_of(ids: torch.Tensor, number: int | None = None, edit: Edit | None = None, scale=None) -> torch.Tensor:
    """Logits of the planted model at the positions that count, from a run of its own."""
    model = planted()
    if scale is not None:
        with frozen_norm(model, scale):
            return logits_of(ids, number, edit)
    if number is None:
        return model.logits(ids)[:, 1:-1].flatten(0, 1)
    with intervene(model, [number], edit):
        return model.logits(ids)[:, 1:-1].flatten(0, 1)


def scale_of(ids: torch.Tensor) -> torch.Tensor:
    """The clean run's scale of the final norm."""
    seen = []
    handle = planted().hf.transformer.ln_f.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    planted().forward(ids)
    handle.remove()
    return (seen[0].var(-1, unbiased=False) + 1e-5).sqrt()


def losses(ids: torch.Tensor, logits: torch.Tensor) -> np.ndarray:
    return predictions(logits, ids[:, 2:].flatten(), logits)["loss"]


def ablations_of(found: Tried) -> pl.DataFrame:
    model = planted()
    weights = processed_weights(model)
    fraction = null_fraction(weights, True).numpy()
    return found.trial.ablations(neuron_table(model), weights, fraction)


@pytest.mark.parametrize(("family", "width"), [("gpt2", 160), ("gpt2", 32), ("llama", 160), ("llama", 32)])
def test_null_fractions_are_those_of_numpys_singular_vectors(family, width):
    sizes = {"n_embd": width} if family == "gpt2" else {"hidden_size": width}
    model = Model(tiny_network(family, vocab_size=300, **sizes), family)
    weights = processed_weights(model)
    p = {name: value.double().numpy() for name, value in model.hf.state_dict().items()}
    kept = {32: 1, 160: 2}[width]
    if family == "gpt2":
        read = p["lm_head.weight"] * p["transformer.ln_f.weight"]
        read = read - read.mean(1, keepdims=True)
        written = np.concatenate([p[f"transformer.h.{layer}.mlp.c_proj.weight"] for layer in (0, 1)])
        written = written - written.mean(1, keepdims=True)
    else:
        read = p["lm_head.weight"] * p["model.norm.weight"]
        written = np.concatenate([p[f"model.layers.{layer}.mlp.down_proj.weight"].T for layer in (0, 1)])
    directions = np.linalg.svd(read - read.mean(0))[2]
    null = directions[-kept - 1 : -1] if family == "gpt2" else directions[-kept:]  # the last is all ones over √d
    expected = np.linalg.norm(written @ null.T, axis=1) / np.linalg.norm(written, axis=1)
    np.testing.assert_allclose(null_fraction(weights, family == "gpt2").numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_the_spectrum_is_numpys(centred):
    weights = processed_weights(planted())
    expected = np.linalg.svd(weights.w_u.numpy())[1]
    found = spectrum_of(weights.w_u, centred)
    expected = expected[:-1] if centred else expected  # the all-ones direction has 0
    np.testing.assert_allclose(found.values.numpy(), expected, atol=1e-6 * expected[0])
    table = found.table("m")
    assert table["place"].to_list() == list(range(1, len(expected) + 1))
    np.testing.assert_allclose(table["over_median"].to_numpy(), expected / np.median(expected), atol=1e-6)
    assert table.filter("null")["place"].to_list() == [len(expected)]
    assert found.null_tail < 1e-3  # planted
    plain = torch.randn(300, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = np.linalg.svd(plain.numpy())[1]
    tail = np.sqrt((values[-2:] ** 2).mean()) / np.median(values)  # two of two hundred are one in a hundred
    assert spectrum_of(plain, False).null_tail == pytest.approx(tail, rel=1e-6)


def test_the_all_ones_direction_gives_no_null_fraction():
    network = tiny_network("gpt2", n_embd=WIDTH, vocab_size=VOCABULARY)
    before = null_fraction(processed_weights(Model(network, "before")), True)
    with torch.no_grad():
        network.transformer.h[1].mlp.c_proj.weight[4] += 50
    after = null_fraction(processed_weights(Model(network, "after")), True)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert after.max() < 0.9


def test_planted_neurons_are_found():
    model = planted()
    weights, table = processed_weights(model), neuron_table(model)
    assert entropy_candidates(table, SETTINGS)[0] == ENTROPY
    assert null_fraction(weights, True)[ENTROPY] > 0.999
    candidates = Frequency.of(COUNTS).candidates(model, weights, 4, np.zeros(model.n_neurons, bool))
    assert candidates[0] == FREQUENCY
    assert len(set(candidates)) == 4
    assert all(number >= D_MLP for number in candidates)
    found = {row["layer"] * D_MLP + row["neuron"]: row for row in ablations_of(tried(45)).iter_rows(named=True)}
    assert found[ENTROPY]["role"] == "entropy"
    assert found[ENTROPY]["mediated"] > 0.95
    assert found[ENTROPY]["null_fraction"] > 0.999
    assert found[FREQUENCY]["role"] == "token_frequency"
    assert found[FREQUENCY]["frequency_share"] > 0.95
    assert found[FREQUENCY]["frequency_cos"] == pytest.approx(1, abs=1e-4)
    for number in (EARLY, LATE):
        assert found[number]["role"] is None
        assert found[number]["null_fraction"] < 0.9


def test_neurons_like_any_other_have_no_role_where_they_are_candidates():
    model, tokens = planted(), rows_of_text(7)
    means = model.activations(torch.from_numpy(tokens.ids(np.arange(7)))).mean((0, 1))
    others = [number for number in range(D_MLP, 2 * D_MLP) if number not in (ENTROPY, FREQUENCY)]
    trial = EntropyTrial(model, dict.fromkeys(others, "entropy"), means, SETTINGS, Frequency.of(COUNTS))
    assert trial.first == 1
    trial.add(Trial(model, Readout(model), tokens, np.arange(7), trial.first))
    weights = processed_weights(model)
    table = trial.ablations(neuron_table(model), weights, null_fraction(weights, True).numpy())
    assert (table["mediated"] < 0.5).mean() > 0.8
    for mediated, frequency, role in table.select("mediated", "frequency_share", "role").iter_rows():
        assert role == ("entropy" if mediated > 0.5 else "token_frequency" if frequency > 0.5 else None)


def test_of_two_neurons_of_equal_weights_the_one_in_the_null_space_is_an_entropy_neuron():
    """They read the same, and what they write is as long: only where it points differs."""
    model, tokens, plain = planted.__wrapped__(), rows_of_text(7), 24 + 13
    mlp = model.hf.transformer.h[1].mlp
    with torch.no_grad():
        null = mlp.c_proj.weight[ENTROPY - D_MLP]
        null = null / null.norm()
        other = processed_weights(model).w_u[5].float()
        frequency = mlp.c_proj.weight[FREQUENCY - D_MLP] / mlp.c_proj.weight[FREQUENCY - D_MLP].norm()
        for direction in (torch.full((WIDTH,), WIDTH**-0.5), null, frequency):
            other -= (other @ direction) * direction
        for number, direction in ((ENTROPY, null), (plain, other / other.norm())):
            mlp.c_proj.weight[number - D_MLP] = direction
            mlp.c_fc.weight[:, number - D_MLP] = mlp.c_fc.weight[:, plain - D_MLP]
            mlp.c_fc.bias[number - D_MLP] = mlp.c_fc.bias[plain - D_MLP]
    means = model.activations(torch.from_numpy(tokens.ids(np.arange(7)))).mean((0, 1))
    trial = EntropyTrial(model, dict.fromkeys((ENTROPY, plain), "entropy"), means, SETTINGS, Frequency.of(COUNTS))
    trial.add(Trial(model, Readout(model), tokens, np.arange(7), trial.first))
    weights = processed_weights(model)
    here, there = trial.ablations(neuron_table(model), weights, null_fraction(weights, True).numpy()).to_dicts()
    assert here["l2_penalty"] == pytest.approx(there["l2_penalty"])
    assert (here["role"], there["role"]) == ("entropy", None)
    assert here["mediated"] > 0.95 > 0.5 > there["mediated"]
    assert min(here["total_effect"], there["total_effect"]) > 1e-3
    assert here["null_fraction"] > 0.99 > 0.5 > there["null_fraction"]


def test_neurons_are_fixed_to_quantiles_of_their_own():
    model, tokens = planted(), rows_of_text(7)
    ids = torch.from_numpy(tokens.ids(np.arange(7)))
    one = OneModel(
        model, pl.DataFrame(), Sample(tokens, np.arange(7), Vocabulary(("",), np.ones(1, bool))), RoleSettings(), seed=0
    )
    means, seen = one._read_plainly(3 * CONTEXT, list(KINDS))
    activations = model.activations(ids)[:, 1:].flatten(0, 1)  # all but BOS count
    torch.testing.assert_close(means, activations.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen, activations[:, list(KINDS)].numpy(), rtol=1e-5, atol=1e-6)
    own = np.quantile(seen, QUANTILES, axis=0).T
    trial = EntropyTrial(model, KINDS, means, RoleSettings(), Frequency.of(COUNTS), own=own)
    trial.add(Trial(model, Readout(model), tokens, np.arange(7), trial.first))
    fixed = trial.interventions().filter(edit="fix")
    assert len(fixed) == len(KINDS) * len(QUANTILES)
    for number, values in zip(KINDS, own):
        rows = fixed.filter(layer=number // D_MLP, neuron=number % D_MLP)
        assert rows["quantile"].to_list() == list(QUANTILES)
        np.testing.assert_allclose(rows["value"].to_numpy(), values, rtol=1e-6)
        assert rows["value"].is_sorted()
        for value, loss in zip(values[[0, -1]], rows["loss"].to_numpy()[[0, -1]]):
            changed = losses(ids, logits_of(ids, number, Edit("fix", float(value))))
            np.testing.assert_allclose(loss, changed.mean(), rtol=1e-4)


def test_the_papers_values_are_an_option():
    assert RoleSettings(values="paper").fixed_values == (-0.17, 0, 1, 2, 3, 4, 5, 6)
    assert RoleSettings(values=(1.5, 2)).fixed_values == (1.5, 2)
    assert RoleSettings().fixed_values == ()


def test_interventions_are_means_over_runs_of_their_own():
    trial, ids, _ = tried(45)
    table, clean = trial.interventions(), logits_of(ids)
    candidates = sum(kind != "control" for kind in KINDS.values())
    assert len(table) == 1 + len(KINDS) * len(SETTINGS.values) + candidates * 4
    assert set(table["tokens"]) == {45 * 10}
    assert sorted(set(table["edit"])) == ["fix", "multiply", "none", "relu", "threshold", "zero"]
    for row in table.iter_rows(named=True):
        if row["edit"] == "none":
            assert (row["kind"], row["layer"], row["neuron"], row["value"]) == ("none", None, None, None)
            number, edit, logits = None, None, clean
        else:
            number, edit = row["layer"] * D_MLP + row["neuron"], Edit(row["edit"], row["value"])
            assert row["kind"] == KINDS[number]
            logits = logits_of(ids, number, edit)
        expected = predictions(logits, ids[:, 2:].flatten(), clean)
        for name in ("loss", "entropy", "divergence"):
            np.testing.assert_allclose(row[name], expected[name].mean(), rtol=1e-4, atol=1e-5, err_msg=str(row))
        np.testing.assert_allclose(row["rank"], expected["rank"].mean(), rtol=1e-3)
        np.testing.assert_allclose(row["reciprocal_rank"], (1 / expected["rank"]).mean(), rtol=1e-3)
        with intervene(planted(), [number or 0], edit or Edit("multiply", 1.0)):
            np.testing.assert_allclose(row["norm_scale"], scale_of(ids)[:, 1:-1].mean(), rtol=1e-5)


@pytest.mark.parametrize("rows", [45, 7])
def test_ablations_are_runs_of_their_own(rows):
    found = tried(rows)
    ids, clean = found.ids, losses(found.ids, logits_of(found.ids))
    table = ablations_of(found)
    assert [row[0] * D_MLP + row[1] for row in table.select("layer", "neuron").iter_rows()] == list(KINDS)
    assert table["kind"].to_list() == list(KINDS.values())
    scale, row_of = scale_of(ids), np.repeat(np.arange(rows), 10)
    for number, row in zip(KINDS, table.iter_rows(named=True)):
        edit = Edit("mean", float(found.means[number]))
        change = losses(ids, logits_of(ids, number, edit)) - clean
        total, direct = np.abs(change), np.abs(losses(ids, logits_of(ids, number, edit, scale)) - clean)
        assert row["tokens"] == rows * 10
        np.testing.assert_allclose(row["loss_change"], change.mean(), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(row["total_effect"], total.mean(), rtol=1e-3)
        np.testing.assert_allclose(row["direct_effect"], direct.mean(), rtol=1e-3, atol=5e-6)

        def mediated(which, total=total, direct=direct):
            return 1 - direct[which].sum() / total[which].sum()

        reach = jackknife_reach(mediated, row_of)
        everything = mediated(np.ones(rows * 10, bool))
        np.testing.assert_allclose(row["mediated"], everything, atol=1e-3)
        np.testing.assert_allclose(row["mediated_low"], everything - reach, atol=2e-3)
        np.testing.assert_allclose(row["mediated_high"], everything + reach, atol=2e-3)


def test_one_row_gives_no_interval():
    table = ablations_of(tried(1))
    assert table["mediated"].is_finite().all()
    assert table["mediated_low"].is_nan().all()
    assert table["mediated_high"].is_nan().all()


def test_frequency_shares_and_unigram_changes_by_hand():
    found = tried(45)
    ids, before = found.ids, logits_of(found.ids).double().numpy()
    f = centred_log_frequency()
    unit = f / np.sqrt(f @ f)
    log_unigram = np.log((COUNTS + 1) / (COUNTS + 1).sum())

    def to_unigram(logits):
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return (np.exp(log_p) * (log_p - log_unigram)).sum(1)

    for row in ablations_of(found).iter_rows(named=True):
        number = row["layer"] * D_MLP + row["neuron"]
        if KINDS[number] == "control":
            assert row["frequency_share"] is row["frequency_share_low"] is row["frequency_share_high"] is None
            assert row["unigram_change"] is None
            continue
        after = logits_of(ids, number, Edit("mean", float(found.means[number]))).double().numpy()
        restored = after + np.outer((before - after) @ unit, unit)
        clean, total, left = (losses(ids, torch.from_numpy(x)) for x in (before, after, restored))
        total, left = np.abs(total - clean), np.abs(left - clean)
        share = 1 - left.sum() / total.sum()
        np.testing.assert_allclose(row["frequency_share"], share, atol=1e-3)

        def along(which, total=total, left=left):
            return 1 - left[which].sum() / total[which].sum()

        reach = jackknife_reach(along, np.repeat(np.arange(45), 10))
        np.testing.assert_allclose(row["frequency_share_low"], share - reach, atol=2e-3)
        np.testing.assert_allclose(row["frequency_share_high"], share + reach, atol=2e-3)
        change = (to_unigram(after) - to_unigram(before)).mean()
        np.testing.assert_allclose(row["unigram_change"], change, rtol=1e-3, atol=1e-5)


def test_frequency_cosines_and_antipodes_by_hand():
    p = {name: value.double().numpy() for name, value in planted().hf.state_dict().items()}
    read = p["lm_head.weight"] * p["transformer.ln_f.weight"]
    read = read - read.mean(1, keepdims=True)
    read = read - read.mean(0)
    written = np.concatenate([p[f"transformer.h.{layer}.mlp.c_proj.weight"] for layer in (0, 1)])
    written = written - written.mean(1, keepdims=True)
    cosines = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in written] for a in written])
    f = centred_log_frequency()
    for row in ablations_of(tried(45)).iter_rows(named=True):
        number = row["layer"] * D_MLP + row["neuron"]
        effect = read @ written[number]
        expected = effect @ f / np.sqrt((effect @ effect) * (f @ f))
        np.testing.assert_allclose(row["frequency_cos"], expected, atol=1e-5)
        assert row["antipode_layer"] * D_MLP + row["antipode_neuron"] == cosines[number].argmin()
        np.testing.assert_allclose(row["antipode_cos"], cosines[number].min(), atol=1e-9)


def test_the_frequency_direction():
    found = Frequency.of(np.array([0, 3, 0, 12]))
    p = np.array([1, 4, 1, 13]) / 19
    np.testing.assert_allclose(found.log_p.numpy(), np.log(p), rtol=1e-6)
    centred = np.log(p) - np.log(p).mean()
    np.testing.assert_allclose(found.direction.numpy(), centred / np.linalg.norm(centred), rtol=1e-6)
    assert not Frequency.of(np.full(5, 7)).direction.any()


def test_given_counts_tell_the_neuron_that_the_texts_own_do_not():
    """The text is drawn evenly: how often it has a token says nothing of the planted frequencies."""
    model, tokens = planted(), rows_of_text(7)
    ids = tokens.ids(np.arange(7))
    means = model.activations(torch.from_numpy(ids)).mean((0, 1))
    weights = processed_weights(model)
    vocabulary = Vocabulary(("",) * VOCABULARY, np.zeros(VOCABULARY, bool))
    seen = np.bincount(ids[:, 1:].flatten(), minlength=VOCABULARY)
    found = []
    for counts, given in ((COUNTS, TokenCounts(COUNTS, "planted", "")), (seen, None)):
        frequency = Sample(tokens, np.arange(7), vocabulary, trained_on=given).frequency(VOCABULARY + 3)
        log_p = np.log((np.append(counts, [0, 0, 0]) + 1) / (counts.sum() + VOCABULARY + 3))
        np.testing.assert_allclose(frequency.log_p.numpy(), log_p, rtol=1e-6)
        frequency = Sample(tokens, np.arange(7), vocabulary, trained_on=given).frequency(VOCABULARY)
        trial = EntropyTrial(model, {FREQUENCY: "frequency"}, means, SETTINGS, frequency)
        trial.add(Trial(model, Readout(model), tokens, np.arange(7), trial.first))
        found += trial.ablations(neuron_table(model), weights, null_fraction(weights, True).numpy()).to_dicts()
    (share, role), (share_of_text, role_by_text) = ((row["frequency_share"], row["role"]) for row in found)
    assert (role, role_by_text) == ("token_frequency", None)
    assert share > 0.95
    assert share_of_text < 0.3


def random_table(layers: int = 4, width: int = 100) -> pl.DataFrame:
    draw = np.random.default_rng(3)
    size = layers * width
    return pl.DataFrame(
        {
            "layer": np.arange(size, dtype=np.int32) // width,
            "neuron": np.arange(size, dtype=np.int32) % width,
            "dead": draw.random(size) < 0.05,
            "l2_penalty": draw.random(size),
            "vocab_var": np.where(draw.random(size) < 0.03, np.nan, draw.random(size)),
            "vocab_kurt": draw.random(size),
            "kurt": draw.random(size),
        }
    )


def test_controls_are_ordinary_neurons_of_the_last_two_layers():
    table, without = random_table(), [210, 250, 399]
    alive = ~table["dead"].to_numpy() & np.isfinite(table["vocab_var"].to_numpy())
    there = [n for n in range(200, 400) if alive[n] and n not in without]
    l2, var = table["l2_penalty"].to_numpy(), table["vocab_var"].to_numpy()
    high, low = np.quantile(l2[there], 0.9, method="nearest"), np.quantile(var[there], 0.1, method="nearest")
    expected = [n for n in there if l2[n] < high and var[n] > low]
    assert controls(table, RoleSettings(controls=400), 0, without) == expected
    few = controls(table, RoleSettings(controls=20), 0, without)
    assert few == sorted(few)
    assert len(set(few)) == 20
    assert set(few) <= set(expected)


def test_controls_are_drawn_from_the_seed():
    table, settings = random_table(), RoleSettings(controls=20)
    assert controls(table, settings, 1, [300]) == controls(table, settings, 1, [300])
    assert controls(table, settings, 1, [300]) != controls(table, settings, 2, [300])


@pytest.mark.parametrize("shrunk", [1.0, 1e-3])
def test_candidates_by_percentiles_of_the_late_layers(shrunk):
    """Also where weight decay has left the last layers smaller weights than all others."""
    scale = pl.when(pl.col("layer") >= 10).then(shrunk).otherwise(1.0)
    table = random_table(12, 51).with_columns(pl.col("l2_penalty") * scale)
    alive = ~table["dead"].to_numpy() & np.isfinite(table["vocab_var"].to_numpy())
    columns = {name: table[name].to_numpy() for name in ("l2_penalty", "vocab_kurt", "kurt", "vocab_var")}
    late = alive & (np.arange(612) >= 510)
    passed = late & (columns["l2_penalty"] >= np.quantile(columns["l2_penalty"][late], 0.75, method="nearest"))
    for name in ("vocab_kurt", "kurt"):
        passed &= columns[name] <= np.quantile(columns[name][late], 0.9, method="nearest")
    expected = sorted(np.flatnonzero(passed), key=lambda n: columns["vocab_var"][n])
    assert len(expected) > 3
    assert entropy_candidates(table, RoleSettings(entropy_neurons=3)) == expected[:3]
    assert entropy_candidates(table, RoleSettings(entropy_neurons=600)) == expected


@pytest.mark.parametrize(("cuts", "layers"), [("GPT2-small", 12), ("GPT2-medium", 24)])
def test_the_papers_cuts(cuts, layers):
    """The best neuron by variance fails one cut each; what is left is in order of its variance."""
    l2, vocab_kurt = (3.0, 10.0) if cuts == "GPT2-small" else (1.0, 8.0)
    late = layers - 2
    rows = [
        (0, l2, 3.0, 3.0, 1e-9, False),
        (late - 1, 2 * l2, 3.0, 3.0, 1e-9, False),
        (late, l2 - 0.01, 3.0, 3.0, 1e-9, False),
        (late, 2 * l2, vocab_kurt + 0.01, 3.0, 1e-9, False),
        (late, 2 * l2, 3.0, 10.01, 1e-9, False),
        (late, 2 * l2, 3.0, 3.0, 1e-9, True),
        (late, 2 * l2, 3.0, 3.0, float("nan"), False),
        (late, 2 * l2, 3.0, 3.0, 0.0012, False),
        (late, l2, vocab_kurt, 10.0, 0.0009, False),
        (late + 1, 2 * l2, 3.0, 3.0, 0.0003, False),
        (late + 1, 2 * l2, 3.0, 3.0, 0.0005, False),
    ]
    names = ["layer", "l2_penalty", "vocab_kurt", "kurt", "vocab_var", "dead"]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(pl.col("layer").cast(pl.Int32))
    expected = [9, 10, 8, 7] if cuts == "GPT2-small" else [9, 10, 8]
    assert entropy_candidates(table, RoleSettings(entropy_cuts=cuts, entropy_neurons=9)) == expected
    assert entropy_candidates(table, RoleSettings(entropy_cuts=cuts, entropy_neurons=2)) == expected[:2]
