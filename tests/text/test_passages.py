"""Rows of the same spans for several tokenizers: the text is whole, the rows aligned, the counts those of plain Python."""

import json
from itertools import pairwise

import numpy as np
import pytest
from conftest import some_text
from plain_spans import PlainTokens, plain_units
from tokenizer_kinds import changed, hard_texts, kinds, renumbered, way_of, wrapped
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from universal_neurons import StudyConfig, TokenDataset
from universal_neurons.errors import ConfigError, TextError, TokenizerError
from universal_neurons.text import Passages

NAMES = ("byte-level", "unigram, NFKC", "WordPiece, BERT")
CONTEXT = 64


def load(data, tokenizers, folder=None, context=CONTEXT, **settings) -> Passages:
    config = StudyConfig(data=str(data), **{"min_characters": 0} | settings)
    return Passages.load(config, tokenizers, context=context, folder=folder)


def of_kinds(*names):
    return {name: kinds()[name] for name in names}


def every(rows) -> np.ndarray:
    return np.arange(len(rows))


@pytest.fixture(scope="module")
def documents():
    texts = [" ".join(hard_texts(60, seed)) for seed in range(6)] + [some_text(150, seed) for seed in range(6)]
    return [{"text": text, "subset": "ab"[number % 3 == 0]} for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def corpus(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.fixture(scope="module")
def passages(corpus):
    return load(corpus, of_kinds(*NAMES))


@pytest.fixture(scope="module")
def plain(documents):
    """The units of every document, and the tokens of each kind, as plain Python has them."""
    answer = []
    for document in documents:
        tokens = []
        for name in NAMES:
            tokenizer = kinds()[name]
            encoded = tokenizer([document["text"]], add_special_tokens=False, return_offsets_mapping=True)
            (ids,), (offsets,) = encoded["input_ids"], encoded["offset_mapping"]
            special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
            strings = tokenizer.convert_ids_to_tokens(ids)
            tokens.append(PlainTokens(document["text"], ids, offsets, strings, special, way_of(name)))
        answer.append((document, tokens, plain_units(*tokens)))
    return answer


def test_rows_hold_every_token_of_every_document_in_order(passages, documents):
    for name in NAMES:
        tokens, tokenizer = passages.tokens_of(name), kinds()[name]
        ids = tokens.ids(every(passages))
        assert (ids[:, 0] == tokenizer.bos_token_id).all()
        for number, subset in enumerate(passages.subset_names):
            mine = np.flatnonzero(passages.subsets == number)
            got = np.concatenate([ids[row, 1 : tokens.lengths[row]] for row in mine]).tolist()
            expected = []
            for document in documents:
                if document["subset"] == subset:
                    expected += tokenizer(document["text"], add_special_tokens=False)["input_ids"]
                    expected.append(tokenizer.eos_token_id)
            assert got == expected


def test_rows_hold_the_spans_of_a_plain_reading_in_order(passages, plain):
    for number, subset in enumerate(passages.subset_names):
        rows = np.flatnonzero(passages.subsets == number)
        expected = [
            (document["text"].encode()[start:stop], tuple(sizes))
            for document, _, units in plain if document["subset"] == subset
            for start, stop, *sizes, is_span in units if is_span
        ]  # fmt: skip
        got = []
        for row in rows.tolist():
            numbers = [passages.numbers(name, np.array([row]))[0] for name in NAMES]
            spans = passages.spans(row)
            assert len(spans) == passages.lengths[row]
            sizes = [np.bincount(of_one[of_one >= 0], minlength=len(spans)) for of_one in numbers]
            got += [(span, tuple(size)) for span, size in zip(spans, np.stack(sizes, 1).tolist())]
            for of_one in numbers:
                assert (np.diff(of_one[of_one >= 0]) >= 0).all()
        assert got == expected


def test_rows_are_as_full_as_they_can_be(passages):
    """The next span's tokens would not have fitted behind any row but a subset's last."""
    lengths = np.stack([passages.tokens_of(name).lengths for name in NAMES])
    assert lengths.max() <= CONTEXT
    first = {name: passages.numbers(name, every(passages)) for name in NAMES}
    for number in range(len(passages.subset_names)):
        rows = np.flatnonzero(passages.subsets == number)
        for row, after in pairwise(rows):
            if (lengths[:, row] == CONTEXT).any():
                continue
            next_unit = [  # as many tokens as the next row's first unit has at most: up to its second span
                int(np.argmax(first[name][after] == 1)) for name in NAMES
            ]
            assert any(lengths[n, row] + next_unit[n] - 1 > CONTEXT for n in range(len(NAMES)))


def test_counts_are_those_of_plain_python(passages, plain):
    table = passages.fit_table()
    assert table["model"].to_list() == list(NAMES)
    everything = [(document, unit) for document, _, units in plain for unit in units]
    spans = [unit for _, unit in everything if unit[-1]]
    for n in range(len(NAMES)):
        row = table.row(n, named=True)
        tokens = sum(len(of_kinds_[n].ids) for _, of_kinds_, _ in plain)
        own = sum(unit[2 + n] == 1 for unit in spans)
        dropped = [document["text"].encode()[u[0] : u[1]].decode() for document, u in everything if u[2 + n] == 0]
        special = sum(
            stop - start
            for _, of_kinds_, units in plain
            for start, stop, *_ in units
            if any(flag and start <= place[0] < stop for flag, place in zip(of_kinds_[n].special, of_kinds_[n].ranges))
        )
        assert row["spans"] == len(spans) == passages.n_spans
        assert row["tokens"] == tokens
        assert row["own_fraction"] == own / tokens
        assert row["tokens_per_span"] == sum(unit[2 + n] for unit in spans) / len(spans)
        assert row["bytes"] == sum(len(document["text"].encode()) for document, _, _ in plain)
        assert row["bytes_white_space"] == sum(len(text.encode()) for text in dropped if text.isspace())
        assert row["bytes_dropped"] == sum(len(text.encode()) for text in dropped if not text.isspace())
        assert row["bytes_special"] == special
        assert row["bytes_too_long"] == 0
        assert row["counted"] == passages.counted
    assert table["bytes_dropped"][2] > 0
    assert table["bytes_special"].min() > 0


def test_what_is_counted_and_pooled_is_what_no_mask_leaves_out(corpus):
    passages = load(corpus, of_kinds("byte-level", "byte fallback", "byte-level, NFKC"), max_tokens=5000)
    rows = every(passages)
    counted = np.zeros((len(rows), CONTEXT), bool)
    alive = {name: [] for name in passages.tokenizers}
    for row in rows:
        whole = []
        for name in passages.tokenizers:
            tokens = passages.tokens_of(name)
            numbers, ids = passages.numbers(name, rows)[row].tolist(), tokens.ids(rows)[row].tolist()
            alive[name].append([
                number if number >= 0 and token not in tokens.masked else -1 for number, token in zip(numbers, ids)
            ])  # fmt: skip
            whole.append(set(alive[name][-1]))
        counted[row, [number for number in set.intersection(*whole) if number >= 0]] = True
    np.testing.assert_array_equal(passages.mask(rows), counted)
    assert passages.counted == counted.sum() < passages.n_spans
    for name in passages.tokenizers:
        expected = [
            [n if n >= 0 and counted[row, n] else -1 for n in numbers] for row, numbers in enumerate(alive[name])
        ]
        np.testing.assert_array_equal(passages.pooled(name, rows), expected)
        masked = passages.fit_table().filter(model=name)["masked"][0]
        assert masked == passages.n_spans - sum(len(set(numbers) - {-1}) for numbers in alive[name])


def test_a_newline_is_pooled_into_no_span_but_what_follows_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("of the\nand was " * 160)
    passages = load(tmp_path / "a.txt", of_kinds("byte-level", "WordPiece, BERT"))
    place = passages.spans(0).index(b"\nand")
    assert passages.mask(np.array([0]))[0, place]
    of_span = passages.numbers("byte-level", np.array([0]))[0] == place
    pooled = passages.pooled("byte-level", np.array([0]))[0] == place
    left_out = passages.tokens_of("byte-level").ids(np.array([0]))[0][of_span & ~pooled]
    assert kinds()["byte-level"].decode(left_out) == "\n"
    assert pooled.sum() == of_span.sum() - 1 > 0


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback", "WordPiece, BERT", "BPE, NFKC"])
def test_one_tokenizer_and_its_copy_of_other_ids_have_the_rows_of_one(corpus, kind):
    one = kinds()[kind]
    config = StudyConfig(data=str(corpus), min_characters=0, max_tokens=2000)
    tokens = TokenDataset.load(config, one, context=CONTEXT)
    passages = load(corpus, {"a": one, "b": renumbered(one), "c": one}, max_tokens=2000)
    assert "the text has more: 2,000 tokens of it are read (--max-tokens)" in passages.notes
    mine = passages.tokens_of("a")
    assert mine.fingerprint == tokens.fingerprint
    np.testing.assert_array_equal(mine.ids(every(mine)), tokens.ids(every(tokens)))
    assert passages.tokens_of("c") is mine
    assert len(passages.readings) == 2
    assert passages.tokens_of("b").fingerprint != tokens.fingerprint
    table = passages.fit_table()
    assert (table["tokens_per_span"] == 1).all()
    special = np.isin(mine.ids(every(mine)), [one.bos_token_id, one.eos_token_id])
    numbers = passages.numbers("a", every(passages))
    assert (numbers >= 0).sum() == passages.n_spans == (~special).sum()
    in_order = np.cumsum(numbers >= 0, 1) - 1
    np.testing.assert_array_equal(numbers[numbers >= 0], in_order[numbers >= 0])
    np.testing.assert_array_equal(passages.split(100)[0], tokens.split(100)[0])
    assert passages.counted == tokens.mask(every(tokens))[:, 1:].sum()


def by_letters(letters: int):
    """A tokenizer of a fixed number of letters a token."""
    pairs = [a + b for a in "abcd" for b in "abcd"] if letters == 2 else list("abcd")
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<unk>", *pairs])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("." * letters), "isolated")
    return wrapped(tokenizer)


def test_a_tokenizer_that_splits_every_token_in_two_has_two_tokens_a_span(tmp_path):
    letters = np.random.default_rng(0).choice(list("abcd"), (40, 200))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "".join(row)}) for row in letters))
    passages = load(tmp_path / "a.jsonl", {"whole": by_letters(2), "halves": by_letters(1)})
    rows = every(passages)
    assert passages.fit_table()["tokens_per_span"].to_list() == [1, 2]
    assert passages.fit_table()["own_fraction"].to_list() == [1, 0]
    for row in range(len(passages) - 1):
        assert passages.tokens_of("halves").lengths[row] >= CONTEXT - 1
        twice = np.repeat(passages.spans(row), 2)
        halves = passages.tokens_of("halves").ids(rows)[row]
        of_span = passages.numbers("halves", rows)[row]
        strings = by_letters(1).convert_ids_to_tokens(halves[of_span >= 0].tolist())
        assert "".join(strings).encode() == b"".join(passages.spans(row))
        assert len(twice) == (of_span >= 0).sum()


def test_rows_in_files_are_those_in_memory(corpus, passages, tmp_path):
    kept = load(corpus, of_kinds(*NAMES), tmp_path)
    assert kept.fingerprint == passages.fingerprint
    rows = every(kept)[::-1].copy()
    for name in NAMES:
        np.testing.assert_array_equal(kept.pooled(name, rows), passages.pooled(name, rows))
        np.testing.assert_array_equal(kept.tokens_of(name).ids(rows), passages.tokens_of(name).ids(rows))
    spans = [passages.spans(row) for row in rows.tolist()]
    assert [kept.spans(row) for row in rows.tolist()] == spans
    said = [[kept.strings[number].encode() for number in ids] for ids in kept.ids(rows)]
    assert [row[: len(whole)] for row, whole in zip(said, spans)] == [
        [letters.decode("utf-8", "replace").encode() for letters in whole] for whole in spans
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            *(f"rows-{n}.i32" for n in range(3)),
            *(f"spans-{n}.i32" for n in range(3)),
            "ranges.i32",
            "span-ids.i32",
            "text.utf8",
        ]
    )


def test_the_fingerprint_is_of_text_tokenizers_and_mask_in_any_order(corpus, passages):
    assert load(corpus, of_kinds(*NAMES[::-1])).fingerprint == passages.fingerprint
    others = [
        load(corpus, of_kinds(*NAMES[:2])),
        load(corpus, of_kinds(*NAMES), mask=("bos",)),
        load(corpus, of_kinds(*NAMES), max_tokens=2000),
        load(corpus, of_kinds(*NAMES), context=CONTEXT + 1),
        load(corpus, {**of_kinds(*NAMES[:2]), "x": renumbered(kinds()[NAMES[2]])}),
    ]
    assert len({passages.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_what_fits_in_no_row_is_left_out_and_the_text_goes_on(tmp_path):
    """An unknown word of 80 letters is one token of WordPiece and as many of BPE's."""
    word = "q" * 80
    assert kinds()["WordPiece, BERT"].tokenize(word) == ["<unk>"]
    (tmp_path / "a.txt").write_text(f"of the and {word} was it that " * 20)
    passages = load(tmp_path / "a.txt", of_kinds("byte-level", "WordPiece, BERT"))
    assert passages.fit_table()["bytes_too_long"].to_list() == [81 * 20] * 2
    spans = b"".join(span for row in range(len(passages)) for span in passages.spans(row))
    assert spans == f"of the and was it that {'of the and was it that ' * 19}".encode().rstrip()
    assert passages.spans(1)[:4] == [b" was", b" it", b" that", b" of"]


def test_a_text_in_pieces_goes_on_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("universal_neurons.text.corpora.PIECE", 100)
    (tmp_path / "a.txt").write_text("of the and was " * 200)
    passages = load(tmp_path / "a.txt", of_kinds("byte-level", "BPE, NFKC"))
    tokens = passages.tokens_of("byte-level")
    ids = tokens.ids(every(tokens))
    assert (ids == kinds()["byte-level"].eos_token_id).sum() == 1
    assert passages.n_spans > 790


def test_tokens_masks_of_ids_and_short_texts_are_refused(tmp_path):
    two = of_kinds("byte-level", "BPE, NFKC")
    (tmp_path / "ids.jsonl").write_text("\n".join(json.dumps({"tokens": [4, 5, 6]}) for _ in range(20)))
    with pytest.raises(TokenizerError, match="tokens already"):
        load(tmp_path / "ids.jsonl", two)
    (tmp_path / "a.txt").write_text("of the and " * 20)
    with pytest.raises(ConfigError, match="mask names token 7"):
        load(tmp_path / "a.txt", two, mask=("bos", 7))
    with pytest.raises(TextError, match="too short"):
        load(tmp_path / "a.txt", two)


def test_a_tokenizer_without_bos_takes_another_end_and_one_without_any_is_refused(corpus):
    backend = kinds()["byte-level"].backend_tokenizer
    passages = load(corpus, {"a": kinds()["BPE, NFKC"], "b": wrapped(backend, bos_token=None)})
    assert (passages.tokens_of("b").ids(every(passages))[:, 0] == backend.token_to_id("</s>")).all()
    nothing = wrapped(changed(backend, lambda _: None), bos_token=None, eos_token=None)
    with pytest.raises(TokenizerError, match="bare: its tokenizer names no BOS"):
        load(corpus, {"a": kinds()["BPE, NFKC"], "bare": nothing})
