"""Sources, packing, masks, fingerprints, held-out rows, shards, and the errors of bad text."""

import copy
import gzip
import json
import lzma

import datasets
import numpy as np
import polars as pl
import pytest
from conftest import some_text
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from universal_neurons import StudyConfig, TokenDataset
from universal_neurons.errors import MissingFileError, TextError, TokenizerError, TokenRangeError
from universal_neurons.models import boundary_tokens, masked_ids, tokenizer_digest
from universal_neurons.text import corpora, records
from universal_neurons.text import tokens as tokens_module
from universal_neurons.text.tokens import Tokenised, pack

DOCUMENTS = [{"text": some_text(150, seed), "subset": "ab"[seed % 2]} for seed in range(12)]


def load(tokenizer, data, folder=None, context=32, **settings) -> TokenDataset:
    config = StudyConfig(data=str(data), **settings)
    return TokenDataset.load(config, tokenizer, context=context, folder=folder)


def rows_of(tokens):
    return tokens.ids(np.arange(len(tokens)))


def write_jsonl(path, opener=open):
    with opener(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(document) + "\n" for document in DOCUMENTS)
    return path


def test_all_formats_give_the_same_rows(tokenizer, tmp_path):
    expected = load(tokenizer, write_jsonl(tmp_path / "a.jsonl"))
    pl.DataFrame(DOCUMENTS).write_parquet(tmp_path / "a.parquet")
    saved = datasets.Dataset.from_list(DOCUMENTS)
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(DOCUMENTS[:1]), "test": saved}).save_to_disk(
        tmp_path / "splits"
    )
    nested = [{"meta": {"set": d["subset"]}, "body": d["text"]} for d in DOCUMENTS]
    (tmp_path / "nested.jsonl").write_text("\n".join(map(json.dumps, nested)))
    columns = {"text_column": "body", "subset_column": "meta.set"}
    for found in (
        load(tokenizer, write_jsonl(tmp_path / "a.jsonl.gz", gzip.open)),
        load(tokenizer, write_jsonl(tmp_path / "a.jsonl.xz", lzma.open)),
        load(tokenizer, tmp_path / "a.parquet"),
        load(tokenizer, tmp_path / "saved"),
        load(tokenizer, tmp_path / "splits"),
        load(tokenizer, tmp_path / "nested.jsonl", **columns),
        load(tokenizer, tmp_path / "a.jsonl", folder=tmp_path),
    ):
        np.testing.assert_array_equal(rows_of(found), rows_of(expected))
        assert found.fingerprint == expected.fingerprint
        assert found.subset_names == ("a", "b")


def test_a_row_holds_one_subset_and_documents_run_on(tokenizer, tmp_path):
    tokens = load(tokenizer, write_jsonl(tmp_path / "a.jsonl"))
    for number, name in enumerate(tokens.subset_names):
        expected = []
        for document in DOCUMENTS:
            if document["subset"] == name:
                expected += [*tokenizer(document["text"], add_special_tokens=False)["input_ids"], 0]
        mine = np.flatnonzero(tokens.subsets == number)
        got = [ids[1:length] for ids, length in zip(tokens.ids(mine), tokens.lengths[mine])]
        assert np.concatenate(got).tolist() == expected
        assert (tokens.ids(mine)[:, 0] == 0).all()
        assert (tokens.lengths[mine][:-1] == 32).all()


def test_the_authors_columns_keep_their_rows(tokenizer, tmp_path):
    """`tokens` + `subset`, as in the authors' saved data sets: rows are not joined, a leading BOS is not doubled."""
    given = [{"tokens": [0, *range(5, 35)] if n % 2 else list(range(5, 36)), "subset": "pile"} for n in range(12)]
    datasets.Dataset.from_list(given).save_to_disk(tmp_path / "saved")
    tokens = load(tokenizer, tmp_path / "saved")
    assert len(tokens) == 12
    for row, length, record in zip(rows_of(tokens), tokens.lengths, given):
        body = record["tokens"][1:] if record["tokens"][0] == 0 else record["tokens"]
        assert row[0] == 0
        assert row[1:length].tolist() == body


def test_padding_of_tokenised_rows_is_not_counted(tokenizer, tmp_path):
    rows = [{"input_ids": [*range(5, 25), 7, 7], "attention_mask": [1] * 20 + [0, 0]} for _ in range(12)]
    (tmp_path / "masked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(load(tokenizer, tmp_path / "masked.jsonl").lengths) == {21}
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.convert_ids_to_tokens(7)
    assert padded.pad_token_id == 7
    (tmp_path / "padded.jsonl").write_text("\n".join(json.dumps({"tokens": row["input_ids"]}) for row in rows))
    assert set(load(padded, tmp_path / "padded.jsonl").lengths) == {21}


def test_a_row_one_token_too_long_for_bos_loses_its_last():
    assert [len(ids) for _, ids in pack([Tokenised("s", np.arange(1, 33), False)], bos=0, eos=9, context=32)] == [31]


def test_pieces_longer_than_a_row_are_cut():
    pieces = list(
        pack(
            [Tokenised("s", np.arange(1, 12), False), Tokenised("s", np.arange(20, 25), True)], bos=0, eos=99, context=5
        )
    )
    assert [ids.tolist() for _, ids in pieces] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11], [20, 21, 22, 23], [24, 99]]


def test_the_mask(tokenizer, tmp_path):
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert len(newline) == 1
    tokens = load(tokenizer, write_jsonl(tmp_path / "a.jsonl"))
    every = np.arange(len(tokens))
    ids, mask = tokens.ids(every), tokens.mask(every)
    assert not mask[:, 0].any()
    assert not mask[np.isin(ids, [0, newline[0]])].any()
    padding = np.arange(32)[None] >= tokens.lengths[:, None]
    assert padding.any()
    np.testing.assert_array_equal(mask, ~padding & ~np.isin(ids, [0, newline[0]]))
    only_padding = load(tokenizer, tmp_path / "a.jsonl", mask=()).mask(every)
    np.testing.assert_array_equal(only_padding, ~padding)
    one_more = load(tokenizer, tmp_path / "a.jsonl", mask=(int(ids[0, 3]),)).mask(every)
    np.testing.assert_array_equal(one_more, ~padding & (ids != ids[0, 3]))


def test_the_fingerprint_tells_everything_that_matters(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl")
    prints = {
        load(tokenizer, path, **settings).fingerprint
        for settings in ({}, {"context": 16}, {"mask": ("bos",)}, {"max_tokens": 640}, {"subset_column": "text"})
    }
    assert len(prints) == 5


def test_max_tokens_bounds_what_is_read(tokenizer, tmp_path):
    tokens = load(tokenizer, write_jsonl(tmp_path / "a.jsonl"), max_tokens=650)
    assert len(tokens) == 20
    assert tokens.n_tokens == 640
    assert tokens.notes == ["the text has more: 650 tokens of it are read (--max-tokens)"]
    whole = load(tokenizer, tmp_path / "a.jsonl")
    assert whole.notes == []
    assert load(tokenizer, tmp_path / "a.jsonl", max_tokens=32 * len(whole)).notes == [], "just enough"


def test_held_out_rows_and_shards_part_the_rows(tokenizer, tmp_path):
    tokens = load(tokenizer, write_jsonl(tmp_path / "a.jsonl"), context=8)
    chosen, heldout = tokens.split()
    assert len(heldout) == 20
    assert sorted([*chosen, *np.concatenate(heldout)]) == list(range(len(tokens)))
    assert len(np.concatenate(heldout)) <= len(tokens) / 5
    gaps = np.diff([stretch[0] for stretch in heldout])
    assert gaps.max() - gaps.min() <= 1
    shards = tokens.shards(chosen, ["b"])
    assert sorted(np.concatenate([s.rows for s in shards])) == sorted(chosen)
    for shard in shards:
        names = {tokens.subset_names[n] for n in tokens.subsets[shard.rows]}
        assert names == ({"b"} if shard.group == 0 else {"a"})
    with pytest.raises(TextError, match="held out"):
        tokens.split(10**9)
    with pytest.raises(TextError, match="no subset"):
        tokens.groups(["c"])
    unnamed = TokenDataset.from_pieces([("", np.array([3]))], context=8, bos=0, masked=[])
    blank = TokenDataset.from_pieces([(" ", np.array([3])), ("", np.array([3]))], context=8, bos=0, masked=[])
    with pytest.raises(TextError, match="the corpus names no subsets"):
        blank.groups(["c"])
    with pytest.raises(TextError, match=r"no subset 'c': the corpus names no subsets[\s\S]*--subset-column"):
        unnamed.groups(["c"])
    partly = TokenDataset.from_pieces([("", np.array([3])), ("a", np.array([3]))], context=8, bos=0, masked=[])
    with pytest.raises(TextError, match="one of a\n"):
        partly.groups(["c"])


def test_shards_are_at_most_a_fold_long(tokenizer):
    pieces = (("", np.full(127, 3)) for _ in range(400))
    tokens = TokenDataset.from_pieces(pieces, context=128, bos=0, masked=[0])
    assert [len(shard.rows) for shard in tokens.shards(np.arange(400))] == [128, 128, 128, 16]


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("empty.txt", b"", TextError, "empty"),
        ("short.txt", b"Too short to be studied, but longer than fifty characters.", TextError, "too short"),
        ("latin.txt", "caf\xe9 ".encode("latin1") * 1000, TextError, "not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', TextError, "line 2 is not JSON"),
        ("list.jsonl", b"[1, 2]\n", TextError, "not a record"),
        ("columns.jsonl", b'{"body": "a"}\n', TextError, "--text-column"),
        ("number.jsonl", b'{"text": 3}\n', TextError, "int"),
        ("bad.parquet", b"PAR1 but not really", TextError, "parquet"),
        ("bad.jsonl.xz", b"not xz", TextError, "cannot be read"),
        ("nested.jsonl", b'{"tokens": [[1], [2]]}\n', TokenRangeError, "token ids"),
        ("ragged.jsonl", b'{"tokens": [[1], [2, 3]]}\n', TokenRangeError, "token ids"),
        ("wrapped.jsonl", b'{"tokens": [1, -4294967291]}\n', TokenRangeError, "token ids"),
        ("negative.jsonl", b'{"tokens": [1, -2]}\n', TokenRangeError, "negative"),
        ("words.jsonl", b'{"tokens": ["a"]}\n', TokenRangeError, "token ids"),
    ],
)
def test_bad_text(tokenizer, tmp_path, name, content, error, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        load(tokenizer, tmp_path / name)


def test_missing_data(tokenizer, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(TextError, match="not a saved data set"):
        load(tokenizer, tmp_path / "folder")
    with pytest.raises(MissingFileError, match="hub"):
        load(tokenizer, "nobody/data-1.0")
    for missing in (tmp_path / "no.txt", "no-such-file.txt"):
        with pytest.raises(MissingFileError):
            load(tokenizer, missing)
    with pytest.raises(MissingFileError, match="hub"):
        load(tokenizer, "nobody/no-data")
    datasets.DatasetDict({}).save_to_disk(tmp_path / "none")
    for split in (None, "train"):
        with pytest.raises(TextError, match=r"it has no splits(.|\n)*a data set with some text"):
            load(tokenizer, tmp_path / "none", data_split=split)
    datasets.DatasetDict({"test": datasets.Dataset.from_list(DOCUMENTS)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(TextError, match="no split"):
        load(tokenizer, tmp_path / "splits", data_split="train")


def test_a_token_id_outside_the_vocabulary():
    tokens = TokenDataset.from_pieces([("", np.array([5, 1024]))], context=8, bos=0, masked=[])
    tokens.require_vocabulary(1025, "m")
    with pytest.raises(TokenRangeError, match="1024"):
        tokens.require_vocabulary(1024, "m")


def test_boundary_tokens_and_rules(tokenizer):
    class Bare:
        bos_token_id = eos_token_id = cls_token_id = sep_token_id = None

    with pytest.raises(TokenizerError):
        boundary_tokens(Bare(), "bare")
    encoder = Bare()
    encoder.cls_token_id, encoder.sep_token_id = 7, 8
    assert boundary_tokens(encoder, "encoder") == (7, 8)
    assert masked_ids(("eos", 5), encoder, 7, 8) == ({8, 5}, [])
    fewer = json.loads(tokenizer.backend_tokenizer.to_str())
    fewer["model"]["merges"].pop()
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(fewer)))
    assert tokenizer_digest(tokenizer) != tokenizer_digest(other)


def lengths_of(tokenizer, tmp_path, rows):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load(tokenizer, tmp_path / "rows.jsonl")


@pytest.mark.parametrize("masked", [False, True])
def test_padding_at_either_end_is_removed_and_inside_it_stays(tokenizer, tmp_path, masked):
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.convert_ids_to_tokens(7)
    body = [*range(20, 30), 7, *range(30, 40)]
    counts = []
    for left, right in ((0, 9), (9, 0), (4, 5), (0, 0)):
        row = {"input_ids": [7] * left + body + [7] * right}
        if masked:
            row["attention_mask"] = [0] * left + [1] * len(body) + [0] * right
        tokens = lengths_of(tokenizer if masked else padded, tmp_path, [row] * 12)
        assert rows_of(tokens)[0][1 : tokens.lengths[0]].tolist() == body
        counts.append(tokens.counted)
    assert len(set(counts)) == 1


def test_padding_that_is_eos_too_is_text(tokenizer, tmp_path):
    eos = copy.deepcopy(tokenizer)
    eos.pad_token = eos.eos_token
    tokens = lengths_of(eos, tmp_path, [{"tokens": [5, 6, eos.eos_token_id, eos.eos_token_id]}] * 12)
    assert set(tokens.lengths) == {5}


@pytest.mark.parametrize(
    "ids", [[True], [1.0], [1, None], [10**30], [2**31], [-(2**40)], ["a" * 10**6] * 2, [[]], [{}]]
)
def test_ids_that_are_none_are_refused_shortly(tokenizer, tmp_path, ids):
    with pytest.raises(TokenRangeError, match="not a list of token ids") as refused:
        lengths_of(tokenizer, tmp_path, [{"tokens": ids}])
    assert len(str(refused.value)) < 600


def test_a_document_in_parts_has_one_end_and_loses_nothing(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 64)
    texts = [some_text(60, seed).replace("\n", " ") for seed in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokens = load(tokenizer, tmp_path / "a.jsonl", min_characters=60)
    expected = [token for text in texts for token in (*tokenizer(text, add_special_tokens=False)["input_ids"], 0)]
    assert np.concatenate([ids[1:n] for ids, n in zip(rows_of(tokens), tokens.lengths)]).tolist() == expected


def test_a_long_line_is_read_no_further_than_tokens_are_wanted(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "PIECE", 1000)
    (tmp_path / "a.txt").write_text("of the words " * 100_000)
    asked = []
    counting = copy.deepcopy(tokenizer)
    monkeypatch.setattr(tokens_module, "TOKENISE_CHARACTERS", 1000)
    monkeypatch.setattr(type(counting), "__call__", counted(type(counting).__call__, asked))
    assert len(load(counting, tmp_path / "a.txt", max_tokens=3200)) == 100
    assert 3200 < sum(asked) < 40_000


def counted(call, asked):
    """A tokenizer's call that notes how many characters it is given."""

    def noting(self, text, *arguments, **settings):
        asked.append(sum(map(len, text)))
        return call(self, text, *arguments, **settings)

    return noting


def test_notes_of_the_corpus_are_the_datasets(tokenizer, tmp_path):
    rows = [*DOCUMENTS, {"text": None}, {"text": "half \ud83d" + some_text(30)}]
    notes = lengths_of(tokenizer, tmp_path, rows).notes
    assert [note.split(" ", 1)[0] for note in notes] == ["1", "1"]
    assert "null" in notes[0]
    assert "U+FFFD" in notes[1]


@pytest.mark.parametrize(("name", "content"), [
    ("a.jsonl", b'{"text": 3}\n'), ("a.txt", b"\xff" * 100), ("a.jsonl", b'{"tokens": [1, -2]}\n'), ("a.txt", b"short"),
])  # fmt: skip
def test_no_half_written_rows_stay_behind(tokenizer, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises((TextError, TokenRangeError)):
        load(tokenizer, tmp_path / name, folder=work)
    assert not (work / "rows.partial").exists()


def test_rows_are_not_written_through_a_link(tokenizer, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "rows.partial").symlink_to(tmp_path / "mine.txt")
    assert len(load(tokenizer, write_jsonl(tmp_path / "a.jsonl"), folder=tmp_path / "work")) > 10
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["rows.i32"]
