"""Token ids in a file that travels: python suite/tokens.py CORPUS OUT [VOCABULARY CONTEXT MIB]

Writes OUT/tokenizer/, OUT/heldout.jsonl.xz and OUT/tokens.u16.xz of at most MIB MiB (8): xz of little-endian uint16
ids, 0 before each document, as many documents as fit, all subsets in proportion, held-out ones left out.  They stand
in the corpus's order, since neighbours are alike; `xz -dc` gives the bare ids.  LZMA is told that units have two bytes
(lp, pb = 1), which beats both the text itself and the ids' bytes apart (measured, bits a token: 3.93, 4.00, 5.26).
"""

import lzma
import sys
from pathlib import Path

import numpy as np
from text import encode, held_out, in_proportion, read, train_tokenizer, write_held_out

FILTER = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**27, "lc": 3, "lp": 1, "pb": 1}
HELD_OUT_CHARACTERS = 3_500_000
NEAR = 0.99  # of the bytes allowed: full enough
TRIES = 5


def read_tokens(path: Path) -> np.ndarray:
    """The ids of a file: .npy, or as above."""
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    with lzma.open(path) as file:
        return np.frombuffer(file.read(), "<u2")


def training_tokens(out: Path) -> Path:
    """The file of the token ids that a suite in OUT was, or is to be, trained on."""
    found = [out / name for name in ("tokens.npy", "tokens.u16.xz") if (out / name).exists()]
    if not found:
        raise SystemExit(f"{out}: no tokens.npy, and no tokens.u16.xz, that the models were trained on; put it there")
    return found[0]


def packed(ids: np.ndarray) -> bytes:
    """Ids as bytes of an .xz file."""
    return lzma.compress(ids.astype("<u2").tobytes(), lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=[FILTER])


def pack_tokens(corpus: Path, tokenizer: Path, most: int) -> bytes:
    """As many documents for training as fit so many bytes, packed."""
    documents = [d | {"place": place} for place, d in enumerate(read(corpus)) if not held_out(d["text"])]
    ordered = in_proportion(documents)
    ids = encode((d["text"] for d in ordered), tokenizer)
    pieces = np.split(ids, np.flatnonzero(ids == 0)[1:])
    if len(pieces) != len(ordered):
        raise SystemExit(f"{corpus}: a text holds the token that stands before each document")
    ends = np.cumsum([len(piece) for piece in pieces])
    count = min(int(ends[-1]), most * 2)
    best = b""
    for _ in range(TRIES):
        taken = max(1, int(np.searchsorted(ends, count, "right")))
        chosen = sorted(range(taken), key=lambda number: ordered[number]["place"])
        content = packed(np.concatenate([pieces[number] for number in chosen]))
        print(
            f"{ends[taken - 1]:,} tokens: {len(content):,} bytes, {8 * len(content) / ends[taken - 1]:.3f} bits a token"
        )
        if len(best) < len(content) <= most:
            best = content
        if most * NEAR <= len(content) <= most or (taken == len(pieces) and len(content) <= most):
            break
        count = min(int(ends[-1]), int(ends[taken - 1] * most / len(content) * (1 + NEAR) / 2))
    return best


def make(corpus: Path, out: Path, vocabulary: int = 1024, context: int = 256, mib: float = 8.0) -> Path:
    """Everything the module says; what is there already is not made again, but for the tokens."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer/tokenizer.json").exists():
        texts = (d["text"] for d in read(corpus) if not held_out(d["text"]))
        train_tokenizer(texts, vocabulary, context, out / "tokenizer")
    if not (out / "heldout.jsonl.xz").exists():
        write_held_out(corpus, out / "heldout.jsonl.xz", HELD_OUT_CHARACTERS)
    target = out / "tokens.u16.xz"
    target.write_bytes(pack_tokens(corpus, out / "tokenizer", int(mib * 2**20)))
    return target


if __name__ == "__main__":
    numbers = [float(number) if "." in number else int(number) for number in sys.argv[3:]]
    make(Path(sys.argv[1]), Path(sys.argv[2]), *numbers)
