"""Strings of a vocabulary as they stand in text, and where in a word a token stands."""

from collections import Counter

import numpy as np
import pytest
from conftest import small_tokenizer, some_text
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from universal_neurons import TokenDataset
from universal_neurons.text import INSIDE_WORD, WORD, WORD_START, Vocabulary, read_vocabulary
from universal_neurons.text.word_places import NO_WORD

KIND_STRINGS = ("<s>", " play", "ing", " cat", ",", "s", " ", "2nd", "x", "\n")
BOS, PLAY, ING, CAT, COMMA, S, SPACE, SECOND, X, NEWLINE = range(10)


def hand_made(strings=KIND_STRINGS, special=(0,)):
    return Vocabulary(tuple(strings), np.isin(np.arange(len(strings)), special))


def word_piece():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "play", "##ing", "##s", "sat", "."]
    tokenizer = Tokenizer(models.WordPiece({s: n for n, s in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def unigram():
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("▁a", -2.0), ("a", -3.0), ("▁cat", -1.0), ("cat", -5.0), ("▁play", -1.0),
              ("ing", -1.0), ("▁", -4.0), (".", -1.0)]  # fmt: skip
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize(
    "text", [some_text(300), "def f(x):\n    return {'a': x}\n\n\tThe LORD said, \"No!\"", "ab  c"]
)
def test_strings_of_a_byte_level_tokenizer_rebuild_the_text(tokenizer, text):
    vocabulary = read_vocabulary(tokenizer, 1024)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    assert "".join(vocabulary.strings[token] for token in ids) == text
    assert "".join(vocabulary.strings[token] for token in ids) == text


@pytest.mark.parametrize(("make", "strings"), [
    (word_piece, {"cat": " cat", "##ing": "ing", "##s": "s", "play": " play", "a": " a"}),
    (unigram, {"▁cat": " cat", "cat": "cat", "ing": "ing", "▁play": " play", "▁": " ", ".": "."}),
])  # fmt: skip
def test_strings_keep_their_leading_space_whatever_the_tokenizer(make, strings):
    tokenizer = make()
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    assert {token: vocabulary.strings[n] for token, n in tokenizer.get_vocab().items() if token in strings} == strings
    ids = tokenizer("a cat playing", add_special_tokens=False)["input_ids"]
    assert "".join(vocabulary.strings[token] for token in ids).strip() == "a cat playing"


def test_special_and_unused_tokens_are_special_and_have_no_normalised_form():
    vocabulary = read_vocabulary(small_tokenizer(), 1030)
    assert len(vocabulary) == 1030
    assert np.flatnonzero(vocabulary.special).tolist() == [0, *range(1024, 1030)]
    assert vocabulary.strings[1024:] == ("",) * 6
    assert vocabulary.normalised[0] == ""
    assert vocabulary.normalised[vocabulary.strings.index(" LORD")] == "lord"


def test_a_model_may_have_fewer_tokens_than_the_tokenizer():
    vocabulary = read_vocabulary(small_tokenizer(), 100)
    assert len(vocabulary) == 100
    assert np.flatnonzero(vocabulary.special).tolist() == [0]


@pytest.mark.parametrize(("row", "kinds"), [
    ((BOS, CAT, COMMA, CAT), (NO_WORD, WORD, NO_WORD, WORD)),
    ((BOS, PLAY, ING, CAT), (NO_WORD, WORD_START, INSIDE_WORD, WORD)),
    ((CAT, S, S, COMMA), (WORD_START, INSIDE_WORD, INSIDE_WORD, NO_WORD)),
    ((BOS, X, S, SPACE), (NO_WORD, WORD_START, INSIDE_WORD, NO_WORD)),
    ((SPACE, X, NEWLINE, X), (NO_WORD, WORD, NO_WORD, WORD)),
    ((SECOND, S, CAT, SECOND), (NO_WORD, INSIDE_WORD, WORD, NO_WORD)),
    ((CAT, BOS, S, BOS), (WORD, NO_WORD, WORD, NO_WORD)),
])  # fmt: skip
def test_where_in_a_word_a_token_stands(row, kinds):
    assert hand_made().kinds(np.array([row])).tolist() == [list(kinds)]


def test_a_rows_first_and_last_token_never_look_at_another_row():
    vocabulary = hand_made()
    ids = np.array([[PLAY, CAT], [ING, PLAY], [S, COMMA]])
    together = vocabulary.kinds(ids)
    assert together.tolist() == [[WORD, WORD], [WORD, WORD], [WORD, NO_WORD]]
    assert together.tolist() == [vocabulary.kinds(row[None])[0].tolist() for row in ids]


def test_counts_are_a_plain_count_over_counted_positions(monkeypatch):
    monkeypatch.setattr("universal_neurons.text.vocabulary.ROWS_AT_ONCE", 7)
    vocabulary = hand_made()
    chooser = np.random.default_rng(0)
    pieces = [("", chooser.integers(1, 10, 11 - row % 4)) for row in range(40)]
    tokens = TokenDataset.from_pieces(pieces, context=12, bos=0, masked=(0, NEWLINE))
    expected = Counter()
    for _, piece in pieces:
        row = np.array([[0, *piece]])
        for token, kind in zip(row[0], vocabulary.kinds(row)[0]):
            if token not in (0, NEWLINE):
                expected[token, kind] += 1
    counts = vocabulary.counts(tokens)
    assert {(t, k): n for (t, k), n in np.ndenumerate(counts) if n} == dict(expected)
    assert counts.sum() == tokens.counted
