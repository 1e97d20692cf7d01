"""Which label holds at which position, against a plain computation position by position; the null's labels."""

import functools

import numpy as np
import pytest
import torch
from conftest import small_tokenizer, some_text

from universal_neurons import TokenDataset
from universal_neurons.labels import Label, LabelSource, build_labels, partner_rows, position_masks, unigram_masks
from universal_neurons.labels.own_labels import OwnLabels
from universal_neurons.labels.syntax import Syntax
from universal_neurons.labels.token_tests import TOKEN_TESTS, WIDER_TESTS
from universal_neurons.statistics import BY_POSITION, BY_PREVIOUS, BY_WORD, LABELS
from universal_neurons.text import Vocabulary, read_vocabulary

CONTEXT, NEWLINE = 24, 199
GROUPS = ("tokens", "unigrams", "syntax", "subsets", "position", "topics")
KIND_NAMES = ("", "word", "word start", "inside word")


def hand_made(*strings):
    return Vocabulary(("<s>", *strings), np.arange(len(strings) + 1) == 0)


def named(masks):
    return {label.name: np.flatnonzero(mask).tolist() for label, mask in masks}


def test_unigrams_are_as_frequent_as_the_papers_threshold_scaled_to_the_corpus():
    vocabulary = hand_made(" cat", "Cat", "dog", "fish", "�", " ", "rest")
    counts = np.zeros((8, 4), np.int64)
    counts[1:7, 1] = 2, 2, 3, 4, 9, 9
    counts[7, 1] = 10_000 - counts.sum()  # 10 000 tokens: more than 3 occurrences
    assert named(unigram_masks(vocabulary, counts)) == {"cat": [1, 2], "fish": [4], "rest": [7]}
    counts[7, 2] = 10_000
    assert named(unigram_masks(vocabulary, counts)) == {"rest": [7]}


@pytest.mark.parametrize(("size", "fewest"), [(1000, 1), (20_000, 2), (50_257, 4), (128_000, 4)])
def test_unigrams_need_as_many_variants_as_the_papers_scaled_to_the_vocabulary(size, fewest):
    spellings = [f"{' ' * n}w{'x' * variants}" for variants in range(1, 6) for n in range(variants)]
    vocabulary = hand_made(*spellings, *(f"filler{n}" for n in range(size - len(spellings) - 1)))
    counts = np.zeros((size, 4), np.int64)
    counts[1 : len(spellings) + 1, 1] = 5
    assert [len(ids) for ids in named(unigram_masks(vocabulary, counts)).values()] == list(range(fewest, 6))


def test_a_unigram_that_stands_in_two_places_of_a_word_has_a_label_for_each():
    vocabulary = hand_made(" in", "to", " he", "in")
    tokens = TokenDataset.from_pieces(
        [("", np.array(piece)) for piece in ([1, 3], [1, 2], [3, 1], [3, 3])], context=3, bos=0, masked=(0,)
    )
    labels = build_labels(("unigrams",), tokens, vocabulary)
    assert [label.name for label in labels.word_labels] == ["in", "to", "he", "in (word)", "in (word start)"]
    in_alone, in_to, to = (labels.word_of[4 * token + kind] for token, kind in ((1, 1), (1, 2), (2, 3)))
    holds = [np.flatnonzero(labels.word_table[:, word]).tolist() for word in (in_alone, in_to, to)]
    assert holds == [[0, 3], [0, 4], [1]]
    assert [label.name for label in labels.previous_labels] == ["in", "to", "he"]
    assert all(label.previous for label in labels.previous_labels)


@pytest.mark.parametrize("context", [1, 2, 3, 8, 31, 64, 512])
def test_ranges_of_positions_cover_every_position_but_the_first(context):
    masks = {label.name: mask for label, mask in position_masks(context)}
    octaves = sum((mask.astype(int) for name, mask in masks.items() if "<" not in name), np.zeros(context, int))
    assert octaves.tolist() == [0] + [1] * (context - 1)
    for name, mask in masks.items():
        if "<" in name:
            assert np.flatnonzero(mask).tolist() == list(range(1, int(name.split()[-1])))
    if context == 31:
        assert np.flatnonzero(masks["position 4–7"]).tolist() == [4, 5, 6, 7]
        assert np.flatnonzero(masks["position 16–30"]).tolist() == list(range(16, 31))


def an_example(masked=(0, NEWLINE), groups=GROUPS):
    """A corpus of two subsets, and labels of every kind; syntax and spans at random."""
    tokenizer, chooser = small_tokenizer(), np.random.default_rng(0)
    pieces = []
    for seed, subset in enumerate(("prose", "verse") * 2):
        ids = np.array(tokenizer(some_text(120, seed), add_special_tokens=False)["input_ids"])
        pieces += [(subset, ids[start : start + CONTEXT - 1]) for start in range(0, len(ids), CONTEXT - 1)]
    tokens = TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=masked)
    codes = chooser.integers(-1, 3, (len(tokens), CONTEXT, 2)).astype(np.int16)
    spans = np.array([[row, start, start + 3] for row in range(0, len(tokens), 2) for start in (2, 9, 15)])
    vocabulary = read_vocabulary(tokenizer, 1024)
    own = OwnLabels({"even": (np.arange(1024) % 2 == 0) & ~vocabulary.special}, {"span": spans})
    embedding = torch.ones(1024, 4)
    embedding[:40] *= 1 + 0.001 * torch.arange(40)[:, None] - 0.9 * (torch.arange(40) == 12)[:, None]
    labels = build_labels(
        groups, tokens, vocabulary, embedding=embedding, syntax=Syntax(("A", "B", "C"), codes),
        topics={"topic": [267, 286]}, own=own,
    )  # fmt: skip
    return tokens, labels, codes, spans


def plain_kind(strings, row, t):
    def letter(at, place):
        return at >= 0 and at < len(row) and row[at] != 0 and strings[row[at]][place : place + 1 or None].isalpha()

    if row[t] == 0 or not strings[row[t]].strip().isalpha():
        return 0
    if not strings[row[t]][0].isspace() and t > 0 and letter(t - 1, -1):
        return 3
    return 2 if letter(t + 1, 0) else 1


def plain_truth(tokens, labels, codes, spans):
    """Whether each label of `labels.all` holds at each position (rows, context, labels)."""
    strings = labels.vocabulary.strings
    small = {"small_norm": [12], "topic": [267, 286]}

    def of_token(label, row, t):
        token = int(row[t])
        if token == 0:
            return False
        if label.name in small:
            return token in small[label.name]
        if label.group == "tokens":
            return (TOKEN_TESTS | WIDER_TESTS)[label.name](strings[token])
        if label.group == "own":
            return token % 2 == 0
        name, _, kind = label.name.partition(" (")
        kinds = KIND_NAMES[plain_kind(strings, row, t)]
        return strings[token].strip().lower() == name and (not kind or kind[:-1] == kinds)

    def holds(label, number, row, t):
        if label.group == "position":
            low, _, high = label.name.removeprefix("position ").replace("< ", "1–").partition("–")
            last = int(high) - ("<" in label.name) if high else int(low)
            return int(low) <= t <= last
        if label.group == "subsets":
            return tokens.subset_names[tokens.subsets[number]] == label.name
        t -= label.previous
        if t < 0:
            return False
        if label.group == "syntax":
            return "ABC".index(label.name) in codes[number, t]
        if label.name == "span":
            return any(r == number and start <= t < end for r, start, end in spans.tolist())
        return of_token(label, row, t)

    rows = tokens.ids(np.arange(len(tokens)))
    return np.array(
        [[[holds(label, n, row, t) for label in labels.all] for t in range(CONTEXT)] for n, row in enumerate(rows)]
    )


@functools.cache
def plain_example():
    """An example, and whether each label holds at each position."""
    tokens, labels, codes, spans = an_example()
    return tokens, labels, plain_truth(tokens, labels, codes, spans)


@pytest.fixture(scope="module")
def example():
    return plain_example()


def read_off(labels, source, rows, keep):
    """Whether each label of `labels.all` holds at the positions `keep` of some rows, as a source tells it."""
    blocks, index = source.batch(rows, keep)
    null = source.partner is not None
    words, previous = (index[key.null if null else key].numpy() for key in (BY_WORD, BY_PREVIOUS))
    positions = index[BY_POSITION.null].numpy() if null else keep % CONTEXT
    tables = [labels.word_table[:, words].T, labels.previous_table[:, previous].T]
    block = blocks[LABELS.null if null else LABELS].values.numpy()
    if source.dense:
        np.testing.assert_array_equal(block[:, : -len(labels.column_labels)], np.concatenate(tables, 1))
        block = block[:, -len(labels.column_labels) :]
    assert set(np.unique(block)) <= {0, 1}
    return np.concatenate([*tables, labels.position_table[:, positions].T, block > 0], 1)


@pytest.mark.parametrize("dense", [False, True])
def test_labels_hold_where_a_plain_computation_says(example, dense):
    tokens, labels, truth = example
    assert {(label.group, label.previous) for label in labels.all} == {
        *((group, False) for group in (*GROUPS, "own")),
        *((group, True) for group in ("tokens", "unigrams", "topics", "syntax", "own")),
    }
    rows = np.random.default_rng(1).permutation(len(tokens))
    keep = np.flatnonzero(tokens.mask(rows))
    found = read_off(labels, LabelSource(labels, tokens, dense=dense), rows, keep)
    expected = truth[rows].reshape(-1, len(labels.all))[keep]
    wrong = {labels.all[n] for n in np.flatnonzero((found != expected).any(0))}
    assert not wrong
    assert expected.any(0).mean() > 0.3


def test_special_tokens_have_no_labels(example):
    _, labels, _ = example
    assert not labels.previous_table[:, 0].any()
    assert not labels.word_table[:, labels.word_of[:4]].any()


@pytest.mark.parametrize("dense", [False, True])
def test_the_label_of_a_token_at_a_rows_start_never_sees_the_row_before(dense):
    tokens, labels, codes, _ = an_example(masked=())
    codes[:] = 1
    tokens.rows[:, -1] = 267  # every row ends with " the", is all of syntax B, and ends in a span
    rows = np.arange(len(tokens))
    source = LabelSource(labels, tokens, dense=dense)
    found = read_off(labels, source, rows, np.arange(len(tokens) * CONTEXT)).reshape(len(tokens), CONTEXT, -1)
    previous = np.array([label.previous for label in labels.all])
    assert not found[:, 0, previous].any()
    there = labels.all.index(Label("B", "syntax", previous=True))
    assert found[:, 1:, there].all()
    assert found[:, -1, labels.all.index(Label("topic", "topics"))].all()


def test_partners_are_other_rows_each_taken_once():
    rows = np.array([3, 4, 5, 20, 21, 40, 41, 42])
    partner = partner_rows(rows, 50, 0)
    assert sorted(partner[rows]) == rows.tolist()
    assert (partner[rows] != rows).all()
    assert (np.delete(partner, rows) == -1).all()
    assert (partner_rows(rows, 50, 1) != partner).any()


@pytest.mark.parametrize("dense", [False, True])
def test_under_the_null_the_partners_labels_hold_where_the_partner_counts(example, dense):
    tokens, labels, truth = example
    partner = partner_rows(np.arange(len(tokens)), len(tokens), 0)
    rows = np.arange(len(tokens))[::-1].copy()
    keep = np.flatnonzero(tokens.mask(rows))
    found = read_off(labels, LabelSource(labels, tokens, dense=dense, partner=partner), rows, keep)
    counted = tokens.mask(partner[rows])
    expected = (truth[partner[rows]] & counted[:, :, None]).reshape(-1, len(labels.all))[keep]
    position = np.array([label.group == "position" for label in labels.all])
    np.testing.assert_array_equal(found[:, ~position], expected[:, ~position])
    assert not found[~counted.ravel()[keep]][:, ~position].any()
    assert (~counted.ravel()[keep]).sum() > 20


def test_under_the_null_positions_are_shifted_within_each_row(example):
    tokens, labels, _ = example
    rows = np.arange(len(tokens))[::2]
    keep = np.flatnonzero(tokens.mask(rows))
    source = LabelSource(labels, tokens, dense=False, partner=partner_rows(rows, len(tokens), 0), seed=3)
    shifted = source.batch(rows, keep)[1][BY_POSITION.null].numpy()
    for place in range(len(rows)):
        mine = keep // CONTEXT == place
        before, after = keep[mine] % CONTEXT, shifted[mine]
        assert (before != after).all()
        assert any(after.tolist() == [*before[n:], *before[:n]] for n in range(1, len(before)))
    alone = source.batch(rows[5:6], np.flatnonzero(tokens.mask(rows[5:6])))[1][BY_POSITION.null].numpy()
    np.testing.assert_array_equal(alone, shifted[keep // CONTEXT == 5])
