"""Byte ranges and spans of tokenizers of every kind, against a plain reading of hard text character by character."""

import gc
from itertools import combinations

import numpy as np
import pytest
import transformers
from plain_spans import PlainTokens, plain_units
from tokenizer_kinds import hard_texts, kinds, odd_kinds, renumbered, way_of

from universal_neurons.errors import TokenizerError
from universal_neurons.models import Placed
from universal_neurons.text import byte_ranges
from universal_neurons.text.byte_ranges import ByteReader, JoinedTexts
from universal_neurons.text.span_fit import SpanFit
from universal_neurons.text.spans import Why, shared_units

TEXTS = 10_000


def plainly(name, texts):
    """The tokens of texts as a plain reading has them."""
    tokenizer = (kinds() | odd_kinds())[name]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    strings = [tokenizer.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]]
    rows = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strings)
    return [PlainTokens(*row, special, way_of(name)) for row in rows]


@pytest.fixture(scope="module")
def read():
    """The texts; a reader, its tokens and the plain ones of every kind."""
    gc.disable()  # millions of small objects that stay
    texts = hard_texts(TEXTS)
    joined = JoinedTexts(texts)
    readers = {name: ByteReader(tokenizer, name) for name, tokenizer in kinds().items()}
    tokens = {name: reader.read(joined) for name, reader in readers.items()}
    yield joined, readers, tokens, {name: plainly(name, texts) for name in readers}
    gc.enable()


def units_of(text, *tokenizers):
    """The units of one text."""
    joined = JoinedTexts([text])
    readers = [ByteReader(tokenizer, "a model") for tokenizer in tokenizers]
    return shared_units(joined, readers, [reader.read(joined) for reader in readers])[0]


def shown(units, text):
    """The bytes and sizes of units, and whether they are spans."""
    data = text.encode()
    rows = zip(units.start.tolist(), units.stop.tolist(), units.sizes.tolist(), units.are_spans.tolist())
    return [(data[start:stop], sizes, is_span) for start, stop, sizes, is_span in rows]


@pytest.mark.parametrize("name", kinds())
def test_every_token_has_the_bytes_of_a_plain_reading(read, name):
    joined, _, tokens, plain = read
    mine = tokens[name]
    base = np.repeat(joined.first_byte[:-1], np.diff(mine.ends, prepend=0))
    assert list(zip((mine.start - base).tolist(), (mine.stop - base).tolist())) == [
        place for row in plain[name] for place in row.ranges
    ]
    assert mine.special.tolist() == [special for row in plain[name] for special in row.special]
    assert mine.ids.tolist() == [token for row in plain[name] for token in row.ids]


def test_spans_of_all_pairs_are_those_of_a_plain_reading_none_lost_none_counted_twice(read):
    joined, readers, tokens, plain = read
    for pair in combinations(readers, 2):
        units, ends = shared_units(joined, [readers[name] for name in pair], [tokens[name] for name in pair])
        base = joined.first_byte[np.searchsorted(ends, np.arange(len(units)), "right")]
        columns = (units.start - base, units.stop - base, *units.sizes.T, units.are_spans)
        expected = [unit for both in zip(*(plain[name] for name in pair)) for unit in plain_units(*both)]
        assert list(zip(*(column.tolist() for column in columns))) == expected, pair
        assert units.sizes.sum(0).tolist() == [len(tokens[name].ids) for name in pair]
        whole = np.unique(np.stack([units.start, units.stop]), axis=1)
        assert whole[0, 0] == 0
        assert (whole[0, 1:] == whole[1, :-1]).all()
        assert whole[1, -1] == len(joined.bytes)


@pytest.mark.parametrize("name", odd_kinds())
def test_odd_pipelines_too_are_read_plainly(name):
    texts = hard_texts(1000, 1)
    joined, tokenizers = JoinedTexts(texts), [odd_kinds()[name], kinds()["byte-level"]]
    readers = [ByteReader(tokenizer, name) for tokenizer in tokenizers]
    units, _ = shared_units(joined, readers, [reader.read(joined) for reader in readers])
    plain = zip(plainly(name, texts), plainly("byte-level", texts))
    expected = [unit for both in plain for unit in plain_units(*both)]
    assert list(zip(*units.sizes.T.tolist(), units.are_spans.tolist())) == [unit[2:] for unit in expected]
    assert (units.stop - units.start).tolist() == [unit[1] - unit[0] for unit in expected]


def test_spans_of_several_tokenizers_are_those_of_a_plain_reading(read):
    joined, readers, tokens, plain = read
    names = ["byte-level", "byte fallback", "unigram, NFKC", "WordPiece, BERT"]
    units, _ = shared_units(joined, [readers[name] for name in names], [tokens[name] for name in names])
    expected = [unit[2:] for row in zip(*(plain[name] for name in names)) for unit in plain_units(*row)]
    assert list(zip(*units.sizes.T.tolist(), units.are_spans.tolist())) == expected


@pytest.mark.parametrize("name", kinds())
def test_under_the_same_tokenizer_or_one_of_other_ids_every_token_is_a_span_of_its_own(read, name):
    joined, readers, tokens, _ = read
    other = ByteReader(renumbered(kinds()[name]), "renumbered")
    again = other.read(joined)
    assert (again.ids != tokens[name].ids).any()
    twice, ends = shared_units(joined, [readers[name]] * 2, [tokens[name]] * 2)
    assert twice.sizes.max() == 1
    units, other_ends = shared_units(joined, [readers[name], other], [tokens[name], again])
    for column in ("start", "stop", "sizes", "why"):
        np.testing.assert_array_equal(getattr(units, column), getattr(twice, column))
    np.testing.assert_array_equal(ends, other_ends)


def test_parts_of_a_character_are_spans_where_all_tokenizers_split_it_alike():
    byte_level, fallback, nfkc = (kinds()[name] for name in ("byte-level", "byte fallback", "BPE, NFKC"))
    assert [unit[0] for unit in shown(units_of("b东", fallback, byte_level), "b东")] == [
        b"b",
        b"\xe4",
        b"\xb8",
        b"\x9c",
    ]
    assert shown(units_of("b东", fallback, nfkc), "b东")[1] == ("东".encode(), [3, 1], True)
    assert shown(units_of("b½b", byte_level, nfkc), "b½b")[1] == ("½".encode(), [1, 3], True)
    alike = units_of("b½b", nfkc, renumbered(nfkc))
    assert shown(alike, "b½b")[1:4] == [("½".encode(), [1, 1], True)] * 3
    fit = SpanFit(2)
    fit.add_row(alike, [np.ones(5, bool)] * 2)
    assert (fit.spans, fit.bytes, fit.own.tolist()) == (5, len("b½b".encode()), [5, 5])


def test_special_tokens_and_dropped_text_are_in_no_span():
    byte_level, bert = kinds()["byte-level"], kinds()["WordPiece, BERT"]
    text = "a\0 of</s>the  "
    units = units_of(text, byte_level, bert)
    spans = [unit[0] for unit in shown(units, text) if unit[2]]
    left_out = {text.encode()[a:b]: why.tolist() for a, b, why in zip(units.start, units.stop, units.why) if why.any()}
    assert spans == [b"a", b" of", b"the"]
    assert left_out == {
        b"\0": [Why.TEXT, Why.DROPPED],
        b"</s>": [Why.SPECIAL, Why.SPECIAL],
        b"  ": [Why.TEXT, Why.WHITE_SPACE],
    }
    assert [unit[1] for unit in shown(units, text)][-1] == [2, 0]


def test_the_unknown_token_stands_for_text():
    text = "of 東京🙂 of"
    units = units_of(text, kinds()["byte-level"], kinds()["WordPiece, NFD"])
    assert b"".join(unit[0] for unit in shown(units, text) if unit[2]) == text.encode()


def test_a_space_that_was_put_in_front_belongs_with_the_first_token():
    fallback = kinds()["byte fallback"]
    assert fallback.tokenize("Qof")[:2] == ["▁", "<0x51>"]
    assert shown(units_of("Qof", fallback, kinds()["byte-level"]), "Qof")[0] == (b"Q", [2, 1], True)


def test_a_slow_tokenizer_is_refused_with_the_way_to_a_fast_one():
    with pytest.raises(TokenizerError, match=r"mine: .*slow(.|\n)*ByT5Tokenizer(.|\n)*convert_slow_tokenizer"):
        ByteReader(transformers.ByT5Tokenizer(), "mine")


def test_ranges_that_go_backwards_are_refused_with_model_and_example(monkeypatch):
    reader = ByteReader(kinds()["WordPiece, BERT"], "mine")
    places = np.array([[0, 3], [4, 6], [0, 2]])
    monkeypatch.setattr(byte_ranges, "encode_with_places", lambda *_: Placed(np.arange(3), places, np.array([3])))
    with pytest.raises(TokenizerError, match=r"mine: .*backwards(.|\n)*bytes 4–7, then 0–3, near 'héo wa'"):
        reader.read(JoinedTexts(["héo wa"]))
