"""What is asked of a tokenizer: the newline, BOS and EOS, gaps, and a named error for every one that is damaged."""

import json
import random
import shutil

import numpy as np
import pytest
from conftest import save_tiny, small_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import universal_neurons as un
from universal_neurons.errors import CheckpointError, TokenizerError
from universal_neurons.models import (
    boundary_tokens,
    encode,
    load_tokenizer,
    masked_ids,
    strings_of,
    tokenizer_difference,
    tokenizer_digest,
    vocabulary_ids,
)
from universal_neurons.text import read_vocabulary

MUTATIONS = 150
ODD_VALUES = (
    None, True, 5, -1, 2**31, 2**40, 2**70, 0.5, "x", "", [], {}, ["x"], {"type": "Newer"}, [[]], "\x00", "�",
)  # fmt: skip


def words(**names):
    """Words without an unknown token: nothing else can be encoded."""
    backend = Tokenizer(models.WordLevel(vocab={"<s>": 0, "A": 1, "C": 2, "G": 3, "T": 4}))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", **names)


def byte_fallback():
    """As Llama 2's: letters, and bytes for all else."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    vocabulary |= {letter: len(vocabulary) + n for n, letter in enumerate("▁abcdefgh")}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(pieces)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_unknown():
    """Words, and one token for every other: a newline too."""
    backend = Tokenizer(models.WordLevel(vocab={"<s>": 0, "?": 1, "cat": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("cat", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="?")


def with_gap(at=60, gap=40):
    """Letters of a byte alphabet, `gap` ids left out after the first `at`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {letter: 1 + n + gap * (n >= at) for n, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.mark.parametrize(
    ("make", "newlines"),
    [(small_tokenizer, {"Ċ"}), (byte_fallback, {"<0x0A>"}), (words, set()), (with_unknown, set()), (with_gap, {"Ċ"})],
)
def test_the_newline_is_the_token_that_a_newline_alone_becomes(make, newlines):
    tokenizer = make()
    ids, notes = masked_ids(("newline",), tokenizer, 0, 0)
    assert {token for token, number in tokenizer.get_vocab().items() if number in ids} == newlines
    assert bool(notes) != bool(newlines)
    assert not notes or "no single newline token" in notes[0]


def test_ids_that_no_token_has_are_special_and_all_tokens_have_their_string():
    tokenizer = with_gap()
    vocabulary = read_vocabulary(tokenizer, 300)
    known = sorted(tokenizer.get_vocab().values())
    assert max(known) == 296
    assert len(known) == 257
    assert np.flatnonzero(vocabulary.special).tolist() == [0, *(n for n in range(300) if n not in known)]
    text = "The cat, zebra-like: {~}"
    ids = tokenizer(text)["input_ids"]
    assert max(ids) > 256
    assert "".join(vocabulary.strings[token] for token in ids) == text
    assert not any(vocabulary.strings[token] for token in range(300) if token not in known)


def test_words_without_an_unknown_token_have_strings_but_no_text():
    tokenizer = words()
    assert [text.strip() for text in strings_of(tokenizer, [1, 2, 3, 4])] == ["A", "C", "G", "T"]
    assert read_vocabulary(tokenizer, 6).special.tolist() == [True, False, False, False, False, True]
    with pytest.raises(TokenizerError, match="cannot encode"):
        encode(tokenizer, ["CAT\n"])


def test_text_that_a_tokenizer_cannot_encode_is_named(tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "a newline\n" * 99}) + "\n")
    config = un.StudyConfig(data=str(tmp_path / "text.jsonl"))
    with pytest.raises(TokenizerError, match="cannot encode"):
        un.TokenDataset.load(config, words(), context=32)


def test_boundary_tokens_that_are_no_ids_are_refused():
    tokenizer = words()
    assert boundary_tokens(tokenizer, "words") == (0, 0)

    class Odd:
        bos_token_id, eos_token_id = 2**31, "x"

    with pytest.raises(TokenizerError, match="bos_token_id"):
        boundary_tokens(Odd(), "odd")


def test_a_vocabulary_of_no_numbers_is_refused():
    class Odd:
        def get_vocab(self):
            return {"a": "x"}

    with pytest.raises(TokenizerError, match="vocabulary"):
        vocabulary_ids(Odd())


def test_a_folder_without_a_tokenizer_has_none_and_one_with_a_broken_one_is_refused(tmp_path):
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("largest", [1 << 24, 2**32 - 1, 2**70])
def test_ids_out_of_all_bounds_are_refused_before_room_is_made_for_them(tmp_path, largest):
    words().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for place in (content["model"]["vocab"], content["added_tokens"][0]):
        key = "G" if "G" in place else "id"
        before, place[key] = place[key], largest
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="out of all bounds"):
            load_tokenizer(tmp_path)
        place[key] = before


@pytest.mark.parametrize(("file", "change"), [
    ("tokenizer.json", {"pre_tokenizer": {"type": "NewKind"}}),
    ("tokenizer.json", {"post_processor": {"type": "NewKind"}}),
    ("tokenizer_config.json", {"model_specific_special_tokens": ["<x>"]}),
    ("tokenizer_config.json", {"bos_token": 5}),
    ("tokenizer_config.json", {"tokenizer_class": 5}),
])  # fmt: skip
def test_a_tokenizer_of_a_newer_kind_or_wrong_type_is_a_checkpoint_error(folders, tmp_path, file, change):
    folder = shutil.copytree(folders[0], tmp_path / "odd")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        un.load_model(str(folder))
    assert "upgrade" in str(caught.value)


def places(value, path=()):
    """Paths to everything in nested JSON; of a long list or object the first few."""
    yield path
    if isinstance(value, dict | list):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, part in items[:12]:
            yield from places(part, (*path, key))


def mutated(document, chooser):
    """A copy with one value replaced, removed or doubled."""
    changed = json.loads(json.dumps(document))
    *parents, last = chooser.choice([path for path in places(document) if path])
    holder = changed
    for key in parents:
        holder = holder[key]
    kind = chooser.randrange(5)
    if kind == 0 and isinstance(holder, dict):
        del holder[last]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[last])
    else:
        holder[last] = chooser.choice(ODD_VALUES)
    return changed


@pytest.mark.filterwarnings("ignore")
def test_no_mutation_of_a_tokenizers_files_raises_an_error_without_a_name(tmp_path):
    """Each either gives a tokenizer that answers everything a study asks, or is refused by name."""
    with_gap().save_pretrained(tmp_path)
    chooser = random.Random(0)
    originals = {name: (tmp_path / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")}
    refused = 0
    for _ in range(MUTATIONS):
        name = chooser.choice(sorted(originals))
        (tmp_path / name).write_text(json.dumps(mutated(json.loads(originals[name]), chooser)))
        try:
            tokenizer = load_tokenizer(tmp_path)
            bos, eos = boundary_tokens(tokenizer, "mutated")
            masked_ids(("bos", "eos", "newline"), tokenizer, bos, eos)
            read_vocabulary(tokenizer, 300)
            tokenizer_digest(tokenizer)
            encode(tokenizer, ["some\ntext"])
        except (CheckpointError, TokenizerError):
            refused += 1
        (tmp_path / name).write_text(originals[name])
    assert 10 < refused < MUTATIONS - 10
    assert load_tokenizer(tmp_path) is not None


def test_a_study_of_rows_without_newlines_says_so(tmp_path, capsys):
    save_tiny(tmp_path / "m", vocab_size=8)
    for path in (tmp_path / "m").glob("tokenizer*"):
        path.unlink()
    words().save_pretrained(tmp_path / "m")
    chooser = random.Random(0)
    rows = [json.dumps({"tokens": [chooser.randrange(1, 5) for _ in range(31)]}) for _ in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    config = un.StudyConfig(models=(str(tmp_path / "m"),), data=str(tmp_path / "rows.jsonl"), context=32)
    store = un.run_study(config.model_copy(update={"stages": ("statistics",), "out": str(tmp_path / "r")}))
    assert store.neurons["mean"].is_finite().all()
    assert "no single newline token" in capsys.readouterr().err


def changed_bytes(change):
    """`small_tokenizer` with its vocabulary and merges changed in place."""
    content = json.loads(small_tokenizer().backend_tokenizer.to_str())
    change(content["model"]["vocab"], content["model"]["merges"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))


def swap(vocabulary, _merges):
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def test_tokenizers_that_differ_are_told_apart_by_the_token():
    plain = small_tokenizer()
    ids, merges = plain.get_vocab(), json.loads(plain.backend_tokenizer.to_str())["model"]["merges"]
    first, second = sorted("ab", key=ids.__getitem__)
    assert tokenizer_difference(plain, small_tokenizer()) is None
    said = tokenizer_difference(plain, changed_bytes(swap))
    assert said == f"token {first!r} is id {ids[first]}, id {ids[second]}; tokens that differ: 2"
    longer = changed_bytes(lambda vocabulary, _: vocabulary.update({"new" * 200: len(ids)}))
    assert tokenizer_difference(plain, longer).startswith("token 'newnew")
    assert tokenizer_difference(plain, longer).endswith(f" is not there, id {len(ids)}")
    assert len(tokenizer_difference(longer, plain)) < 100
    fewer = changed_bytes(lambda _, merges: merges.pop())
    assert tokenizer_difference(plain, fewer) == f"merge {len(merges)} is {merges[-1]!r}, not there"
