"""Variance reductions against eq 4 label by label, and the decision of a family."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import tiny_model
from test_correlation import captured
from test_label_set import CONTEXT, plain_example

from universal_neurons.features import NeuronSource
from universal_neurons.labels import (
    FAMILIES,
    Label,
    LabelEvidence,
    LabelSet,
    LabelSource,
    Scores,
    explain,
    families,
    family_of,
    partner_rows,
)
from universal_neurons.labels.families import adjusted_eta_squared, label_recipes, mutual_information
from universal_neurons.passes import Pass
from universal_neurons.statistics import (
    BY_POSITION,
    BY_PREVIOUS,
    BY_WORD,
    LABELS,
    Batch,
    Block,
    CoMoments,
    GroupedSums,
    GroupMeans,
    Key,
    Statistics,
    SumSquares,
    What,
)
from universal_neurons.text import Vocabulary


def evidence_of(models, tokens, labels, *, dense=False, null=False):
    """The labels' evidence (and the null's) of a pass over all rows, in small batches."""
    every = np.arange(len(tokens))
    sources = [LabelSource(labels, tokens, dense=dense)]
    if null:
        sources.append(LabelSource(labels, tokens, dense=dense, partner=partner_rows(every, len(tokens), 0)))
    recipes = label_recipes(labels, models, dense=dense, width=sources[0].width, null=null)
    run = Pass([NeuronSource(model, pre=True) for model in models], recipes, sources)
    run.run(tokens, tokens.shards(every), batch_tokens=200)
    return [
        LabelEvidence(labels, Statistics(run.accumulators), dense=dense, null=of) for of in (False, True)[: 1 + null]
    ]


@pytest.fixture(scope="module")
def example():
    tokens, labels, truth = plain_example()
    models = [tiny_model("gpt2"), tiny_model("llama")]
    with torch.no_grad():
        models[0].blocks[1].mlp.c_fc.weight[:, 3] = 0  # dead
    return models, tokens, labels, truth[tokens.mask(np.arange(len(tokens)))]


def equation_4(v, y):
    beta = y.mean()
    return 1 - ((1 - beta) * v[~y].var(0) + beta * v[y].var(0)) / v.var(0)


@pytest.mark.parametrize("dense", [False, True])
def test_variance_reduction_is_equation_4_of_every_label(example, dense):
    models, tokens, labels, holds = example
    (evidence,) = evidence_of(models, tokens, labels, dense=dense)
    judged = (holds.sum(0) >= 20) & ((~holds).sum(0) >= 20)
    groups = {(labels.all[n].group, labels.all[n].previous) for n in np.flatnonzero(judged)}
    assert len(groups) == 12
    for model in models:
        v = captured(model, tokens)
        alive = v.max(0) > v.min(0)
        found = evidence.reductions(model.name).numpy()
        assert len(found) == len(labels.all) + 1
        np.testing.assert_allclose(evidence.reductions(model.name, slice(20, 30)).numpy(), found[:, 20:30], atol=1e-12)
        assert np.isnan(found[:, ~alive]).all()
        assert np.isnan(found[:-1][~judged]).all()
        v, found = v[:, alive], found[:, alive]
        for n in np.flatnonzero(judged):
            y = holds[:, n]
            expected = equation_4(v, y)
            np.testing.assert_allclose(np.abs(found[n]), expected, atol=1e-6)
            clear = expected > 1e-5
            np.testing.assert_array_equal((np.sign(found[n]) > 0)[clear], (v[y].mean(0) > v[~y].mean(0))[clear])
    assert np.nanmax(found) > 0.05
    assert np.nanmin(found) < -0.05


def test_dense_and_sparse_labels_give_the_same_sums(example):
    models, tokens, labels, holds = example
    sparse, dense = (evidence_of(models, tokens, labels, dense=dense, null=True) for dense in (False, True))
    for one, other in zip(sparse, dense):
        for model in models:
            for ours, theirs in zip(one.sums(model.name), other.sums(model.name)):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(sparse[0].sums(models[0].name)[0].numpy(), holds.sum(0))


@pytest.mark.parametrize("panel", [20, 4096])
def test_the_best_labels_are_numpys(example, panel, monkeypatch):
    monkeypatch.setattr(families, "PANEL_NEURONS", panel)
    models, tokens, labels, holds = example
    (evidence,) = evidence_of(models, tokens, labels)
    best = evidence.best(models[0].name, 5)
    alive = np.arange(48) != 27
    v = captured(models[0], tokens)[:, alive]
    judged = np.flatnonzero((holds.sum(0) >= 20) & ((~holds).sum(0) >= 20))
    scores = np.stack([equation_4(v, holds[:, n]) for n in judged])
    eta = evidence.of(models[0].name, np.full(48, len(labels.all)))[alive]
    scores = np.sort(np.concatenate([scores, eta[None]]), 0)[::-1]
    np.testing.assert_allclose(best.variance_reduction[:, alive], scores[:5], atol=1e-6, rtol=2e-5)
    again = np.stack([evidence.of(models[0].name, index) for index in best.index])
    np.testing.assert_allclose(again[:, alive], (best.variance_reduction * best.sign)[:, alive])
    assert np.isnan(best.variance_reduction[:, 27]).all()
    assert (best.sign[:, 27] == 0).all()


def with_a_copy(labels, place):
    """The labels with a copy of one of words, as the user's own, behind all of its kind."""
    copied = dataclasses.replace(labels)
    copied.word_labels = [*labels.word_labels, Label("mine", "own")]
    copied.word_table = np.concatenate([labels.word_table, labels.word_table[place][None]])
    return copied


@pytest.mark.parametrize(("panel", "most"), [(20, 10**6), (20, 0), (4096, 0)])
def test_scores_and_ranks_of_own_labels_are_numpys_for_every_neuron(example, panel, most, monkeypatch):
    for name, value in {"PANEL_NEURONS": panel, "MOST_OWN": most, "MOST_NEURONS": 7}.items():
        monkeypatch.setattr(families, name, value)
    models, tokens, labels, holds = example
    (evidence,) = evidence_of(models, tokens, labels)
    v = captured(models[0], tokens)
    with np.errstate(invalid="ignore"):
        squares = np.array([[np.corrcoef(x, y)[0, 1] ** 2 for x in v.T] for y in holds.T.astype(float)])
    judged = (holds.sum(0) >= 20) & ((~holds).sum(0) >= 20)
    eta = np.abs(evidence.reductions(models[0].name).numpy()[-1:])
    scores = np.nan_to_num(np.concatenate([np.where(judged[:, None], squares, np.nan), eta]), nan=-1)
    scores[:, 27] = -1  # dead
    own = evidence.best(models[0].name, with_own=True).own
    assert evidence.best(models[0].name).own is None
    assert [labels.all[n].group for n in own.index] == ["own"] * 4
    assert own.neuron.shape == (4, 7 if most == 0 else 48)
    for index, *kept in zip(own.index, own.neuron, own.reduction, own.rank):
        neurons, reduction, rank = (part.numpy() for part in kept)
        if not judged[index]:
            assert np.isnan(reduction).all()
            continue
        best = np.sort(scores[index])[::-1][: len(neurons)]
        np.testing.assert_allclose(np.sort(np.nan_to_num(np.abs(reduction), nan=-1))[::-1], best, atol=1e-6)
        alive = neurons != 27
        neurons, rank = neurons[alive], rank[alive]
        np.testing.assert_allclose(np.abs(reduction[alive]), scores[index, neurons], atol=1e-6)
        for neuron, place in zip(neurons, rank):
            others, mine = np.delete(scores[:, neuron], index), scores[index, neuron]
            surely, tied = (
                (others > mine * (1 + 1e-4) + 1e-7).sum(),
                (np.abs(others - mine) <= mine * 1e-4 + 1e-7).sum(),
            )
            assert 1 + surely <= place <= 1 + surely + tied


@pytest.mark.parametrize("dense", [False, True])
def test_of_an_own_label_and_the_same_built_in_one_the_own_comes_first(example, dense):
    models, tokens, labels, holds = example
    built_in = next(n for n, label in enumerate(labels.word_labels) if label.group != "own" and holds[:, n].sum() >= 20)
    copied = with_a_copy(labels, built_in)
    mine = copied.all.index(Label("mine", "own"))
    (evidence,) = evidence_of(models, tokens, copied, dense=dense)
    for model in models:
        best = evidence.best(model.name, len(copied.all)).index.T
        alive = np.isfinite(evidence.reductions(model.name)[mine].numpy())
        assert alive.sum() >= 40
        for order in best[alive]:
            assert list(order).index(mine) + 1 == list(order).index(built_in)


def test_of_two_subsets_the_one_where_the_neuron_is_higher_comes_first(example):
    models, tokens, labels, _ = example
    (evidence,) = evidence_of(models, tokens, labels)
    subsets = [labels.all.index(Label(name, "subsets")) for name in tokens.subset_names]
    best = evidence.best(models[1].name, len(labels.all))
    places = [np.argmax(best.index == subset, 0) for subset in subsets]
    signs = [np.take_along_axis(best.sign, place[None], 0)[0] for place in places]
    clear = np.take_along_axis(best.variance_reduction, places[0][None], 0)[0] > 1e-3
    assert clear.sum() > 5
    assert (signs[0] == -signs[1])[clear].all()
    np.testing.assert_array_equal((places[0] < places[1])[clear], (signs[0] > 0)[clear])


def test_position_as_a_whole_is_a_one_way_analysis_of_variance(example):
    models, tokens, labels, _ = example
    (evidence,) = evidence_of(models, tokens, labels)
    mask = tokens.mask(np.arange(len(tokens)))
    position = np.broadcast_to(np.arange(CONTEXT), mask.shape)[mask]
    v = captured(models[1], tokens)
    groups = [v[position == t] for t in range(1, CONTEXT)]
    within = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups)
    mean_squares = within / (len(v) - len(groups)), v.var(0, ddof=1)
    expected = np.clip(1 - mean_squares[0] / mean_squares[1], 0, 1)
    found = evidence.of(models[1].name, np.full(48, len(labels.all)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_adjusted_eta_squared_leaves_empty_groups_out():
    chooser = np.random.default_rng(0)
    group = chooser.choice([0, 2, 3], 200)
    v = chooser.normal(size=(200, 4)) + np.array([0, 0.1, 1, 5]) * group[:, None]
    counts = np.bincount(group, minlength=6)
    sums = np.stack([v[group == g].sum(0) for g in range(6)])
    squares = ((v - v.mean(0)) ** 2).sum(0)
    found = adjusted_eta_squared(
        GroupedSums(torch.from_numpy(counts), torch.from_numpy(sums)), torch.from_numpy(squares)
    )
    within = sum(((v[group == g] - v[group == g].mean(0)) ** 2).sum(0) for g in (0, 2, 3))
    np.testing.assert_allclose(found, np.clip(1 - (within / 197) / (squares / 199), 0, 1), atol=1e-12)
    assert found[3] > 0.9


def plain_information(fires, position):
    """Mutual information as the paper has it, its bias taken off, one neuron at a time."""
    shares = [fires[position == t].mean(0) for t in np.unique(position)]
    total = np.zeros(fires.shape[1])
    for n in range(fires.shape[1]):
        f = np.mean([share[n] for share in shares])
        for share in shares:
            for p, q in ((share[n], f), (1 - share[n], 1 - f)):
                total[n] += p * np.log(p / q) if p > 0 else 0.0
    return total / len(shares) - (len(shares) - 1) / (2 * len(fires))


def test_mutual_information_is_numpys_where_0_ln_0_is_0():
    chooser = np.random.default_rng(0)
    position = chooser.integers(0, 6, 300)
    position[position == 4] = 5
    fires = chooser.random((300, 5)) < np.array([0.5, 0.02, 1.1, -1, 0.3])
    fires[:, 4] = position < 3
    counts = torch.from_numpy(np.bincount(position, minlength=8))
    sums = torch.from_numpy(np.stack([fires[position == t].sum(0).astype(float) for t in range(8)]))
    found = mutual_information(GroupedSums(counts, sums)).numpy()
    np.testing.assert_allclose(found, plain_information(fires, position), atol=1e-12)
    assert found[2] == found[3] == pytest.approx(-4 / 600)
    assert found[4] > 0.5


def test_position_information_is_of_pre_activations_above_zero(example):
    models, tokens, labels, _ = example
    (evidence,) = evidence_of(models, tokens, labels)
    mask = tokens.mask(np.arange(len(tokens)))
    pre = (
        models[1].activations(torch.from_numpy(tokens.ids(np.arange(len(tokens)))), pre_activations=True).numpy()[mask]
    )
    position = np.broadcast_to(np.arange(CONTEXT), mask.shape)[mask]
    found = evidence.position_information(models[1].name)
    np.testing.assert_allclose(found, plain_information(pre > 0, position), atol=1e-6)


@pytest.mark.parametrize(("label", "family"), [
    (Label("the", "unigrams"), "unigram"), (Label("b", "unigrams"), "alphabet"),
    (Label("b (word)", "unigrams"), "alphabet"), (Label(",", "unigrams"), "unigram"),
    (Label("b", "unigrams", True), "previous_token"), (Label("pos_NOUN", "syntax"), "syntax"),
    (Label("dep_det", "syntax", True), "previous_token"), (Label("all_caps", "tokens"), "token_class"),
    (Label("mine", "own"), "token_class"), (Label("code", "subsets"), "context"), (Label("t", "topics"), "context"),
    (Label("position 1", "position"), "position"), (families.POSITION, "position"),
])  # fmt: skip
def test_the_family_of_a_label(label, family):
    assert family_of(label) == family
    assert family in FAMILIES


def hand_made_evidence(values, y, null, firing, position):
    """Evidence of one label y and of 4 positions with some neurons, from raw numbers."""
    n, width = values.shape
    labels = LabelSet(
        Vocabulary(("a",), np.zeros(1, bool)), 4, np.zeros(4, np.int64), [Label("word", "unigrams")],
        np.array([[True, False]]), [], np.zeros((0, 2), bool), [Label("position 1", "position")],
        np.array([[False, True, False, False]]),
    )  # fmt: skip
    index = {BY_WORD: torch.from_numpy(1 - y), BY_PREVIOUS: torch.ones(n, dtype=torch.long), BY_POSITION: position}
    word, previous, by_position = keys = [key.null if null else key for key in index]
    statistics = [
        SumSquares("m", width),
        GroupMeans("m", word, 2, width),
        GroupMeans("m", previous, 2, width),
        GroupMeans("m", by_position, 4, width),
        GroupMeans(Key("m", What.PRE), by_position, 4, width, of="firing"),
    ]
    blocks = {Key("m"): Block(torch.from_numpy(values).float()), Key("m", What.PRE): Block(firing.float())}
    for accumulator in statistics:
        accumulator.update(Batch(blocks, index=dict(zip(keys, index.values()))))
        accumulator.fold()
    return LabelEvidence(labels, Statistics(statistics), dense=False, null=null)


def decided(floor=0.05, is_bos=(), dead=(), null_of_first=0.0, mi=None):
    """`explain` for three neurons: the label explains 0.8 of the first on held-out text, 0.1 of the second, 0 of the third."""
    chooser = np.random.default_rng(0)
    n = 4000
    y, other = (chooser.integers(0, 2, n) for _ in range(2))
    noise = chooser.normal(size=(n, 3))
    values = noise + np.array([4.0, 2 / 3, 0]) * y[:, None]
    values[:, 0] += null_of_first * other
    position = torch.from_numpy(chooser.integers(0, 4, n))
    firing = torch.from_numpy(chooser.normal(size=(n, 3)))
    heldout, null = (
        hand_made_evidence(values, z, of_null, firing, position) for z, of_null in ((y, False), (other, True))
    )
    best = Scores(np.zeros((1, 3), np.int64), np.array([[0.9, 0.9, 0.9]]), np.ones((1, 3), np.int32))
    flags = [np.isin(np.arange(3), which) for which in (is_bos, dead)]
    return explain("m", best, np.zeros(3) if mi is None else np.array(mi), heldout, null, *flags, floor)


def test_what_held_out_text_does_not_bear_out_is_unexplained():
    found = decided()
    assert found.family == ["unigram", "unigram", "unexplained"]
    np.testing.assert_allclose(found.heldout, [0.8, 0.1, 0], atol=0.03)
    assert (found.null < 0.01).all()


def test_below_the_floor_nothing_is_an_explanation():
    assert decided(floor=0.3).family == ["unigram", "unexplained", "unexplained"]
    assert decided(floor=0.9).family == ["unexplained"] * 3


def test_a_label_must_beat_the_best_null_of_its_neuron_and_of_its_model():
    found = decided(null_of_first=6.0)
    assert found.null[0] > found.heldout[0] > 0.2
    assert found.family == ["unexplained"] * 3  # the first's null is the model's 99th percentile too


def test_a_label_that_points_the_other_way_on_held_out_text_explains_nothing():
    chooser = np.random.default_rng(0)
    y = chooser.integers(0, 2, 500)
    position = torch.from_numpy(chooser.integers(0, 4, 500))
    values = chooser.normal(size=(500, 1)) - 4.0 * y[:, None]
    firing = torch.from_numpy(values)
    heldout = hand_made_evidence(values, y, False, firing, position)
    null = hand_made_evidence(values, chooser.integers(0, 2, 500), True, firing, position)
    no = np.zeros(1, bool)
    for sign, family in ((1, "unexplained"), (-1, "unigram")):
        best = Scores(np.zeros((1, 1), np.int64), np.array([[0.8]]), np.full((1, 1), sign, np.int32))
        assert explain("m", best, np.zeros(1), heldout, null, no, no, 0.05).family == [family]


def test_dead_bos_and_position_neurons_without_a_label():
    found = decided(floor=0.9, is_bos=(0, 1), dead=(1,), mi=(0.0, 0.2, 0.2))
    assert found.family == ["bos", None, "position"]
    assert decided(floor=0.9, mi=(0.04, 0.0, 0.04)).family == ["unexplained"] * 3


def test_without_any_label_only_position_and_bos_are_told():
    none = LabelSet(
        Vocabulary(("a",), np.zeros(1, bool)), 4, np.zeros(4, np.int64), [], np.zeros((0, 1), bool), [],
        np.zeros((0, 2), bool), [], np.zeros((0, 4), bool),
    )  # fmt: skip
    square = SumSquares("m", 2)
    square.update(Batch({Key("m"): Block(torch.randn(50, 2))}))
    evidence = LabelEvidence(none, Statistics([square]), dense=False)
    assert evidence.statistics.find(CoMoments, LABELS, "m") == []
    best = evidence.best("m")
    assert best.index.shape == (0, 2)
    found = explain("m", best, None, evidence, evidence, np.array([True, False]), np.zeros(2, bool), 0.05)
    assert found.family == ["bos", "unexplained"]
