"""A tokenizer and what is asked of it: ids of text, strings of tokens, BOS and EOS, the newline, a digest.

Tokenizers are another library's, in another language: what a damaged one, or one of a newer kind, raises may be
anything.  Here, and only here, it becomes a `TokenizerError`.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from universal_neurons.config import MaskRule, StudyConfig
from universal_neurons.errors import CheckpointError, TokenizerError, UniversalNeuronsError
from universal_neurons.legible import shortened
from universal_neurons.models.described import Described, quiet_transformers
from universal_neurons.models.locations import (
    SUITES,
    Source,
    folder_of,
    require_ordinary_files,
)

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
SPECIAL = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id", "unk_token_id")
IDS = range(2**31)
MOST_IDS = 1 << 24
ANCHOR = "a"
CHANCE = "Once upon a time there was a miller who had three sons, and 1,024 of whatever is internationally traded. " * 8
CHANCES = 4  # times that a text is read to see whether it always becomes the same tokens
SHOWN = 60  # characters of a token that differs
TRIED = 8  # tokens whose own strings are encoded to see whether a tokenizer works


def tokenizer_folder(source: Source) -> Path:
    """The folder of a model's tokenizer: its own, or of an adapter that brings none its base's."""
    if source.base is not None and not _has_tokenizer(source.folder):
        return tokenizer_folder(source.base)
    return _of_suite(source.folder)


def _of_suite(folder: Path) -> Path:
    """The folder of the tokenizer of a suite for one of its models, else the folder itself."""
    suite = folder.resolve().parent
    return suite / "tokenizer" if suite in SUITES else folder


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def load_tokenizer(folder: str | Path, gguf: str | None = None) -> Any:
    """The tokenizer in a local folder (in its GGUF file), or None where there is none.

    Raises `CheckpointError` for one that does not work.
    """
    folder = _of_suite(Path(folder))
    if gguf is None and not _has_tokenizer(Path(folder)):
        return None
    require_ordinary_files(Path(folder), str(folder))
    _require_sane_ids(Path(folder))
    try:
        with named_errors("its tokenizer cannot be read"), quiet_transformers():
            from transformers import AutoTokenizer

            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, gguf_file=gguf, local_files_only=True, trust_remote_code=False
            )
            _try_out(tokenizer)
    except TokenizerError as error:
        mend = "mend tokenizer.json and tokenizer_config.json, or upgrade transformers and tokenizers to a newer kind"
        raise CheckpointError(
            f"{folder}: {error.what}", given=error.given, wanted=error.wanted, fix=error.fix or mend
        ) from error
    return tokenizer


def find_tokenizer(config: StudyConfig, models: Sequence[Described], *, required: bool = True) -> Any:
    """The tokenizer that is asked for, or the first that a model has (None, where there is none and none is needed)."""
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(folder_of(config.tokenizer))
    else:
        tokenizer = next((model.tokenizer for model in models if model.tokenizer is not None), None)
    if tokenizer is None and required:
        raise TokenizerError(
            f"{config.tokenizer or models[0].name}: no tokenizer there",
            wanted="tokenizer.json or another tokenizer's files",
            fix="--tokenizer FOLDER",
        )
    if tokenizer is not None:
        require_same_ids_every_time(tokenizer)
    return tokenizer


def _require_sane_ids(folder: Path) -> None:
    """Refuse ids so large that the library, which makes room for every one below, would take all memory."""
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json"):
        try:
            content = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue  # none there, or the library says what is wrong with it
        largest = max(_ids_in(content), default=0)
        if largest >= MOST_IDS:
            raise CheckpointError(
                f"{folder}: {name} has an id out of all bounds",
                given=str(largest)[:50],
                wanted=f"ids below {MOST_IDS:,}",
                fix="copy or download it again",
            )


def _ids_in(content: object) -> Iterator[int]:
    """The ids in a vocabulary file, or in the vocabulary and added tokens of a tokenizer.json."""
    if not isinstance(content, dict):
        return
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else content
    values = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    values += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    yield from (value for value in values if isinstance(value, int))


@contextlib.contextmanager
def named_errors(what: str) -> Iterator[None]:
    """`TokenizerError` for whatever the library raises; a panic of its is no `Exception`."""
    try:
        yield
    except (UniversalNeuronsError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TokenizerError(what, given=reason[:200], wanted="a tokenizer that works") from error


def require_same_ids_every_time(tokenizer: Any) -> None:
    """Raise `TokenizerError` where the same text becomes other ids each time: BPE dropout, sampling.

    One that has no token for a letter of ordinary text draws no lots over it either.
    """
    try:
        once, *again = (encode(tokenizer, [CHANCE]) for _ in range(CHANCES))
    except TokenizerError:
        return
    if any(ids != once for ids in again):
        raise TokenizerError(
            "its tokenizer draws lots: the same text becomes other tokens each time",
            given="dropout of merges, or sampling",
            wanted="the same tokens every time",
            fix='set "dropout" to null in tokenizer.json (tokenizer.backend_tokenizer.model.dropout = None)',
        )


def _try_out(tokenizer: Any) -> None:
    """Ask a tokenizer for everything that a study asks it."""
    tokenizer_digest(tokenizer)
    special_ids(tokenizer), all_special_ids(tokenizer)
    known = sorted(vocabulary_ids(tokenizer).values())[:TRIED]
    strings_of(tokenizer, known)
    texts = [ANCHOR, *decode(tokenizer, [[token] for token in known])]
    failures = []
    for text in texts:
        try:
            encode(tokenizer, [text])
            return require_same_ids_every_time(tokenizer)
        except TokenizerError as error:
            failures.append(error)
    raise failures[0]


def vocabulary_ids(tokenizer: Any) -> dict[str, int]:
    """The id of every token.  Raises `TokenizerError` where there are none, or ids that are no numbers."""
    with named_errors("its tokenizer has no vocabulary"):
        vocabulary = {str(token): number for token, number in tokenizer.get_vocab().items()}
    odd = next((token for token, id_ in vocabulary.items() if type(id_) is not int or id_ not in IDS), None)
    if odd is not None or not vocabulary:
        entry = f"{odd[:50]!r}: {str(vocabulary[odd])[:50]}" if odd is not None else "an empty vocabulary"
        raise TokenizerError("its tokenizer's vocabulary is not one", given=entry, wanted="a number for every token")
    return vocabulary


def special_ids(tokenizer: Any) -> dict[str, int | None]:
    """The ids of BOS, EOS, CLS, SEP, padding and the unknown token, None where there is none such."""
    with named_errors("its tokenizer's special tokens cannot be read"):
        ids = {name: getattr(tokenizer, name, None) for name in SPECIAL}
    for name, number in ids.items():
        if number is not None:
            _require_id(name, number)
    return ids


def all_special_ids(tokenizer: Any) -> list[int]:
    """The ids of all special tokens, those without a name of their own too."""
    with named_errors("its tokenizer's special tokens cannot be read"):
        ids = list(tokenizer.all_special_ids)
    for number in ids:
        _require_id("all_special_ids", number)
    return ids


def _require_id(name: str, number: object) -> None:
    if type(number) is not int or number not in IDS:
        raise TokenizerError(f"its tokenizer's {name} is no token", given=str(number)[:200], wanted="a token's id")


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without special tokens."""
    with named_errors("its tokenizer cannot encode the text"):
        return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def decode(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row of ids, special tokens included, nothing tidied up."""
    with named_errors("its tokenizer cannot decode tokens"):
        texts = tokenizer.batch_decode(
            [list(row) for row in rows], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    return list(texts)


def strings_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text when it follows another, so with its leading space."""
    anchor = _anchor(tokenizer)
    alone, *texts = decode(tokenizer, [anchor, *([*anchor, token] for token in ids)])
    return [text.removeprefix(alone) for text in texts]


def _anchor(tokenizer: Any) -> list[int]:
    """Tokens for others to follow: those of "a", or, where that has none, a token that shows as text."""
    with contextlib.suppress(TokenizerError):
        (ids,) = encode(tokenizer, [ANCHOR])
        if decode(tokenizer, [ids])[0].strip():
            return ids
    special = set(all_special_ids(tokenizer))
    others = (token for token in sorted(vocabulary_ids(tokenizer).values()) if token not in special)
    return next(([token] for token in others if decode(tokenizer, [[token]])[0].strip()), [])


def boundary_tokens(tokenizer: Any, name: str) -> tuple[int, int]:
    """BOS and EOS of a tokenizer; each stands in for the other, and CLS and SEP for both."""
    ids = special_ids(tokenizer)
    bos = [ids["bos_token_id"], ids["cls_token_id"], ids["eos_token_id"]]
    eos = [ids["eos_token_id"], ids["sep_token_id"], ids["bos_token_id"]]
    first = next((token for token in bos if token is not None), None)
    last = next((token for token in eos if token is not None), None)
    if first is None or last is None:
        raise TokenizerError(f"{name}: its tokenizer names no BOS, EOS, CLS or SEP token", wanted="one of them")
    return first, last


def masked_ids(rules: Sequence[MaskRule], tokenizer: Any, bos: int, eos: int) -> tuple[set[int], list[str]]:
    """The token ids that the rules leave out (sinks are none), and notes on rules that name no token."""
    ids = set()
    notes = []
    for rule in rules:
        if rule == "newline":
            newlines = newline_tokens(tokenizer)
            ids |= newlines
            if not newlines:
                notes.append("the tokenizer has no single newline token: newlines are counted")
        elif rule != "sinks":
            ids.add(rule if isinstance(rule, int) else {"bos": bos, "eos": eos}[rule])
    return {int(token) for token in ids}, notes


def newline_tokens(tokenizer: Any) -> set[int]:
    """The tokens that a newline becomes, alone or inside text, and that stand for nothing else."""
    try:
        alone, inside = encode(tokenizer, ["\n", f"{ANCHOR}\n{ANCHOR}"])
    except TokenizerError:  # words without an unknown token: a newline is none of them
        return set()
    candidates = sorted({*alone, *inside})
    return {token for token, text in zip(candidates, strings_of(tokenizer, candidates)) if text == "\n"}


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary and, where it has them, the merges: what decides which ids a text becomes."""
    content = [sorted(vocabulary_ids(tokenizer).items()), _merges(tokenizer)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _merges(tokenizer: Any) -> Any:
    with named_errors("its tokenizer cannot be read"):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return json.loads(backend.to_str())["model"].get("merges") if backend is not None else None


def added_tokens(tokenizer: Any, longer: Any) -> list[str] | None:
    """The tokens that another tokenizer has besides, in the order of their ids; None where it is no such extension."""
    known, others = vocabulary_ids(tokenizer), vocabulary_ids(longer)
    if _merges(tokenizer) != _merges(longer) or any(others.get(token) != number for token, number in known.items()):
        return None
    return sorted(others.keys() - known.keys(), key=others.__getitem__)


def tokenizer_difference(first: Any, second: Any) -> str | None:
    """The first token, by the first's ids, or merge that two tokenizers do not share, in words; None where all are.

    Tokens stand in it as the vocabularies spell them.
    """
    known, others = vocabulary_ids(first), vocabulary_ids(second)
    differing = [token for token in known.keys() | others.keys() if known.get(token) != others.get(token)]
    if differing:
        token = min(differing, key=lambda token: (known.get(token, len(known)), others.get(token, len(others)), token))
        more = f"; tokens that differ: {len(differing):,}" if len(differing) > 1 else ""
        return f"token {shortened(repr(token), SHOWN)} is {_id_in(known, token)}, {_id_in(others, token)}{more}"
    ours, theirs = _merges(first) or [], _merges(second) or []
    for number, (one, other) in enumerate(zip_longest(ours, theirs), 1):
        if one != other:
            return f"merge {number:,} is {_spelled(one)}, {_spelled(other)}"
    return None


def _id_in(vocabulary: dict[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "not there"


def _spelled(merge: object) -> str:
    return "not there" if merge is None else shortened(repr(merge), SHOWN)
