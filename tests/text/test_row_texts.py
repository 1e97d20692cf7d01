"""Where positions stand in the texts of their rows: bytes laid one behind the other, in plain Python."""

import numpy as np
from conftest import small_tokenizer
from test_passages import NAMES, load, of_kinds
from tokenizer_kinds import hard_texts

from universal_neurons import TokenDataset
from universal_neurons.text import Vocabulary, read_vocabulary, texts_in


def pieces_of(text):
    """What each position of a text says, by its place in the row; and that bytes and characters agree."""
    letters = text.text.encode()
    assert text.byte_of[0] == 0
    assert len(text.byte_of) == len(text.text) + 1
    if "\ufffd" not in text.text:
        assert text.byte_of.tolist() == [len(text.text[:n].encode()) for n in range(len(text.text) + 1)]
        return {place: letters[a:b] for place, a, b in zip(text.places.tolist(), text.start, text.stop)}
    return {}


def test_tokens_that_split_characters_spell_the_text():
    tokenizer = small_tokenizer()
    vocabulary = read_vocabulary(tokenizer, 1024)
    texts = [text for text in hard_texts(60, 0) if text and "<s>" not in text and "\ufffd" not in text][:40]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, encoded))
    tokens = TokenDataset.from_pieces([("", np.array(ids)) for ids in encoded], context=longest + 1, bos=0, masked=(0,))
    rows = np.arange(len(texts))
    found = list(texts_in(tokens, vocabulary, rows))
    assert [(text.row, text.text) for text in found] == list(enumerate(texts))
    for text, ids in zip(found, encoded):
        pieces = pieces_of(text)
        assert list(pieces) == list(range(1, len(ids) + 1))
        assert b"".join(pieces.values()).decode() == text.text


def test_special_tokens_part_texts_and_bytes_of_no_character_stand_alone():
    vocabulary = Vocabulary(("<s>", "a", "�", "�", "", "b"), np.arange(6) == 0, {2: b"\xe6\x9d", 3: b"\xb1"})
    rows = [[2, 1, 0, 3, 5], [0, 0], [4, 4], [2, 3, 5, 4]]
    tokens = TokenDataset.from_pieces([("", np.array(row)) for row in rows], context=6, bos=0, masked=())
    found = list(texts_in(tokens, vocabulary, np.arange(4)))
    assert [(text.row, text.text, text.places.tolist()) for text in found] == [
        (0, "\ufffd\ufffda", [1, 2]), (0, "\ufffdb", [4, 5]), (3, "東b", [1, 2, 3, 4]),
    ]  # fmt: skip
    assert [text.byte_of.tolist() for text in found] == [[0, 1, 2, 3], [0, 1, 2], [0, 3, 4]]
    assert [list(zip(text.start.tolist(), text.stop.tolist())) for text in found] == [
        [(0, 2), (2, 3)], [(0, 1), (1, 2)], [(0, 2), (2, 3), (3, 4), (4, 4)],
    ]  # fmt: skip


def test_spans_stand_where_their_row_has_them(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("Zoë and the naïve café. " * 40)
    passages = load(path, of_kinds(*NAMES))
    found = list(texts_in(passages, Vocabulary(passages.strings, np.zeros(len(passages.strings), bool)), np.arange(2)))
    assert [text.row for text in found] == [0, 1]
    for row, text in enumerate(found):
        assert list(pieces_of(text).values()) == passages.spans(row)
        assert text.text in "Zoë and the naïve café. " * 40
