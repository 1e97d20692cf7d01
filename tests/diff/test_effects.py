"""Effects of the units that changed most: losses and shares are those of plain forward passes; planted ones carry all."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from conftest import exit_code, some_text, tiny_model
from planted import LAYER, WIDTH, Unit, drifted, named, network, some_tokens
from scipy import stats

import universal_neurons as un
from universal_neurons.diff import effects_seconds, passes_of
from universal_neurons.diff.effect_units import EffectUnits, change_sizes, effect_units
from universal_neurons.diff.effects import EffectRuns, effect_rows, read_effects, rows_together
from universal_neurons.errors import ArchitectureError
from universal_neurons.interventions import patched, taken, token_losses
from universal_neurons.models import module_at
from universal_neurons.storage import Generations
from universal_neurons.units import NONE, Units

TOKENS = some_tokens()
CHANGED = (3, 7, 20, 33)


def of(base, tuned, out, effects, tokens=TOKENS, **more):
    config = un.DiffConfig(
        models=("base", "tuned"), out=str(out), stages=("universality",), draws=2, top_k=2, max_tokens=5120,
        effects=effects, **more,
    )  # fmt: skip
    return un.run_diff(config, models=[base, tuned], tokens=tokens, progress=False)


def rewired(base, units=CHANGED, seed=1):
    """A copy in which some units of the last layer read something else."""
    tuned = named(copy.deepcopy(base.hf), "tuned")
    chance = torch.Generator().manual_seed(seed)
    for unit in units:
        values = Unit(tuned, unit).get()
        Unit(tuned, unit).set([torch.randn(values[0].shape, generator=chance), *values[1:]])
    return tuned


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    base = named(network("gpt2"), "base")
    return of(base, rewired(base), tmp_path_factory.mktemp("planted") / "run", len(CHANGED))


def test_all_that_differs_carries_all_of_the_gain_and_others_none(planted, capsys):
    changed, others = planted.table("joint_effects").rows(named=True)
    assert (changed["units"], changed["count"], others["units"], others["count"]) == ("changed", 4, "others", 4)
    for end in ("", "_low", "_high"):
        assert changed[f"share{end}"] == pytest.approx(1, abs=1e-5)
        assert changed[f"given_share{end}"] == pytest.approx(1, abs=1e-5)
        assert others[f"share{end}"] == pytest.approx(0, abs=1e-5)
        assert others[f"given_share{end}"] == pytest.approx(0, abs=1e-5)
    rows = planted.table("unit_effects")
    assert set(rows["neuron"]) == set(CHANGED)
    assert (rows["layer"] == LAYER).all()
    assert (rows["other_layer"] == LAYER).all()
    assert not set(rows["other_neuron"]) & set(CHANGED)
    assert rows["other_neuron"].n_unique() == 4
    assert rows["size"].is_sorted(descending=True)
    said = " ".join(repr(planted).split())
    assert "The 4 units that changed most carry 1.000 [1.000 1.000] of what the fine-tune gained" in said
    assert "4 others of their layers 0.000 [0.000 0.000]. Given to the base, their activations bring it 1.000" in said
    figure = planted.plot.effects()
    assert "All 4 together carry 1.00 of the gain" in str(figure.caption)
    capsys.readouterr()
    assert exit_code("show", planted.path, "L1.3") == 0
    assert "given the base's activation it rises by" in " ".join(capsys.readouterr().out.split())


def test_a_model_and_itself_have_no_share(tmp_path):
    base = named(network("gpt2"), "base")
    diff = of(base, named(copy.deepcopy(base.hf), "tuned"), tmp_path / "run", 2)
    joint, units = diff.table("joint_effects"), diff.table("unit_effects")
    assert (joint["gain"] == 0).all()
    assert (joint["patched"] == 0).all()
    assert joint["share"].is_null().all()
    assert joint["given_share"].is_null().all()
    assert units["share"].is_null().all()
    assert units["patched"].to_list() == [0, 0]
    assert "not to be told from 0" in repr(diff)
    assert "is not to be told from 0, so that (b) shows losses" in str(diff.plot.effects().caption)


WRITERS = {
    "gpt2": lambda network, layer: network.transformer.h[layer].mlp.c_proj,
    "llama": lambda network, layer: network.model.layers[layer].mlp.down_proj,
}


class ByHand:
    """Plain `transformers`, with hooks of its own."""

    def __init__(self, model, family):
        self.network, self.writer = model.hf, WRITERS[family]

    def activations(self, ids):
        seen = [None, None]
        hooks = [
            self.writer(self.network, layer).register_forward_pre_hook(
                lambda _, args, layer=layer: seen.__setitem__(layer, args[0].clone())
            )
            for layer in (0, 1)
        ]
        self.network(ids)
        for hook in hooks:
            hook.remove()
        return seen

    def losses(self, ids, kept, changes=()):
        """Loss of each kept token after changes (layer, unit, what it becomes: a number, or of every position)."""

        def hook(layer, args):
            changed = args[0].clone()
            for of_layer, unit, value in changes:
                if of_layer == layer:
                    changed[..., unit] = value
            return (changed,)

        hooks = [
            self.writer(self.network, layer).register_forward_pre_hook(lambda _, args, layer=layer: hook(layer, args))
            for layer in (0, 1)
        ]
        log_p = self.network(ids).logits.double().log_softmax(-1)
        for one in hooks:
            one.remove()
        losses = -log_p[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        return np.where(kept, losses.numpy(), 0).sum(1)


def jackknifed(estimate, sums, counts):
    """Value and ends of an estimate of mean losses, leaving out a stretch at a time."""
    value, n = estimate(sums.sum(0) / counts.sum()), len(counts)
    without = np.array([estimate(np.delete(sums, g, 0).sum(0) / np.delete(counts, g).sum()) for g in range(n)])
    error = np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    reach = stats.t.ppf(0.975, n - 1) * error
    return value, value - reach, value + reach


def run_by_hand(hands, ids, kept, means, turned, chosen, others):
    """Losses of each row of every run, in the order of the module: plain, ablated, patched, patched together."""
    seen = {model: hand.activations(ids) for model, hand in hands.items()}

    def given(source, places):
        signs = [-1 if place in turned else 1 for place in places]
        return [(*place, seen[source][place[0]][..., place[1]] * sign) for place, sign in zip(places, signs)]

    def losses(model, changes=()):
        return hands[model].losses(ids, kept, changes)

    runs = [losses("base"), losses("tuned")]
    runs += [losses(model, [(*p, means[model][p[0] * WIDTH + p[1]])]) for model in ("base", "tuned") for p in chosen]
    runs += [losses("tuned", given("base", [place])) for place in chosen]
    runs += [losses("tuned", given("base", places)) for places in (chosen, others)]
    return np.stack([*runs, *(losses("base", given("tuned", places)) for places in (chosen, others))])


def gain(m):
    return m[:1] - m[1:2]


OF_UNITS = {  # of the mean losses of all runs, for three units
    "ablated_before": lambda m: m[2:5] - m[0],
    "ablated_after": lambda m: m[5:8] - m[1],
    "patched": lambda m: m[8:11] - m[1],
    "share": lambda m: (m[8:11] - m[1]) / gain(m),
}
TOGETHER = {
    "gain": lambda m: gain(m).repeat(2),
    "patched": lambda m: m[11:13] - m[1],
    "share": lambda m: (m[11:13] - m[1]) / gain(m),
    "given": lambda m: m[0] - m[13:15],
    "given_share": lambda m: (m[0] - m[13:15]) / gain(m),
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_number_is_a_plain_forward_passs(family, tmp_path):
    """On both texts: losses, rises, shares and their intervals, where every weight moved, four units' much more, and a
    gated one turned its sign."""
    base = named(network(family), "base")
    tuned = rewired(base)
    if base.gated:
        gate, up, *biases, out = Unit(tuned, 3).get()
        Unit(tuned, 3).set([gate, -up, *biases, -out])
    tuned = drifted(tuned, "tuned", 3, size=0.02)
    module_at(tuned.hf, tuned.architecture.final_norm).weight.mul_(0.8)  # less sure of what it cannot know
    (tmp_path / "second.txt").write_text(some_text(3000, seed=7))
    second = str(tmp_path / "second.txt")
    diff = of(base, tuned, tmp_path / "run", 3, data_tuned=second, effect_tokens=640)
    settings = diff.study.settings.model_copy(update={"data": second})
    texts = {"first": TOKENS, "second": un.TokenDataset.load(settings, base.tokenizer, context=64)}
    means = {m: diff.study.neurons.filter(model=m)["activation_mean"].to_numpy() for m in ("base", "tuned")}
    hands = {"base": ByHand(base, family), "tuned": ByHand(tuned, family)}
    turned = set(diff.changes.filter((pl.col("w_out_cos") < 0) & base.gated).select("layer", "neuron").rows())
    for name, text in texts.items():
        of_text, both = (diff.table(table).filter(text=name) for table in ("unit_effects", "joint_effects"))
        chosen, others = (of_text.select(f"{of}layer", f"{of}neuron").rows() for of in ("", "other_"))
        assert set(chosen) <= {(LAYER, unit) for unit in CHANGED}
        if base.gated:
            assert turned & set(chosen) == {(LAYER, 3)}
        chosen_rows = effect_rows(text, None, 640)
        rows, stretch = chosen_rows.numbers, chosen_rows.stretch
        assert len(rows) == 10
        assert set(rows) <= set(np.concatenate(text.split()[1]))
        ids = torch.from_numpy(text.ids(rows))
        counted = (np.arange(64) < text.lengths[rows][:, None]) & ~np.isin(ids.numpy(), text.masked)
        counted[:, 0] = False
        kept = counted[:, 1:] & counted[:, :-1]
        runs = run_by_hand(hands, ids, kept, means, turned, chosen, others)
        sums = np.stack([runs[:, stretch == s].sum(1) for s in np.unique(stretch)])
        counts = np.array([kept[stretch == s].sum() for s in np.unique(stretch)])
        assert (of_text["tokens"] == counts.sum()).all()
        np.testing.assert_allclose(both["loss_before"], sums[:, 0].sum() / counts.sum(), atol=1e-5)
        np.testing.assert_allclose(both["loss_after"], sums[:, 1].sum() / counts.sum(), atol=1e-5)
        for table, quantities in ((of_text, OF_UNITS), (both, TOGETHER)):
            for column, estimate in quantities.items():
                for end, value in zip(("", "_low", "_high"), jackknifed(estimate, sums, counts)):
                    np.testing.assert_allclose(table[f"{column}{end}"], value, atol=1e-5, err_msg=column + end)


def test_sizes_are_numpys():
    base = named(network("gpt2"), "base")
    tuned = drifted(base, "tuned", 3)
    rows = np.arange(6)
    ids, kept = torch.from_numpy(TOKENS.ids(rows)), TOKENS.mask(rows)
    before, after = (model.activations(ids).double().numpy()[kept] for model in (base, tuned))
    sign = np.where(np.arange(96) % 2, -1.0, 1.0)
    writers = np.concatenate([tuned.hf.transformer.h[layer].mlp.c_proj.weight.numpy() for layer in (0, 1)])
    wanted = np.sqrt(((after - before * sign) ** 2).mean(0)) * np.linalg.norm(writers, axis=1)
    sizes = change_sizes(base, tuned, TOKENS, [rows[:4], rows[4:]], sign)
    np.testing.assert_allclose(sizes, wanted, rtol=1e-5)


def test_who_is_chosen_and_who_stands_beside():
    """Ten units of two layers: kinds come first, then sizes; others are of the layer, living, unchanged, the nearest."""
    kinds = [
        "unchanged",
        "re-tuned",
        "unchanged",
        "unchanged",
        "unchanged",
        "shifted",
        "moved",
        None,
        "unchanged",
        "died",
    ]
    dead_before = [False, False, True, False, False, False, False, False, False, False]
    changes = pl.DataFrame({"kind": kinds, "dead_before": dead_before, "dead_after": [*[False] * 9, True]})
    sizes = np.array([9, 1, 8, 0, 0, 2, 3, 7, 1, 4.0])
    contributed = np.array([1, 2, 2, 4, 1.9, 5, 1, 9, 9, 8.0])
    chosen = effect_units(changes, Units.equal(2, 5), 4, sizes, contributed)
    assert chosen.changed == [9, 6, 5, 1]
    assert chosen.others == [8, 7, NONE, 4]
    assert chosen.sizes == [4, 3, 2, 1]
    assert chosen.beside == [8, 7, 4]
    more = effect_units(changes, Units.equal(2, 5), 99, sizes, contributed)
    assert more.changed == [9, 6, 5, 1, 0, 2, 7, 8, 3, 4]
    assert more.beside == []


@pytest.fixture
def runs():
    base = named(network("gpt2"), "base")
    means = (torch.zeros(96), torch.ones(96))
    return EffectRuns(base, rewired(base), EffectUnits([3, 60], [4, NONE], [2.0, 1.0]), means, np.ones(96))


def test_an_interrupted_pass_goes_on_with_the_same_numbers(runs, tmp_path, monkeypatch):
    rows, calls = effect_rows(TOKENS, None, 512), []

    def read(name):
        return read_effects(runs, TOKENS, rows, 3, Generations(tmp_path / name))

    def counting(model, ids):
        calls.append(len(ids))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return token_losses(model, ids)

    whole = read("whole")
    monkeypatch.setattr("universal_neurons.diff.effects.token_losses", counting)
    with pytest.raises(KeyboardInterrupt):
        read("run")
    again = read("run")
    assert len(calls) == 20 + 2 * sum(passes_of(2))  # of three batches one was finished
    assert (again.sums == whole.sums).all()
    assert (again.tokens == whole.tokens).all()
    read("run")
    assert len(calls) == 20 + 2 * sum(passes_of(2))


def test_seconds_are_those_of_the_passes(runs):
    sizes = {"positions": 512, "context": 64, "batch_tokens": 256}
    assert effects_seconds(runs.base, runs.tuned, units=0, **sizes) == 0
    assert effects_seconds(runs.base, runs.tuned, units=2, **sizes) > 0
    ids = torch.from_numpy(TOKENS.ids(np.arange(2)))
    assert len(list(runs.of(ids))) == sum(passes_of(2))
    assert [rows_together(runs.base, 64, tokens) for tokens in (1, 256, 2**22)] == [1, 4, 1024]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_units_of_experts_are_patched(family):
    """Where experts' units alone differ, their activations make one model the other."""
    base = tiny_model(family, 0, "base")
    tuned = tiny_model(family, 0, "tuned")
    chance = torch.Generator().manual_seed(1)
    for parameter in tuned.sparse[0].experts.gate_up_proj:
        parameter.add_(torch.randn(parameter.shape, generator=chance) * 0.3)
    ids = torch.from_numpy(TOKENS.ids(np.arange(2)))
    numbers = range(tuned.sparse[0].plain, tuned.sparse[0].width)
    with taken(base, numbers) as before:
        wanted = token_losses(base, ids)
    assert (token_losses(tuned, ids) - wanted).abs().max() > 0.01
    with patched(tuned, before):
        torch.testing.assert_close(token_losses(tuned, ids), wanted, rtol=0, atol=1e-4)


def test_models_that_predict_nothing_have_no_effects(tmp_path, capsys):
    pair = [tiny_model("bert", seed, name) for seed, name in enumerate(("base", "tuned"))]
    with pytest.raises(ArchitectureError, match="no causal language model"):
        of(*pair, tmp_path / "run", 2)
    config = un.DiffConfig(models=("base", "tuned"), out=str(tmp_path / "run"), stages=("universality",), draws=2)
    diff = un.run_diff(config, models=pair, tokens=TOKENS)
    assert "no effects on the loss: base: it is no causal language model" in " ".join(capsys.readouterr().err.split())
    assert diff.config.effects == 0
    assert not diff.has("unit_effects")
    assert "carry" not in repr(diff)


@pytest.mark.cuda
def test_a_device_says_what_the_processor_says(runs, device):
    ids = torch.from_numpy(TOKENS.ids(np.arange(4)))
    wanted = torch.stack(list(runs.of(ids)))
    for model in (runs.base, runs.tuned):
        model.hf.to(device)
    torch.testing.assert_close(torch.stack(list(runs.of(ids))), wanted, rtol=0, atol=2e-3)
