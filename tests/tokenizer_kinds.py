"""Small real tokenizers of every kind, trained in a moment, and text that is hard on them."""

import json
import random
from functools import cache

from conftest import some_text
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ODD = "Zoë naïve café ﬁne 東京都 日本語 Привет мир Ελλάδα 👩‍👩‍👧 🙂 e\u0301a a\u0301 \r\n  x½ İ ŉ \u00ad"
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
LETTERS = [
    *"abcdefgh the of and to in is THE", *"äéßıİŉﬁ½²", *"東京都日本語", *"Приветмир", *"ħάλ", "👩\u200d👩\u200d👧", "🙂", "🇩🇪",
    "e\u0301", "a\u0301\u0323", "\u0301", "\u200d", "\r\n", "\n", "\r", "\t", "\0", "\x1c", "\x7f", " ", "  ", "   ", "\u00a0", "\u3000",
    "\u00ad", "\u202e", "\ufeff", "\ufffd", "한국", "한", "नमस्ते", "สวัสดี", "مرحبا", "the ", " of", "and", " was", "</s>", "<s>", "<0xE4>", "▁", "Ġ", "12", ".", ",",
]  # fmt: skip


def wrapped(tokenizer: Tokenizer, **names) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | names
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def trained(model, trainer, **parts) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator([some_text(1500), some_text(1500, 1), *[ODD] * 30], trainer)
    return tokenizer


def bpe(size=600, **parts) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False, **parts.pop("train", {})
    )
    return trained(models.BPE(unk_token=parts.pop("unknown", None)), trainer, **parts)


def byte_level(prefix=False, size=600, **parts) -> Tokenizer:
    return bpe(
        size, train={"initial_alphabet": ALPHABET}, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
        decoder=decoders.ByteLevel(), **parts,
    )  # fmt: skip


def changed(tokenizer: Tokenizer, change) -> Tokenizer:
    parts = json.loads(tokenizer.to_str())
    change(parts)
    return Tokenizer.from_str(json.dumps(parts))


def with_fallback(parts):
    """Byte fallback for a SentencePiece-like BPE: 256 more tokens, and no letters that are not in Latin."""
    model = parts["model"]
    kept = [token for token in model["vocab"] if all(ord(c) < 0x250 or c == "▁" for c in token)]
    model["vocab"] = {token: number for number, token in enumerate([*kept, *BYTES])}
    model["merges"] = [merge for merge in model["merges"] if {*merge, "".join(merge)} <= set(kept)]
    model |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    for token in parts["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]


def unigram_with_fallback(parts):
    kept = [entry for entry in parts["model"]["vocab"] if all(ord(c) < 0x250 or c == "▁" for c in entry[0])]
    parts["model"]["vocab"] = [*kept, *([token, -20.0] for token in BYTES)]
    parts["model"]["byte_fallback"] = True
    parts["normalizer"] = None


def like_llama(parts):
    with_fallback(parts)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    parts["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replaced]}
    parts["pre_tokenizer"] = None


def unigram(**parts) -> Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return trained(models.Unigram(), trainer, pre_tokenizer=pre_tokenizers.Metaspace(), **parts)


def wordpiece(normalizer) -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    return trained(
        models.WordPiece(unk_token="<unk>"), trainer, normalizer=normalizer,
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    )  # fmt: skip


@cache
def kinds() -> dict[str, PreTrainedTokenizerFast]:
    """A tokenizer of every kind, by what is special about it."""
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    made = {
        "byte-level": byte_level(post_processor=processors.ByteLevel(trim_offsets=True)),
        "byte-level, prefix space": byte_level(True, 500, post_processor=processors.ByteLevel(trim_offsets=True)),
        "byte-level, NFKC": byte_level(normalizer=normalizers.NFKC()),
        "byte fallback": changed(bpe(pre_tokenizer=pre_tokenizers.Metaspace()), with_fallback),
        "byte fallback, prepended": changed(bpe(700, pre_tokenizer=pre_tokenizers.Metaspace()), like_llama),
        "unigram, NFKC": unigram(normalizer=normalizers.Sequence([normalizers.NFKC(), spaces])),
        "unigram, byte fallback": changed(unigram(), unigram_with_fallback),
        "WordPiece, BERT": wordpiece(normalizers.BertNormalizer(lowercase=True)),
        "WordPiece, NFD": wordpiece(
            normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
        ),
        "BPE, NFKC": bpe(unknown="<unk>", normalizer=normalizers.NFKC(), pre_tokenizer=pre_tokenizers.Whitespace()),
    }
    return {name: wrapped(tokenizer) for name, tokenizer in made.items()}


@cache
def odd_kinds() -> dict[str, PreTrainedTokenizerFast]:
    """More that normalise, split and put spaces in front in ways of their own."""
    norm, pre, trim = normalizers, pre_tokenizers, processors.ByteLevel(trim_offsets=True)
    llama3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bytewise, alphabet = pre.ByteLevel(add_prefix_space=False, use_regex=False), {"initial_alphabet": ALPHABET}
    bare = norm.Sequence([norm.NFD(), norm.StripAccents(), norm.Lowercase()])
    collapsed = norm.Sequence([norm.Nmt(), norm.NFKC(), norm.Strip(False, True), norm.Replace(Regex(" {2,}"), "▁")])
    made = {
        "byte-level, prefix untrimmed": byte_level(True),
        "byte-level, prefix, NFC": byte_level(True, normalizer=norm.NFC(), post_processor=trim),
        "byte-level, no accents": byte_level(normalizer=bare, post_processor=trim),
        "byte-level, Llama 3": bpe(train=alphabet, pre_tokenizer=pre.Sequence([pre.Split(Regex(llama3), "isolated"), bytewise])),
        "byte-level, digits apart": bpe(train=alphabet, pre_tokenizer=pre.Sequence([pre.Digits(True), bytewise])),
        "byte-level by its normaliser": bpe(train=alphabet, normalizer=norm.ByteLevel()),
        "T5": unigram(normalizer=collapsed),
        "ends of words": bpe(
            train={"end_of_word_suffix": "</w>"}, unknown="<unk>", pre_tokenizer=pre.Whitespace(),
            normalizer=norm.Sequence([norm.NFC(), norm.Replace(Regex(r"\s+"), " "), norm.Lowercase()]),
        ),
        "first space": bpe(unknown="<unk>", pre_tokenizer=pre.Metaspace(prepend_scheme="first")),
        "no space": bpe(unknown="<unk>", pre_tokenizer=pre.Metaspace(prepend_scheme="never", split=False)),
        "stripped, scripts apart": bpe(
            unknown="<unk>", normalizer=norm.Sequence([norm.Strip(), norm.NFKC()]), pre_tokenizer=pre.UnicodeScripts()
        ),
    }  # fmt: skip
    return {name: wrapped(tokenizer) for name, tokenizer in made.items()}


def hard_texts(how_many: int, seed: int = 0) -> list[str]:
    """Random strings of letters, marks, emoji, white space, control characters and special tokens' names."""
    chooser = random.Random(seed)
    return ["".join(chooser.choices(LETTERS, k=chooser.randint(1, 6))) for _ in range(how_many)]


def way_of(name):
    """How the tokens of a kind spell bytes."""
    return next((way for way in ("byte-level", "fallback") if way in name), "")


def renumbered(tokenizer, seed=0):
    """The same tokenizer with other ids."""

    def change(parts):
        vocabulary = parts["model"]["vocab"]
        of_tokens = isinstance(vocabulary, dict)
        names = list(vocabulary) if of_tokens else [entry[0] for entry in vocabulary]
        order = list(range(len(names)))
        random.Random(seed).shuffle(order)
        number = dict(zip(names, order))
        if of_tokens:
            parts["model"]["vocab"] = number
        else:
            unknown = names[parts["model"]["unk_id"]]
            parts["model"]["vocab"] = sorted(vocabulary, key=lambda entry: number[entry[0]])
            parts["model"]["unk_id"] = number[unknown]
        for token in parts["added_tokens"]:
            token["id"] = number[token["content"]]

    return wrapped(
        changed(tokenizer.backend_tokenizer, change),
        **{name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token")},
    )
