"""Files as people have them: compressed, marked, in pipes, damaged, too long, half null; read by content, in bounds."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import random
import threading
import tracemalloc
from itertools import pairwise

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import some_text

from universal_neurons import StudyConfig
from universal_neurons.errors import MissingFileError, TextError, TokenRangeError
from universal_neurons.text import corpora, records, text_files
from universal_neurons.text.corpora import Corpus

RECORDS = [{"text": some_text(60, seed), "subset": "ab"[seed % 2]} for seed in range(6)]
TEXTS = [record["text"] for record in RECORDS]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def zstd(content):
    return pa.compress(content, "zstd", asbytes=True)


PACKED = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd}


def read(data, **settings):
    """The documents' contents, and the notes."""
    corpus = Corpus(StudyConfig(data=str(data), **settings))
    contents = [document.content for document in corpus]
    return contents, corpus.conclude(iter(()))


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.{}", "c.bin", "c.txt.{}"])
def test_compression_is_seen_whatever_the_name(tmp_path, pack, name):
    path = write(tmp_path, name.format(pack), PACKED[pack](LINES))
    assert read(path) == (TEXTS, [])


@pytest.mark.parametrize(
    "name", ["c.jsonl", "c.ndjson", "c.jl", "c.jsonlines", "c.json", "c.data", "c.txt", "c.md", "c"]
)
def test_json_lines_are_seen_whatever_the_name(tmp_path, name):
    assert read(write(tmp_path, name, b"\n \n" + LINES)) == (TEXTS, [])


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", "{ not JSON, but it begins so\n"), ("a.txt", '{"a" = 1}\nx\n'), ("a.md", "{}\n{}\n"), ("a", "{ so: it }\n"),
    ("a.txt", "\n\n\n  indented\n"), ("a.txt", "[1, 2]\n"), ("a", "[1]\n"), ("a.text", "{" * 3000), ("a.txt", '"text"\n'),
])  # fmt: skip
def test_text_that_only_looks_like_json_stays_text(tmp_path, name, content):
    assert read(write(tmp_path, name, content.encode())) == ([content], [])


HALF_JSON = {  # files, with the number of the first line, which is no record, and of the first that is an object
    "cut": (1, 2, b'{"text": "a\n' + LINES),
    "a trailing comma": (3, None, b'\n \n{"text": "a",}\n'),
    "in single quotes": (1, None, b"{'text': 'a'}\n"),
    "a list": (1, 2, b"[1]\n" + LINES),
    "a list of objects": (1, None, b'[{"text": "a"}]\n'),
    "over several lines": (1, None, b'{\n "text": "a"\n}\n'),
    "an empty object": (1, 2, b"{}\n" + LINES),
    "a number too long": (1, 2, b'{"n": ' + b"9" * 6000 + b"}\n" + LINES),
    "too deep": (1, None, b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n"),
    "a heading": (1, 2, b"# lines\n" + LINES),
    "a heading of a long line": (2, 3, b"\n# lines\n" + json.dumps({"text": "a" * 20_000}).encode()),
    "marked twice": (1, None, 2 * codecs.BOM_UTF8 + b"{'text': 'a'}\n"),
}


@pytest.mark.parametrize("case", HALF_JSON)
def test_what_looks_like_json_lines_is_not_read_as_text_in_silence(tmp_path, case):
    number, noted, content = HALF_JSON[case]
    for name in ("a", "a.log", "a.zst"):
        path = write(tmp_path, name, zstd(content) if name == "a.zst" else content)
        with pytest.raises(TextError, match=rf"line {number} is not a record[\s\S]*name the file \.txt"):
            read(path)
    for name in ("a.txt", "a.md"):
        contents, notes = read(write(tmp_path, name, content))
        assert "".join(contents) == content.decode("utf-8-sig")
        assert [f"though line {noted} is a JSON object: name it .jsonl" in note for note in notes] == [True] * bool(
            noted
        )


def test_a_list_or_an_object_of_several_lines_says_how_it_becomes_lines(tmp_path):
    for content, command in ((b'[{"text": "a"}]', r"jq -c '\.\[\]' a"), (b'{\n"text": "a"}', r"jq -c '\.' a")):
        with pytest.raises(TextError, match=command):
            read(write(tmp_path, "a", content))


def test_marks_of_files_that_were_joined_are_no_text(tmp_path):
    for name, repeated in (("a.jsonl", 1), ("a", 1), ("a.jsonl", 2), ("a", 2)):
        part = codecs.BOM_UTF8 * repeated + LINES
        assert read(write(tmp_path, name, part + part + codecs.BOM_UTF8 + b"\n" + codecs.BOM_UTF8)) == (TEXTS * 2, [])


def test_an_object_without_text_in_a_text_file_is_text_and_noted(tmp_path):
    contents, notes = read(write(tmp_path, "a.txt", b'{"a": 1}\nmore\n'))
    assert contents == ['{"a": 1}\nmore\n']
    assert "name it .jsonl" in notes[0]
    with pytest.raises(TextError, match="no text"):
        read(write(tmp_path, "a.dat", b'{"a": 1}\nmore\n'))


@pytest.mark.parametrize(("mark", "encoding"), [
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
])  # fmt: skip
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(tmp_path, mark, encoding):
    text = "naïve 💥 text\nof two lines\n"
    assert read(write(tmp_path, "a.txt", mark + text.encode(encoding)))[0] == [text]
    assert read(write(tmp_path, "a.jsonl", mark + LINES.decode().encode(encoding)))[0] == TEXTS
    assert read(write(tmp_path, "a.gz", gzip.compress(mark + text.encode(encoding))))[0] == [text]


def test_line_ends_of_every_system_are_one(tmp_path):
    assert read(write(tmp_path, "a.txt", b"a\r\nb\rc\n"))[0] == ["a\nb\nc\n"]
    assert read(write(tmp_path, "a.jsonl", LINES.replace(b"\n", b"\r\n")))[0] == TEXTS


def test_a_pipe_is_read_as_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for content in (LINES, gzip.compress(LINES)):
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
        writer.start()
        assert read(tmp_path / "pipe") == (TEXTS, [])
        writer.join()
    descriptor, end = os.pipe()
    os.write(end, LINES)
    os.close(end)
    assert read(f"/dev/fd/{descriptor}") == (TEXTS, [])
    os.close(descriptor)


def test_a_pipe_that_nobody_writes_into_is_refused_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "WRITER_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TextError, match="nobody writes into"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_refused(place):
    with pytest.raises(TextError, match="neither a file nor a pipe"):
        read(place)


def test_paths_are_taken_literally(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = tmp_path / "run[1]*?"
    odd.mkdir()
    write(odd, "c.jsonl", LINES)
    pq.write_table(pa.Table.from_pylist(RECORDS), odd / "c.parquet")
    datasets.Dataset.from_list(RECORDS).save_to_disk(odd / "saved")
    for name in ("c.jsonl", "c.parquet", "saved"):
        assert read(odd / name) == (TEXTS, [])
        assert read(f"~/run[1]*?/{name}") == (TEXTS, [])
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(MissingFileError, match="a link that leads nowhere"):
        read(tmp_path / "lost")
    with pytest.raises(MissingFileError, match="cannot be a path"):
        read("w" * 300)


REFUSED = {
    "zip": (b"PK\x03\x04" + bytes(100), "zip archive"),
    "tar": (bytes(257) + b"ustar" + bytes(200), "tar archive"),
    "packed tar": (gzip.compress(b"name".ljust(257, b"\0") + b"ustar" + bytes(200)), "tar archive"),
    "arrow": (b"ARROW1\0\0" + bytes(100), "Arrow file"),
    "twice": (gzip.compress(bz2.compress(LINES)), "compressed twice"),
    "utf-16": ("some text of it".encode("utf-16-le"), "iconv -f UTF-16LE"),
    "utf-16 be": ("some text of it".encode("utf-16-be"), "iconv -f UTF-16BE"),
    "binary": (bytes(range(256)) * 20 + bytes(2000), "NUL"),
    "hole": (b"some text\n" * 2000 + bytes(20_000), "NUL"),
    "latin": (b"caf\xe9 " * 9, "iconv -f latin1 -t utf-8 odd.txt"),
    "packed latin": (gzip.compress(b"caf\xe9 " * 9), r"gzip -dc odd.txt \| iconv -f latin1"),
    "torn utf-16": ("text".encode("utf-16")[:-1], "not UTF-16"),
    "packed parquet": (gzip.compress(b"PAR1" + bytes(100)), "parquet that is compressed"),
    "empty": (b"", "empty"),
    "empty gz": (gzip.compress(b""), "empty"),
    "a mark alone": (codecs.BOM_UTF8, "empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_text_is_refused_by_name(tmp_path, case):
    content, words = REFUSED[case]
    with pytest.raises(TextError, match=words):
        read(write(tmp_path, "odd.txt", content))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_a_name_of_another_compression_is_refused(tmp_path, suffix):
    with pytest.raises(TextError, match="cannot be read: its name ends in"):
        read(write(tmp_path, "a" + suffix, b"plain"))


@pytest.mark.parametrize("pack", PACKED)
def test_damaged_bytes_are_named_never_a_traceback(tmp_path, pack):
    """Cut, inverted and filled at seeded places: either the text is what it was or the file is named."""
    whole = PACKED[pack](LINES)
    chooser = random.Random(pack)
    refused = []
    for _ in range(40):
        torn = bytearray(whole)
        place = chooser.randrange(1, len(torn))
        kind = chooser.choice(("cut", "invert", "fill"))
        if kind == "cut":
            del torn[place:]
        elif kind == "invert":
            torn[place] ^= 255
        else:
            torn[place : place + 20] = b"\0" * 20
        try:
            contents, _ = read(write(tmp_path, "torn.jsonl", bytes(torn)))
        except TextError as error:
            refused.append(str(error))
        else:
            assert contents == TEXTS or pack == "zst"  # which pyarrow writes without a checksum
    assert refused
    assert all("torn.jsonl" in message for message in refused)


def test_damaged_tables_are_named_never_a_traceback(tmp_path):
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "whole.parquet", compression="none")
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    chooser = random.Random(0)
    files = [tmp_path / "whole.parquet", *sorted((tmp_path / "saved").iterdir())]
    refused = 0
    for turn in range(80):
        path = files[turn % len(files)]
        whole = path.read_bytes()
        torn = bytearray(whole)
        place = chooser.randrange(len(torn))
        if turn % 3:
            torn[place : place + 4] = chooser.randbytes(len(torn[place : place + 4]))
        else:
            del torn[place:]
        path.write_bytes(torn)
        try:
            read(path if path.suffix == ".parquet" else path.parent)
        except TextError:
            refused += 1
        path.write_bytes(whole)
    assert refused > 30
    assert read(files[0]) == (TEXTS, [])


def test_a_string_of_a_table_that_is_not_utf8_is_refused(tmp_path):
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet", compression="none", write_statistics=False)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[content.find(TEXTS[3].encode()) + 5] = 0xFF
    with pytest.raises(TextError, match=r"a.parquet: not a readable parquet file[\s\S]*(UTF8|utf-8)"):
        read(write(tmp_path, "a.parquet", bytes(content)))


def test_short_lines_make_the_pieces_they_always_made(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "PIECE", 100)
    chooser = random.Random(0)
    lines = ["x" * chooser.randrange(0, 90) + "\n" for _ in range(60)] + ["the last has no end"]
    expected, piece = [], ""
    for line in lines:
        piece += line
        if len(piece) >= 100:
            expected.append(piece)
            piece = ""
    corpus = Corpus(StudyConfig(data=str(write(tmp_path, "a.txt", "".join(lines).encode()))))
    documents = list(corpus)
    assert [document.content for document in documents] == [*expected, piece]
    assert all(document.ends for document in documents)


@pytest.mark.parametrize("text", [
    "word " * 500, "w" * 2500, "w" * 250 + " " + "w" * 250, "é💥" * 700, " " * 1000, "short\n" + "long " * 300 + "\nshort\n",
    "w" * 100, "w" * 200 + "\n", ("w" * 99 + "\n") * 7, ("w" * 100 + "\n") * 7,
])  # fmt: skip
def test_a_long_line_is_cut_at_spaces_and_nothing_is_lost(tmp_path, monkeypatch, text):
    monkeypatch.setattr(corpora, "PIECE", 100)
    documents = list(Corpus(StudyConfig(data=str(write(tmp_path, "a.txt", text.encode())))))
    assert "".join(document.content for document in documents) == text
    assert max(len(document.content) for document in documents) <= 200
    assert documents[-1].ends
    for document, following in pairwise(documents):
        if document.ends:
            assert document.content.endswith("\n")
        elif " " in document.content[50:]:
            assert following.content.startswith(" ")


def test_a_long_document_of_a_record_comes_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 100)
    text = some_text(100)
    path = write(tmp_path, "a.jsonl", (json.dumps({"text": text, "subset": "s"}) + "\n").encode() + LINES)
    documents = list(Corpus(StudyConfig(data=str(path))))
    parts = documents[: next(n for n, document in enumerate(documents) if document.ends) + 1]
    assert "".join(part.content for part in parts) == text
    assert {part.subset for part in parts} == {"s"}
    assert all(len(part.content) <= 100 for part in parts)


def test_lines_and_documents_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "LONGEST_LINE", 1000)
    monkeypatch.setattr(records, "LONGEST_DOCUMENT", 500)
    line = json.dumps({"text": "a" * 2000}).encode()
    with pytest.raises(TextError, match="line 7 is too long"):
        read(write(tmp_path, "a.jsonl", LINES + line))
    with pytest.raises(TextError, match="too long a document"):
        read(write(tmp_path, "a.jsonl", json.dumps({"text": "a" * 600}).encode()))
    assert read(write(tmp_path, "a.jsonl", LINES))[0] == TEXTS


def test_memory_does_not_depend_on_what_the_bytes_unpack_to(tmp_path, monkeypatch):
    """64 MiB of one letter in 64 KB, text and JSON: no more is held than a few pieces."""
    monkeypatch.setattr(corpora, "PIECE", 1 << 16)
    monkeypatch.setattr(corpora, "LONGEST_LINE", 1 << 16)
    text = write(tmp_path, "a.txt", gzip.compress(b"a" * (1 << 26), 1))
    line = write(tmp_path, "a.jsonl", zstd(b'{"text": "' + b"a" * (1 << 26)))
    tracemalloc.start()
    first = next(iter(Corpus(StudyConfig(data=str(text)))))
    assert len(first.content) == 1 << 16
    with pytest.raises(TextError, match="too long"):
        read(line)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 23


def test_a_table_is_read_in_bounded_batches(tmp_path, monkeypatch):
    long = "word " * 20_000
    pq.write_table(pa.table({"text": [long] * 3000}), tmp_path / "a.parquet")
    tracemalloc.start()
    assert next(iter(Corpus(StudyConfig(data=str(tmp_path / "a.parquet"))))).content == long
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 23
    assert pa.total_allocated_bytes() < 1 << 26
    monkeypatch.setattr(corpora, "GROUP_BYTES", 1 << 16)
    monkeypatch.setattr(corpora, "ROW_BYTES", 1 << 16)
    pq.write_table(pa.table({"text": [long]}), tmp_path / "b.parquet", use_dictionary=False)
    with pytest.raises(TextError, match="its rows are too large"):
        read(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": [long], "text": ["small"]}), tmp_path / "c.parquet", use_dictionary=False)
    assert read(tmp_path / "c.parquet")[0] == ["small"]


def test_rows_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "LARGEST_ROW", 1 << 16)
    monkeypatch.setattr(corpora, "TABLE_BYTES", 1 << 10)
    pq.write_table(pa.table({"tokens": [[5] * 1_000_000]}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 16
    datasets.Dataset.from_list([{"text": "word " * 20_000}]).save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "saved"):
        with pytest.raises(TextError, match="bytes in a row"):
            read(tmp_path / name)
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "small")
    assert read(tmp_path / "small") == (TEXTS, [])


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"text": "a"}\n' + "[" * 100_000])
def test_deep_json_is_refused(tmp_path, content):
    with pytest.raises(TextError, match="too deeply nested"):
        read(write(tmp_path, "a.jsonl", content.encode()))


@pytest.mark.parametrize(("content", "words"), [
    ('[{"text": "a"},\n {"text": "b"}]', r"jq -c '.\[\]' a.json"), ('{\n "text": "a"\n}', "jq -c '.' a.json"),
    ('[{"text": "a"}]', r"jq -c '.\[\]' a.json"), ('{"text": ' + "9" * 5000 + "}", "not JSON"),
])  # fmt: skip
def test_json_that_is_no_lines_says_how_to_make_them(tmp_path, content, words):
    with pytest.raises(TextError, match=words):
        read(write(tmp_path, "a.json", content.encode()))


def test_half_characters_are_replaced_counted_and_noted(tmp_path):
    lines = [{"text": "cut \ud83d here \udc00", "subset": "a\ud800"}, {"text": "whole 💥", "subset": "b"}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)).encode())
    contents, notes = read(path)
    assert contents == ["cut \ufffd here \ufffd", "whole 💥"]
    assert notes == ["1 document held half characters (lone surrogates), read as U+FFFD"]
    assert [document.subset for document in Corpus(StudyConfig(data=str(path)))] == ["a\ufffd", "b"]


@pytest.mark.parametrize("kind", ["a.jsonl", "a.parquet", "saved"])
def test_null_texts_are_left_out_counted_and_noted(tmp_path, kind):
    rows = [*RECORDS[:2], {"text": None, "subset": "a"}, *RECORDS[2:], {"text": None, "subset": None}]
    save(tmp_path / kind, rows)
    assert read(tmp_path / kind) == (TEXTS, ["2 documents left out: the text is null"])
    save(tmp_path / ("all" + kind), [{"text": None, "subset": "a"}] * 3)
    with pytest.raises(TextError, match="null in all of 3 records"):
        read(tmp_path / ("all" + kind))


def save(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema({"text": pa.string(), "subset": pa.string()})), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)


def test_tokens_stand_in_for_a_text_that_is_null(tmp_path):
    rows = [{"text": None, "tokens": [1, 2]}, {"text": "a", "tokens": [3]}]
    assert read(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)).encode()))[0] == [[1, 2], "a"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_columns_literal_name_comes_before_a_path(tmp_path, kind):
    rows = [{"doc.text": "literal", "doc": {"text": "inside", "set": {"name": "s"}}, "meta": None}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(rows[0]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert read(path, text_column="doc.text")[0] == ["literal"]
    (document,) = Corpus(StudyConfig(data=str(path), text_column="doc.text", subset_column="doc.set.name"))
    assert document.subset == "s"
    (document,) = Corpus(StudyConfig(data=str(path), text_column="doc.set.name", subset_column="meta.set"))
    assert (document.content, document.subset) == ("s", "")


@pytest.mark.parametrize("kind", ["a.jsonl", "a.parquet", "saved"])
@pytest.mark.parametrize("column", ["subset_column", "text_column"])
def test_a_column_that_is_asked_for_must_be_there(tmp_path, kind, column):
    save(tmp_path / kind, RECORDS)
    with pytest.raises(TextError, match=r"no(where|such| text| column 'nowhere')[\s\S]*columns text, subset"):
        read(tmp_path / kind, **{column: "nowhere"})
    assert read(tmp_path / kind, **{column: column.removesuffix("_column")})[0] == TEXTS


def test_columns_of_a_text_are_refused(tmp_path):
    with pytest.raises(TextError, match="a text, which has no columns"):
        read(write(tmp_path, "a.txt", b"text"), subset_column="nowhere")


def test_a_subset_column_may_be_in_some_records_only(tmp_path):
    rows = [{"text": "a"}, {"text": "b", "kind": "x"}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert [d.subset for d in Corpus(StudyConfig(data=str(path), subset_column="kind"))] == ["", "x"]


@pytest.mark.parametrize("mask", [[1, 1], "11", [1, 1, None], [1.0, 0.0, 1.0], 1, [[1], [1], [1]], {}])
def test_a_mask_that_is_not_of_the_row_is_refused(tmp_path, mask):
    row = {"input_ids": [1, 2, 3], "attention_mask": mask}
    with pytest.raises(TextError, match=r"line 1: 'attention_mask' does[\s\S]*a list of 0 and 1 as long as the row"):
        read(write(tmp_path, "a.jsonl", json.dumps(row).encode()))
    row["attention_mask"] = [0, 1, True]
    assert read(write(tmp_path, "a.jsonl", json.dumps(row).encode()))[0] == [[2, 3]]


def test_ids_that_are_none_are_refused_with_their_line(tmp_path):
    good = '{"tokens": [1, 2]}\n\n'
    for bad, words in (
        ([1, "a"], "not a list of token ids"),
        ([[1]], "not a list of"),
        ([3, -1], "a negative token id"),
    ):
        path = write(tmp_path, "a.jsonl", (good + json.dumps({"tokens": bad})).encode())
        with pytest.raises(TokenRangeError, match=rf"a\.jsonl: line 3: [\s\S]*{words}"):
            read(path)


def test_ids_in_a_column_of_another_name_say_which_it_must_have(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"ids": [1, 2]}')
    with pytest.raises(TextError, match=r"line 1: 'ids' is list[\s\S]*name the column tokens or input_ids"):
        read(path, text_column="ids")


def test_names_of_subsets_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_SUBSETS", 3)
    lines = "\n".join(json.dumps({"text": "a", "subset": n}) for n in range(5))
    with pytest.raises(TextError, match="names no subsets"):
        read(write(tmp_path, "a.jsonl", lines.encode()))
    with pytest.raises(TextError, match="is no subset's name"):
        read(write(tmp_path, "a.jsonl", json.dumps({"text": "a", "subset": "s" * 2000}).encode()))
