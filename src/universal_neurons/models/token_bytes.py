"""Where in the text a tokenizer's tokens stand, and which bytes a token spells whatever the text.

A byte-level vocabulary (GPT-2, Llama 3) writes every byte as a character of its own; byte fallback (SentencePiece)
writes bytes as `<0xE4>`; an added token is its own content.  Other tokens may be normalised, so only the place that
the tokenizer gives for them tells their text.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from universal_neurons.errors import TokenizerError
from universal_neurons.models.tokenizer import all_special_ids, named_errors, special_ids, vocabulary_ids

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
PRINTABLE = [
    *range(0x21, 0x7F),
    *range(0xA1, 0xAD),
    *range(0xAE, 0x100),
]  # bytes that stand for themselves
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]  # written from U+0100 on
ALPHABET = {chr(byte): byte for byte in PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(OTHERS)}


class Placed(NamedTuple):
    """The tokens of several texts, one text after the other; `ends` says how many there are up to each text's end.

    `places` are each token's first character and the one after its last, within its text.
    """

    ids: Int[np.ndarray, " tokens"]
    places: Int[np.ndarray, "tokens 2"]
    ends: Int[np.ndarray, " texts"]


class Spelling(NamedTuple):
    """The bytes that each id spells, None where that depends on the text; whether it is the whole vocabulary's way.

    `special` marks ids that stand for no text: BOS, EOS, padding and other special tokens, but not the unknown token.
    """

    spelled: tuple[bytes | None, ...]
    byte_level: bool
    special: Bool[np.ndarray, " ids"]


def require_places(tokenizer: Any, name: str) -> None:
    """Raise `TokenizerError` for a slow tokenizer, which does not say where in the text its tokens stand."""
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{name}: its tokenizer is a slow one, which does not say where in the text a token stands",
            given=type(tokenizer).__name__,
            wanted="a fast tokenizer (tokenizer.json)",
            fix="PreTrainedTokenizerFast(tokenizer_object=transformers.convert_slow_tokenizer."
            "convert_slow_tokenizer(tokenizer)).save_pretrained(FOLDER of the model)",
        )


def encode_with_places(tokenizer: Any, texts: Sequence[str]) -> Placed:
    """The ids of each text, without special tokens, and where each stands in its text."""
    with named_errors("its tokenizer cannot encode the text"):
        encoded = tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
    ends = np.cumsum([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    ids = np.fromiter((token for row in encoded["input_ids"] for token in row), np.int64)
    places = np.fromiter((end for row in encoded["offset_mapping"] for place in row for end in place), np.int64)
    return Placed(ids, places.reshape(-1, 2), ends)


def spelling_of(tokenizer: Any) -> Spelling:
    """Which bytes a fast tokenizer's tokens spell, and which of them stand for no text."""
    vocabulary = vocabulary_ids(tokenizer)
    with named_errors("its tokenizer cannot be read"):
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        added = {token["id"]: token for token in parts["added_tokens"]}
        byte_level = any(_has_byte_level(parts.get(name)) for name in ("pre_tokenizer", "normalizer"))
        fallback = bool(parts["model"].get("byte_fallback"))
    spelled: list[bytes | None] = [None] * (max(*vocabulary.values(), *added, 0) + 1)
    for token, number in vocabulary.items():
        if number in added:
            spelled[number] = added[number]["content"].encode()
        elif byte_level:
            spelled[number] = _in_alphabet(token)
        elif fallback and (match := BYTE_TOKEN.fullmatch(token)):
            spelled[number] = bytes([int(match[1], 16)])
    special = np.zeros(len(spelled), bool)
    special[[number for number, token in added.items() if token["special"]]] = True
    special[[number for number in all_special_ids(tokenizer) if number < len(special)]] = True
    named = special_ids(tokenizer)
    unknown = named.pop("unk_token_id")
    if unknown is not None and unknown not in named.values():
        special[unknown] = False
    return Spelling(tuple(spelled), byte_level, special)


def _has_byte_level(part: Any) -> bool:
    """Whether a normaliser or pre-tokeniser, or one of a sequence, writes bytes as characters."""
    if not isinstance(part, dict):
        return False
    members = part.get("pretokenizers") or part.get("normalizers") or []
    return part.get("type") == "ByteLevel" or any(map(_has_byte_level, members))


def _in_alphabet(token: str) -> bytes | None:
    """The bytes of a token that is written in GPT-2's alphabet."""
    return bytes(ALPHABET[c] for c in token) if all(c in ALPHABET for c in token) else None
