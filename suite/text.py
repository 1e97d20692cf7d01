"""The corpus as training needs it: held-out documents apart, a byte-level BPE tokenizer, token ids in a row."""

import hashlib
import json
import lzma
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

BOS = "<|endoftext|>"  # id 0: before each document, and where BOS, EOS or padding is asked for
HELD_OUT = 20  # one document in so many
AT_ONCE = 256  # documents that are encoded together


def sha1(text: str) -> int:
    """The SHA-1 of a text as an integer."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16)


def held_out(text: str) -> bool:
    """Whether a document is kept from training."""
    return sha1(text) % HELD_OUT == 0


def read(corpus: Path) -> Iterator[dict]:
    """The documents of a corpus.jsonl.xz, {"text": …, "subset": …} each."""
    with lzma.open(corpus, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def training_texts(corpus: Path) -> Iterator[str]:
    """The texts of a corpus that are trained on."""
    return (document["text"] for document in read(corpus) if not held_out(document["text"]))


def in_proportion(documents: Iterable[dict]) -> list[dict]:
    """Documents ordered so that every stretch holds the subsets in proportion."""
    waiting, size = defaultdict(list), defaultdict(int)
    for document in sorted(documents, key=lambda d: sha1("order" + d["text"])):
        waiting[document["subset"]].append(document)
        size[document["subset"]] += len(document["text"])
    written: dict[str, int] = dict.fromkeys(waiting, 0)
    ordered = []
    while any(waiting.values()):
        subset = min((s for s in waiting if waiting[s]), key=lambda s: (written[s] / size[s], s))
        ordered.append(waiting[subset].pop())
        written[subset] += len(ordered[-1]["text"])
    return ordered


def write_held_out(corpus: Path, target: Path, characters: int) -> None:
    """The held-out documents, in proportion, as many as make up so many characters."""
    write_first(in_proportion(d for d in read(corpus) if held_out(d["text"])), target, characters)


def write_first(documents: Iterable[dict], target: Path, characters: int) -> None:
    """The first documents, as many as make up so many characters."""
    with lzma.open(target, "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as out:
        for document in documents:
            if characters <= 0:
                break
            characters -= len(document["text"])
            out.write(json.dumps(document, ensure_ascii=False) + "\n")


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int, folder: Path) -> None:
    """A byte-level BPE tokenizer, as a folder that `transformers` reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, model_max_length=context
    )
    whole.save_pretrained(folder)


def encode(texts: Iterable[str], tokenizer_folder: Path) -> np.ndarray:
    """Token ids (uint16) of all documents, 0 before each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    parts, waiting = [], []

    def flush() -> None:
        for encoded in tokenizer.encode_batch(waiting, add_special_tokens=False):
            parts.append(np.array([0, *encoded.ids], np.uint16))
        waiting.clear()

    for text in texts:
        waiting.append(text)
        if len(waiting) == AT_ONCE:
            flush()
    flush()
    return np.concatenate(parts)
