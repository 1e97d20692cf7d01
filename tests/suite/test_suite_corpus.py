"""The suite's corpus: packages fetched once, texts read out of them, and the same corpus from the same packages."""

import base64
import gzip
import hashlib
import json
import lzma
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "suite"))

import corpus
import manual_pages
import packages
import readers
import web_pages

SOURCE = {"subset": "s", "registry": "npm", "package": "p", "licence": "MIT", "read": "files", "glob": "**/*.txt"}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def read(folder, files, **source):
    """What a reader finds in a package of these files."""
    write(folder, files)
    return list(readers.READERS[source["read"]](folder, SOURCE | source))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that stands for every registry: what lies there under `name` or `name=version` can be fetched."""
    shelf = tmp_path / "registry"
    shelf.mkdir()
    clients = {
        name: (["sh", "-c", f'cp "{shelf}/$0"/* .'], sign, fix) for name, (_, sign, fix) in packages.CLIENTS.items()
    }
    monkeypatch.setattr(packages, "CLIENTS", clients)
    return shelf


def add_npm(shelf, name, files, version="1.0.0"):
    """Put a package on the shelf as `npm pack` would fetch it."""
    (shelf / name).mkdir()
    with tarfile.open(shelf / name / f"{name}-{version}.tgz", "w:gz") as archive:
        write(
            shelf.parent / name,
            {"package/package.json": json.dumps({"version": version}), "package/LICENSE": "MIT"}
            | {f"package/{file}": content for file, content in files.items()},
        )
        archive.add(shelf.parent / name / "package", "package")


def build(registry, out, sources, **given):
    recipe = {"corpus": {"characters_per_subset": 10**6, "characters_per_document": 10**4, "seed": 0} | given}
    recipe["corpus"]["sources"] = [SOURCE | source for source in sources]
    path = corpus.build(recipe, out, registry.parent / "cache")
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def prose(number, size=300):
    return (f"This is text number {number} and " + "so on and so forth " * 1000)[:size].strip()


# Packages


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_a_debian_package_is_unpacked_and_fetched_once(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    control = "Package: p\nVersion: 1:2.0-3\nArchitecture: all\nMaintainer: M <m@example.org>\nDescription: d\n"
    files = {"DEBIAN/control": control, "usr/share/a.txt": "hello", "usr/share/doc/p/copyright": "free"}
    write(tmp_path / "p", files)
    (registry / "p").mkdir()
    subprocess.run(["dpkg-deb", "--build", tmp_path / "p", registry / "p/p_2.0-3_all.deb"], check=True)
    package = packages.fetch("debian", "p", None, Path("cache"))
    assert (package.files / "usr/share/a.txt").read_text() == "hello"
    assert package.version() == "1:2.0-3"
    assert package.licence_file() == "usr/share/doc/p/copyright"
    assert package.sha256() == hashlib.sha256((registry / "p/p_2.0-3_all.deb").read_bytes()).hexdigest()
    shutil.rmtree(registry)
    assert packages.fetch("debian", "p", None, tmp_path / "cache") == package


def test_wheels_and_npm_packages_are_unpacked(registry, tmp_path, monkeypatch):
    (registry / "w==0.1").mkdir()
    with zipfile.ZipFile(registry / "w==0.1/w-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("w/a.txt", "hello")
        wheel.writestr("w-0.1.dist-info/licenses/LICENSE", "MIT")
    monkeypatch.chdir(tmp_path)
    package = packages.fetch("pypi", "w", "0.1", Path("cache"))
    assert (package.version(), package.licence_file()) == ("0.1", "w-0.1.dist-info/licenses/LICENSE")
    assert (package.files / "w/a.txt").read_text() == "hello"
    add_npm(registry, "n", {"a.txt": "hello"}, "2.0.0-beta.1")
    package = packages.fetch("npm", "n", None, Path("cache"))
    assert (package.version(), package.licence_file()) == ("2.0.0-beta.1", "package/LICENSE")
    assert (package.files / "package/a.txt").read_text() == "hello"


def test_what_cannot_be_fetched_is_told_and_leaves_nothing_behind(registry, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"gone==1: pypi did not give it .*a package that has a wheel, or correct"):
        packages.fetch("pypi", "gone", "1", tmp_path / "cache")
    with pytest.raises(SystemExit, match="'maven' of package gone: wanted one of debian, pypi, npm"):
        packages.fetch("maven", "gone", None, tmp_path / "cache")
    monkeypatch.setitem(packages.CLIENTS, "npm", (["no-such-client"], "@", "needs npm"))
    with pytest.raises(SystemExit, match=r"gone: npm did not give it .*needs npm"):
        packages.fetch("npm", "gone", None, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


# Readers


def test_text_files_are_read_in_order_and_what_is_no_text_is_not(tmp_path):
    files = {
        "b/1.txt": "two", "a/2.txt": "one\r\nline", "c.txt.gz": gzip.compress("dreï".encode()), "d.txt": b"\xff\xfe",
        "e.txt": b"a\0b", "f.md": "not asked for",
    }  # fmt: skip
    assert read(tmp_path, files, read="files", glob=["**/*.txt", "*.txt.gz"]) == ["one\nline", "two", "dreï"]
    with pytest.raises(SystemExit, match=r"package p: no file matches '\*.rst'; correct `glob`"):
        read(tmp_path, {}, read="files", glob="*.rst")


def test_web_pages_lose_tags_and_navigation():
    page = """<!DOCTYPE html><html><head><title>T</title></head><body class="x"><div class="navheader top"><p>Next</div>
    <h1>A   heading</h1><p>Some <b>bold</b>&nbsp;text &amp;
    more.<br>New line</p><pre>
  kept   as
    it is</pre><table><tr><td>1</td><td>2</td></tr></table><script>no()</script><div id="own">out<p>too</div>
    <ul><li>one<li>two</ul></body></html>"""
    assert web_pages.text_of(page, frozenset({"own"})) == (
        "A heading\nSome bold text & more.\nNew line\n\n  kept   as\n    it is\n1 2\none\ntwo"
    )


def test_web_pages_as_a_source(tmp_path):
    page = "<body><header>top</header><p>hello</p></body>"
    assert read(tmp_path, {"a.html": page}, read="html", glob="*.html") == ["top\nhello"]
    assert read(tmp_path, {}, read="html", glob="*.html", without=["header"]) == ["hello"]


def test_manual_pages_are_filled_and_lose_roff(tmp_path):
    page = r""".\" A comment
'\" t
.TH kill 2 2022-12-04 "Linux man-pages"
.SH NAME
kill \- send a \fIsignal\fP
.SH SYNOPSIS
.nf
.BI "int kill(pid_t " pid ", int " sig );
    \(dqkept\(dq \e0
and
this
.fi
.SH DESCRIPTION
The
.BR kill (2)
system call \(em can
.\" another
be used.
.PP
Second\&.
.TP
.B EINVAL
An invalid
signal.
.IP \(bu 3
Point.
.br
Broken.
.ne 3
"""
    text = (
        "kill 2 2022-12-04 Linux man-pages\n\nNAME\nkill - send a signal\n\nSYNOPSIS\nint kill(pid_t pid, int sig);\n"
        '    "kept" \\0\nand\nthis\n\nDESCRIPTION\nThe kill(2) system call — can be used.\n\nSecond.\n\nEINVAL\n'
        "An invalid signal.\n\n•\nPoint.\nBroken."
    )
    assert manual_pages.text_of(page) == text
    files = {"man2/kill.2.gz": gzip.compress(page.encode())}
    assert read(tmp_path, files, read="man", glob="man*/*.gz") == [text]


def test_dictionaries_of_dictd(tmp_path):
    def number(value):
        raw = base64.b64encode(value.to_bytes(6, "big")).decode()
        return raw.lstrip("A") or "A"

    entries = {"00-database-info": "about", "wolf": "wolf\n  An animal.\n", "ant": "ant\n  An insëct.\n"}
    book, index = b"", []
    for word, entry in entries.items():
        index.append(f"{word}\t{number(len(book))}\t{number(len(entry.encode()))}")
        book += entry.encode()
    index.append(index[1].replace("wolf", "wolves"))
    files = {"d/x.index": "\n".join(sorted(index)) + "\n", "d/x.dict.dz": gzip.compress(book)}
    assert read(tmp_path, files, read="dictd", glob="**/*.index") == ["wolf\n  An animal.", "ant\n  An insëct."]
    assert readers._number("BA") == 64


def test_synsets_of_wordnet(tmp_path):
    lines = [
        "  1 This software and database is being provided to you",
        "00180211 00 a 01 unconstitutional(p) 0 001 ! 00179925 a 0101 | not consistent  ",
        '00597634 31 v 02 master 1 get_the_hang 0 001 * 00606093 v 0000 01 + 08 00 | be skilled; "She | he"  ',
    ]
    assert read(tmp_path, {"data.all": "\n".join(lines) + "\n"}, read="wordnet", glob="data.*") == [
        "unconstitutional (adjective): not consistent",
        'master, get the hang (verb): be skilled; "She | he"',
    ]


def lzw(text, header):
    """A window as `compress` writes it, if with a code for each byte: right as long as codes have nine bits."""
    assert len(text) < 250
    bits = "".join(f"{byte:09b}"[::-1] for byte in text)
    packed = bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))
    return (b"\x1f\x9d\x90" if header else b"") + packed


def test_the_bible_by_chapters(tmp_path):
    text = b"Holy Bible.\nGe1:1 In the beginning.\nGe1:2 And the earth.\nGe2:1 Thus.\n1Jo5:21 Little children.\n"
    windows = [lzw(text[:50], True), lzw(text[50:], False)]
    starts = [0x5C + 12, 0x5C + 12 + len(windows[0]), 0x5C + 12 + sum(map(len, windows))]
    content = b"EC02".ljust(0x58, b"\0") + struct.pack(">I3I", 2, *starts) + b"".join(windows)
    found = read(tmp_path, {"bible.data": content}, read="bible", glob="bible.data")
    assert found == ["1 In the beginning.\n2 And the earth.", "1 Thus.", "21 Little children."]


class R:
    """Writes R's serialisation, as far as a package's data need it."""

    @staticmethod
    def characters(text):
        return struct.pack(">ii", 0x40009, len(text.encode())) + text.encode()

    @classmethod
    def strings(cls, values):
        return struct.pack(">ii", 16, len(values)) + b"".join(map(cls.characters, values))

    @staticmethod
    def integers(values):
        return struct.pack(f">ii{len(values)}i", 13, len(values), *values)

    @classmethod
    def named(cls, values, symbol=True):
        """A list with names; the symbol `names` is written once and then referred to."""
        names = struct.pack(">i", 1) + cls.characters("names") if symbol else struct.pack(">i", 0x1FF)
        pairs = struct.pack(">i", 0x402) + names + cls.strings(list(values)) + struct.pack(">i", 254)
        return struct.pack(">ii", 0x213, len(values)) + b"".join(values.values()) + pairs

    @staticmethod
    def whole(written):
        return b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8" + written


def test_vectors_of_strings_in_an_r_package(tmp_path):
    objects = {
        "novel": R.strings(["CHAPTER 1", "", "Emma Wödehouse"]),
        "frame": R.named({"n": R.integers([1, 2]), "text": R.strings(["a", "b"])}),
        "count": R.integers([7]),
    }
    stored, places = b"", {}
    for name, written in objects.items():
        packed = struct.pack(">I", len(R.whole(written))) + zlib.compress(R.whole(written))
        places[name] = R.integers([len(stored), len(packed)])
        stored += packed
    first, *others = places.items()
    inner = R.named(dict([first, *others]))
    index = R.named({"variables": inner, "references": R.named({}, False), "compressed": R.integers([1])}, False)
    files = {"data/Rdata.rdx": gzip.compress(R.whole(index)), "data/Rdata.rdb": stored}
    assert read(tmp_path, files, read="r", glob="**/*.rdx") == ["a\nb", "CHAPTER 1\n\nEmma Wödehouse"]
    for wrong in (struct.pack(">i", 3), struct.pack(">i", 2) + R.strings([])):  # a closure; a pair without a tag
        write(tmp_path, {"data/Rdata.rdx": zlib.compress(R.whole(wrong))})
        with pytest.raises(SystemExit, match=r"an R object of kind [23]: only vectors and lists are read"):
            read(tmp_path, {}, read="r", glob="**/*.rdx")
    write(tmp_path, {"data/Rdata.rdx": zlib.compress(b"RDX3\n")})
    with pytest.raises(SystemExit, match="another serialisation"):
        read(tmp_path, {}, read="r", glob="**/*.rdx")


# The corpus


def test_texts_become_documents_as_the_source_says(registry, tmp_path):
    chapters = "".join(f"CHAPTER {n}\n{prose(n)}\nwrapped   \n\nnew\n" for n in range(3))
    add_npm(registry, "p", {"a.txt": "Title\n" + chapters})
    source = {"split": r"CHAPTER \d", "drop": " +$", "unwrap": True}
    found = build(registry, tmp_path / "out", [source])
    assert sorted(d["text"] for d in found) == [f"CHAPTER {n} {prose(n)} wrapped\n\nnew" for n in range(3)]
    add_npm(registry, "q", {f"{n}.txt": f"word {n}" for n in range(100, 160)})
    found = build(registry, tmp_path / "out", [{"package": "q", "together": 30}])
    texts = sorted(d["text"] for d in found)
    assert [text.split("\n") for text in texts] == [[f"word {n}" for n in range(a, a + 30)] for a in (100, 130)]


def test_caps_duplicates_and_what_is_nearly_empty(registry, tmp_path):
    texts = {f"{n}.txt": prose(n, 1000) for n in range(10)}
    add_npm(registry, "p", texts | {"short.txt": "x" * 199, "long.txt": prose(99, 5000), "again.txt": prose(3, 1000)})
    add_npm(registry, "q", {"same.txt": prose(4, 1000), "other.txt": prose(11, 1000)})
    sources = [{}, {"package": "q"}, {"package": "q", "subset": "t", "licence": "BSD"}]
    found = build(registry, tmp_path / "all", sources, characters_per_document=2000)
    assert sorted(d["text"] for d in found) == sorted(
        [prose(n, 1000) for n in range(10)] + [prose(99, 5000)[:2000].strip(), prose(11, 1000)]
    )
    assert {d["subset"] for d in found} == {"s"}  # all of the second subset was seen before
    told = json.loads((tmp_path / "all/sources.json").read_text())
    assert [(s["subset"], s["package"], s["documents"]) for s in told] == [("s", "p", 11), ("s", "q", 1), ("t", "q", 0)]
    assert [s["licence"] for s in told] == ["MIT", "MIT", "BSD"]
    assert told[0]["characters"] == sum(len(d["text"]) for d in found if d["text"] != prose(11, 1000))
    assert told[0]["version"] == "1.0.0"
    assert told[0]["licence_file"] == "package/LICENSE"
    archive = tmp_path / "cache/npm/p/p-1.0.0.tgz"
    assert told[0]["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    few = build(registry, tmp_path / "few", sources, characters_per_document=2000, characters_per_subset=3500)
    told = json.loads((tmp_path / "few/sources.json").read_text())
    assert sum(s["documents"] for s in told) == len(few)
    assert sum(s["characters"] for s in told) == sum(len(d["text"]) for d in few)
    assert 1500 < sum(len(d["text"]) for d in few) <= 3500
    assert {d["text"] for d in few} < {d["text"] for d in found}


def test_the_same_packages_give_the_same_bytes_and_the_seed_the_order(registry, tmp_path):
    add_npm(registry, "p", {f"{n}.txt": prose(n) for n in range(20)})
    add_npm(registry, "q", {f"{n}.txt": prose(n) for n in range(20, 30)})
    sources = [{}, {"package": "q", "subset": "t"}]
    one = build(registry, tmp_path / "one", sources)
    assert build(registry, tmp_path / "two", sources) == one
    for name in ("corpus.jsonl.xz", "sources.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = build(registry, tmp_path / "other", sources, seed=1)
    assert other != one
    assert sorted(other, key=str) == sorted(one, key=str)
    assert [d["subset"] for d in one] != sorted(d["subset"] for d in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": "pdf"}, "source p: read 'pdf' is unknown; wanted one of files, html, man"),
        ({"without": ["nav"]}, "source p: `without` goes with read html, not with files; remove it"),
        ({"globs": "*"}, "source p: globs unknown; wanted glob, licence, package"),
        ({"glob": None}, "source p: glob missing; wanted glob, licence, package"),
    ],
)
def test_sources_that_cannot_be_followed_are_told_before_anything_is_fetched(registry, tmp_path, change, message):
    source = {key: value for key, value in (SOURCE | change).items() if value is not None}
    given = {"characters_per_subset": 1, "characters_per_document": 1, "seed": 0, "sources": [source]}
    with pytest.raises(SystemExit, match=message):
        corpus.build({"corpus": given}, tmp_path / "out", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_recipe_without_a_corpus_is_told(tmp_path):
    with pytest.raises(SystemExit, match="no section `corpus`; add it, or put"):
        corpus.build({}, tmp_path / "out", tmp_path / "cache")


def test_the_recipes_own_sources_can_be_followed():
    recipe = yaml.safe_load((Path(corpus.__file__).parent / "recipe.yaml").read_text())
    sources = [corpus.checked(source) for source in recipe["corpus"]["sources"]]
    assert all(source["registry"] in packages.CLIENTS for source in sources)
    assert all("version" in source for source in sources if source["registry"] != "debian")
    assert len({source["subset"] for source in sources}) >= 14
