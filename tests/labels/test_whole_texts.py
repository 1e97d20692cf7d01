"""Syntax of characters that tokens split: what spaCy says of the original text, token by token."""

import numpy as np
import pytest
import spacy
from conftest import small_tokenizer
from test_syntax import PIPELINE, annotate_in, column, told
from tokenizer_kinds import bpe, changed, with_fallback, wrapped
from tokenizers import decoders, pre_tokenizers

from universal_neurons import TokenDataset
from universal_neurons.labels import syntax
from universal_neurons.text import Vocabulary, read_vocabulary

TEXTS = [
    "Élodie déjeunait à l'hôtel. Après, elle a été très émue : « Où étais-tu ? »",
    "彼は東京へ行きました。 They flew to 東京 😀 and the naïve café owner wept 👩\u200d💻 quietly.",
    "Müller's größte Straße — “the ﬁnest” – cost 5 € in Łódź.",
]
FRAGMENTS = Vocabulary(
    ("<s>", "The", " caf", "�", "�", " opened", " today", ".", "She", " left"),
    np.arange(10) == 0,
    {3: b"\xc3", 4: b"\xa9"},
)
BOS, THE, CAF, FIRST, SECOND, OPENED, TODAY, STOP, SHE, LEFT = range(10)


def with_byte_fallback():
    tokenizer = changed(bpe(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never")), with_fallback)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(tokenizer)


@pytest.fixture(scope="module")
def nlp():
    return spacy.load(PIPELINE, exclude=["lemmatizer"])


@pytest.fixture
def annotated(nlp, tmp_path, monkeypatch):
    monkeypatch.setattr(spacy, "load", lambda name, **how: nlp)

    def annotated(vocabulary, *pieces):
        context = 1 + max(map(len, pieces))
        tokens = TokenDataset.from_pieces(
            [("", np.array(piece)) for piece in pieces], context=context, bos=0, masked=()
        )
        return annotate_in(tmp_path, tokens, vocabulary, PIPELINE)

    return annotated


def plain_labels(doc, ranges):
    """Every token's labels (of its part of speech, its relation, where sentences start and end), from characters."""
    edges = [[word for word in sentence if not word.is_space] for sentence in doc.sents]
    firsts, lasts = {words[0].i for words in edges if words}, {words[-1].i for words in edges if words}
    for place, (start, stop) in enumerate(ranges):
        touched = [word for word in doc if not word.is_space and word.idx < stop and word.idx + len(word) > start]
        if len(touched) != 1:
            yield {"pos_MULTI"} if touched else set()
            continue
        (word,) = touched
        labels = {f"pos_{word.pos_}", f"dep_{word.dep_}"}
        before, after = ranges[:place], ranges[place + 1 :]
        if word.i in firsts and start <= word.idx and not any(stop > word.idx for _, stop in before):
            labels.add("sentence_start")
        end = word.idx + len(word)
        if word.i in lasts and stop >= end and not any(start < end for start, _ in after):
            labels.add("sentence_end")
        yield labels


@pytest.mark.parametrize("tokenizer", [small_tokenizer, with_byte_fallback])
def test_a_token_has_the_labels_that_spacy_gives_the_original_text(tokenizer, annotated, nlp):
    tokenizer = tokenizer()
    encoded = tokenizer(TEXTS, add_special_tokens=False, return_offsets_mapping=True)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    found = annotated(vocabulary, *encoded["input_ids"])
    kept = ("pos_", "dep_", "sentence_")
    for row, (text, ids, ranges) in enumerate(zip(TEXTS, encoded["input_ids"], encoded["offset_mapping"])):
        assert any("\ufffd" in vocabulary.strings[token] for token in ids)
        got = [{name for name in told(found, row, place + 1) if name.startswith(kept)} for place in range(len(ids))]
        assert got == list(plain_labels(nlp(text), ranges))


def test_a_row_that_begins_within_a_character_is_read_from_there(annotated, nlp):
    found = annotated(FRAGMENTS, [THE, CAF, FIRST], [SECOND, OPENED, TODAY, STOP])
    before, after = nlp("The caf\ufffd"), nlp("\ufffd opened today.")
    assert [column(found, 0, place, "pos") for place in (1, 2, 3)] == [
        f"pos_{before[n].pos_}" for n in (0, 1, 1 if len(before) == 2 else 2)
    ]
    assert [column(found, 1, place, "pos") for place in (1, 2, 3, 4)] == [f"pos_{word.pos_}" for word in after]


def test_a_sentence_starts_and_ends_with_the_byte_that_does(annotated, nlp):
    found = annotated(FRAGMENTS, [FIRST, SECOND, OPENED], [SHE, LEFT, FIRST, SECOND])
    assert [place for place in range(5) if column(found, 0, place, "start")] == [1]
    assert [place for place in range(5) if column(found, 1, place, "end")] == [4]
    assert column(found, 0, 1, "pos") == column(found, 0, 2, "pos") == f"pos_{nlp('é opened')[0].pos_}"


def test_documents_of_a_row_are_read_apart(annotated):
    first, second = [SHE, LEFT], [THE, CAF, FIRST, SECOND, OPENED, TODAY, STOP]
    together = annotated(FRAGMENTS, [*first, BOS, *second])
    for offset, document in ((1, first), (len(first) + 2, second)):
        alone = annotated(FRAGMENTS, document)
        for place in range(len(document)):
            assert told(together, 0, offset + place) == told(alone, 0, 1 + place) != set()
    assert not told(together, 0, len(first) + 1)


def test_fragments_are_part_of_what_the_cache_is_of(annotated, nlp):
    tokens = TokenDataset.from_pieces([("", np.array([THE, CAF, FIRST, SECOND]))], context=5, bos=0, masked=())
    other = Vocabulary(FRAGMENTS.strings, FRAGMENTS.special)
    assert syntax._key(tokens, FRAGMENTS, nlp) != syntax._key(tokens, other, nlp)
