"""Readout and trials: predictions after a change, against running the whole model and SciPy in float64."""

import contextlib
import functools

import numpy as np
import pytest
import tiny_types
import torch
from conftest import FAMILIES, tiny_network
from hand_written import predictions

from universal_neurons.errors import ArchitectureError
from universal_neurons.interventions import Edit, Readout, Trial, final_residual, frozen_norm, intervene, trials
from universal_neurons.interventions import trial as trials_module
from universal_neurons.interventions.trial import spread_places
from universal_neurons.models import Model
from universal_neurons.text import TokenDataset

CAUSAL = [family for family in FAMILIES if family != "bert"]
RMS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
SHORT = {"mistral": {"sliding_window": 5}, "gpt_neo": {"window_size": 4}}  # attention that ends within a row
VOCABULARY, CONTEXT, MASKED = 97, 14, (0, 5)


@functools.cache
def model_of(family: str, layers: int = 2) -> Model:
    depth = {
        "gpt2": {"n_layer": layers},
        "gpt_neo": {"num_layers": layers, "attention_types": [[["global", "local", "global"][:layers], 1]]},
    }
    changes = {"vocab_size": VOCABULARY, "num_hidden_layers": layers} | depth.get(family, {}) | SHORT.get(family, {})
    return Model(tiny_network(family, **changes), family)


@functools.cache
def some_tokens() -> TokenDataset:
    """Nine rows of several lengths, with masked tokens in them."""
    draw = np.random.default_rng(0)
    pieces = [("a", draw.integers(1, VOCABULARY, length)) for length in (13, 13, 6, 13, 1, 13, 9, 2, 13)]
    for _, ids in pieces:
        ids[len(ids) // 2] = 5
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=MASKED)


def seen_of(model: Model, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and what the final norm reads."""
    with final_residual(model) as seen:
        return model.logits(ids), seen[0]


def seen_after(model: Model, ids: torch.Tensor, neuron: str, edit: Edit, scale: torch.Tensor | None):
    """The same of a run with a changed neuron, and with a scale, that of the final norm frozen."""
    frozen = contextlib.nullcontext() if scale is None else frozen_norm(model, scale)
    with intervene(model, [neuron], edit), frozen:
        return seen_of(model, ids)


def scale_by_hand(family: str, residual: torch.Tensor) -> np.ndarray:
    x = residual.double().numpy()
    if family in RMS:
        return np.sqrt((x**2).mean(-1) + 1e-6)
    return np.sqrt(x.var(-1) + 1e-5)


def close(found: torch.Tensor, expected: np.ndarray, what: str) -> None:
    if what == "rank":  # logits that are equal but for rounding may change places
        assert np.abs(found.numpy() - expected).max() <= 1
        assert (found.numpy() != expected).mean() < 1e-3
    else:
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4, err_msg=what)


@pytest.mark.parametrize("family", CAUSAL)
def test_its_logits_are_the_models(family):
    model = model_of(family)
    logits, residual = seen_of(model, torch.arange(1, 41).view(2, 20))
    readout = Readout(model)
    found = readout.logits(residual)
    assert (found - logits).abs().max() <= 1e-5 * logits.abs().max()
    doubled = readout.logits(residual, 2 * readout.norm.scale(residual))
    with frozen_norm(model, torch.from_numpy(2 * scale_by_hand(family, residual)).float()):
        torch.testing.assert_close(doubled, model.logits(torch.arange(1, 41).view(2, 20)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL)
def test_clean_predictions(family):
    model = model_of(family)
    ids = torch.arange(1, 41).view(2, 20)
    logits, residual = seen_of(model, ids)
    targets = (ids * 7 % VOCABULARY).flatten()
    clean = Readout(model).clean(residual.flatten(0, 1), targets)
    expected = predictions(logits.flatten(0, 1), targets, logits.flatten(0, 1))
    for name in ("loss", "entropy", "rank"):
        close(getattr(clean.metrics, name), expected[name], name)
    close(clean.metrics.scale, scale_by_hand(family, residual).ravel(), "scale")
    np.testing.assert_allclose(clean.metrics.reciprocal_rank.numpy(), 1 / clean.metrics.rank.numpy())
    assert not clean.metrics.divergence.any()
    assert torch.equal(clean.targets, targets)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_changes_of_the_last_layer_and_of_residuals(family, frozen, monkeypatch):
    """Every neuron and value in turn, against the whole model with that change."""
    monkeypatch.setattr(
        "universal_neurons.interventions.readout.CACHED", 17 * VOCABULARY
    )  # several stretches, the last one short
    model, values = model_of(family), [-1.0, 3.0]
    ids = torch.arange(1, 25).view(2, 12) * 3
    logits, residual = seen_of(model, ids)
    targets = (ids * 7 % VOCABULARY).flatten()
    readout = Readout(model)
    clean = readout.clean(residual.flatten(0, 1), targets)
    own = model.activations(ids)[..., 24:].flatten(0, 1).T
    change = torch.stack([value - own for value in values], 1)
    with torch.inference_mode():
        w_out = model.part(1, "w_out").weight
        w_out = w_out if family == "gpt2" else w_out.T
        found = readout.of_last_layer(w_out, change, clean, frozen=frozen)
    scale = torch.from_numpy(scale_by_hand(family, residual)).float() if frozen else None
    for neuron in range(24):
        for which, value in enumerate(values):
            changed, after = seen_after(model, ids, f"L1.{neuron}", Edit("fix", value), scale)
            expected = predictions(changed.flatten(0, 1), targets, logits.flatten(0, 1))
            expected["scale"] = (scale.numpy() if frozen else scale_by_hand(family, after)).ravel()
            of_residual = readout.of_residual(after.flatten(0, 1)[None], clean, scale.flatten() if frozen else None)
            for name, numbers in expected.items():
                close(getattr(found, name)[neuron, which], numbers, name)
                close(getattr(of_residual, name)[0], numbers, name)


def scaled_head(network):
    network.lm_head.register_forward_hook(lambda _m, _a, out: out * 1.5)


def capped_head(network):
    network.lm_head.register_forward_hook(lambda _m, _a, out: 5 * torch.tanh(out / 5))


def scaled_norm(network):
    network.transformer.ln_f.register_forward_hook(lambda _m, _a, out: out * 0.8)


@pytest.mark.parametrize("change", [scaled_head, capped_head, scaled_norm])
def test_a_model_whose_logits_are_something_else_is_refused(change):
    network = tiny_network("gpt2")
    change(network)
    with pytest.raises(ArchitectureError, match="logits are not those"):
        Readout(Model(network, "scaled"))


def test_models_without_a_final_norm_before_their_unembedding_are_refused():
    projected = {"word_embed_proj_dim": 8}
    for family, changes in (("bert", {}), ("opt", projected), ("opt", {"_remove_final_layer_norm": True})):
        with pytest.raises(ArchitectureError):
            Readout(Model(tiny_network(family, **changes), family))


def kept_by_hand(tokens: TokenDataset, rows: np.ndarray) -> list[tuple[int, int]]:
    found = []
    for place, row in enumerate(rows.tolist()):
        for position in range(CONTEXT - 1):
            length = int(tokens.lengths[row])
            both = [tokens.rows[row, position], tokens.rows[row, position + 1]]
            if position + 1 < length and position > 0 and not set(both) & set(MASKED):
                found.append((place, position))
    return found


@pytest.mark.parametrize("rows", [[0], [2, 4], [8, 1, 3, 6, 2, 7]])
def test_positions_are_kept_whose_own_and_next_token_count(rows):
    tokens, rows = some_tokens(), np.array(rows)
    model = model_of("gpt2")
    trial = Trial(model, Readout(model), tokens, rows)
    kept = kept_by_hand(tokens, rows)
    assert trial.kept.tolist() == [place * CONTEXT + position for place, position in kept]
    assert trial.row_of.tolist() == [rows[place] for place, _ in kept]
    expected = [tokens.rows[rows[place], position + 1] for place, position in kept]
    assert trial.clean.targets.tolist() == expected
    logits, residual = seen_of(model, trial.ids)
    right = predictions(logits.flatten(0, 1)[trial.kept], trial.clean.targets, logits.flatten(0, 1)[trial.kept])
    close(trial.clean.metrics.loss, right["loss"], "loss")
    torch.testing.assert_close(trial.final, residual.flatten(0, 1))


def test_bos_is_kept_where_it_counts():
    tokens = TokenDataset.from_pieces([("a", np.arange(1, 6))], context=8, bos=0, masked=())
    model = model_of("gpt2")
    trial = Trial(model, Readout(model), tokens, np.array([0]))
    assert trial.kept.tolist() == [0, 1, 2, 3, 4]
    assert trial.clean.targets.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", CAUSAL)
def test_going_on_from_a_clean_run_is_running_the_whole_model(family, layer, frozen, monkeypatch):
    """More changed copies than go on together, of one row and of several."""
    monkeypatch.setattr(trials_module, "COPIES", 4)
    model, tokens, neurons = model_of(family, 3), some_tokens(), [20, 3, 11]
    means = torch.tensor([0.3, -1.0, 2.0])
    edits = [Edit("multiply", 2.0), Edit("mean", means), Edit("threshold", 0.1)]
    readout = Readout(model)
    for rows in (np.array([3]), np.array([6, 0, 8, 3])):
        trial = Trial(model, readout, tokens, rows, layer)
        found = trial.try_out(layer, neurons, edits, frozen=frozen)
        logits, residual = seen_of(model, trial.ids)
        scale = torch.from_numpy(scale_by_hand(family, residual)).float() if frozen else None
        assert found.loss.shape == (3, 3, len(trial.kept))
        for place, neuron in enumerate(neurons):
            for which, edit in enumerate(edits):
                own = Edit("mean", float(means[place])) if edit.kind == "mean" else edit
                changed, after = seen_after(model, trial.ids, f"L{layer}.{neuron}", own, scale)
                changed, clean = (x.flatten(0, 1)[trial.kept] for x in (changed, logits))
                expected = predictions(changed, trial.clean.targets, clean)
                expected["scale"] = (scale.numpy() if frozen else scale_by_hand(family, after)).ravel()[trial.kept]
                for name, numbers in expected.items():
                    close(getattr(found, name)[place, which], numbers, name)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "gemma",
        "gemma3_text",
        "olmo2",
        "glm4",
        "granite",
        "cohere",
        "phi3",
        "falcon",
        "falcon, sequential",
        "bloom",
        "mpt",
    ],
)
def test_it_goes_on_through_norms_behind_the_mlp_and_multipliers(name, layer, frozen):
    model, neurons, edit = tiny_types.model_of(name), [20, 3], Edit("multiply", 3.0)
    trial = Trial(model, Readout(model), some_tokens(), np.array([6, 0]), layer)
    found = trial.try_out(layer, neurons, [edit], frozen=frozen)
    logits, residual = seen_of(model, trial.ids)
    scale = trial.readout.norm.scale(residual) if frozen else None
    for place, neuron in enumerate(neurons):
        changed, _ = seen_after(model, trial.ids, f"L{layer}.{neuron}", edit, scale)
        changed, clean = (x.flatten(0, 1)[trial.kept] for x in (changed, logits))
        expected = predictions(changed, trial.clean.targets, clean)
        for what in ("loss", "entropy", "divergence"):
            close(getattr(found, what)[place, 0], expected[what], what)
        assert (found.loss[place, 0] - trial.clean.metrics.loss).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_in_half_precision_it_goes_on_from_what_the_model_computed(family, layer):
    model = Model(tiny_network(family, vocab_size=VOCABULARY).bfloat16(), "half")
    trial = Trial(model, Readout(model), some_tokens(), np.array([6, 0, 8, 3]), layer)
    found = trial.try_out(layer, [3], [Edit("fix", 2.0)]).loss[0, 0]
    changed, _ = seen_after(model, trial.ids, f"L{layer}.3", Edit("fix", 2.0), None)
    changed = changed.float().flatten(0, 1)[trial.kept]
    expected = predictions(changed, trial.clean.targets, changed)["loss"]
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 0.06
    assert (found - trial.clean.metrics.loss).abs().max() > 0.5


def test_only_what_is_needed_is_kept():
    model = model_of("gpt2", 3)
    for first in range(3):
        trial = Trial(model, Readout(model), some_tokens(), np.array([0, 1]), first)
        assert list(trial.activations) == list(range(first, 3))
        assert list(trial.calls) == list(range(first + 1, 3))
        for layer, activation in trial.activations.items():
            whole = model.activations(trial.ids)[..., layer * 24 : (layer + 1) * 24]
            torch.testing.assert_close(activation, whole.flatten(0, 1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


@pytest.mark.parametrize("layer", [0, 2])
def test_equal_changes_are_tried_once(layer, monkeypatch):
    """Metrics of edits that change the same are the same; total and direct effects are of one run."""
    model, neurons = model_of("gpt2", 3), [20, 3]
    trial = Trial(model, Readout(model), some_tokens(), np.array([6, 0]), layer)
    monkeypatch.setattr(trials_module, "CACHED", 1)  # a copy at a time
    own = torch.tensor([0.0, 2.0])
    edits = [Edit("fix", 0.0), Edit("fix", own), Edit("fix", 2.0), Edit("zero")]
    runs, after = [], trial.after
    monkeypatch.setattr(trial, "after", lambda layer, added: runs.append(len(added)) or after(layer, added))
    of_all = trial.total_and_direct(layer, neurons, edits)
    assert runs == ([1, 1, 1, 1] if layer == 0 else [])
    for found, frozen in zip(of_all, (False, True)):
        for place, neuron in enumerate(neurons):
            for which, edit in enumerate(edits):
                alone = trial.try_out(layer, [neuron], [edit.of([place])], frozen=frozen)
                for name, values in vars(found).items():
                    torch.testing.assert_close(values[place, which], vars(alone)[name][0, 0], msg=name)


def test_trials_of_a_few_rows_are_those_of_all(monkeypatch):
    model, tokens, rows = model_of("llama"), some_tokens(), np.array([0, 1, 4, 7, 6, 8, 3])
    readout = Readout(model)
    (whole,) = trials(model, readout, tokens, rows)
    monkeypatch.setattr(trials_module, "LOGITS_AT_ONCE", 2 * CONTEXT * VOCABULARY)
    parts = list(trials(model, readout, tokens, rows))
    assert [part.rows.tolist() for part in parts] == [[0, 1], [6, 8], [3]]  # rows 4 and 7 have nothing to count
    assert torch.cat([part.row_of for part in parts]).tolist() == whole.row_of.tolist()
    torch.testing.assert_close(torch.cat([part.clean.metrics.loss for part in parts]), whole.clean.metrics.loss)
    for name, value in (("LOGITS_AT_ONCE", 1), ("CACHED", 1)):
        with monkeypatch.context() as fewer:
            fewer.setattr(trials_module, name, value)
            assert all(len(part.rows) == 1 for part in trials(model, readout, tokens, rows))


@pytest.mark.parametrize("layer", [0, 1])
def test_readings_of_some_places_are_those_of_all(layer):
    model, tokens, rows = model_of("llama"), some_tokens(), np.array([0, 1, 6, 8, 3])
    readout = Readout(model)
    (whole,) = trials(model, readout, tokens, rows)
    (some,) = trials(model, readout, tokens, rows, 0, 7)
    at = torch.isin(whole.kept, some.kept)
    assert some.kept.tolist() == whole.kept[torch.linspace(0, len(whole.kept) - 1, 7).round().int()].tolist()
    assert some.counted.tolist() == whole.counted.tolist() == whole.kept.tolist()
    assert some.row_of.tolist() == whole.row_of[at].tolist()
    assert torch.equal(some.following[some.kept], some.clean.targets)
    for frozen in (False, True):
        found, of_all = (t.try_out(layer, [3, 5], [Edit("fix", 2.0)], frozen=frozen) for t in (some, whole))
        for name, values in vars(found).items():
            torch.testing.assert_close(values, vars(of_all)[name][..., at])


def test_places_are_spread_over_all_rows():
    places = np.random.default_rng(0).random((40, 30)) < 0.6
    every = int(places.sum())
    for most in (1, 40, 399, every - 1):
        taken = spread_places(places, most)
        assert taken.sum() == most
        assert (taken <= places).all()
        assert most < 40 or np.ptp(taken.sum(1) - most / every * places.sum(1)) <= 3
    assert (spread_places(places, every) == places).all()
