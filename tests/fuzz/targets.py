"""What is fuzzed: for every format a file that is whole, and what reads it.

A reader returns what it made of the file, as a hash, or raises a `UniversalNeuronsError`.  Where the format carries
hashes, what is returned must be what the whole file gives (`hashed`).
"""

import gzip
import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from conftest import FEW_ROLES, save_tiny, small_tokenizer, some_text
from fuzz.wrong import Target
from safetensors.torch import save_file

import universal_neurons as un
from universal_neurons.config_reading import make_config, make_dynamics_config, read_config
from universal_neurons.features import load_dictionaries
from universal_neurons.labels import read_own_labels
from universal_neurons.report import diff_view, neuron_view, unit_view
from universal_neurons.report.summary import plain_summary
from universal_neurons.storage import STATISTICS, Generations, SketchFile
from universal_neurons.terminal import plain
from universal_neurons.text import read_vocabulary

CONTEXT = 32


def digest(value: Any) -> str:
    """One hash of tables, tensors, arrays and what contains them, down to their last bit."""
    if isinstance(value, pl.DataFrame):
        value = [str(value.schema), value.to_dicts()]
    if isinstance(value, torch.Tensor):
        value = [str(value.dtype), list(value.shape), value.float().numpy()]
    if isinstance(value, np.ndarray):
        value = [str(value.dtype), value.shape, value.tobytes()]
    if isinstance(value, dict):
        value = sorted(value.items())
    if isinstance(value, list | tuple):
        value = [digest(part) for part in value]
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()


def text_targets(folder: Path) -> list[Target]:
    """Settings, corpora and labels of one's own."""
    tokenizer = small_tokenizer()
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    text = some_text(1500)
    records = [{"text": text[n * 90 : n * 90 + 300], "subset": "xy"[n % 2]} for n in range(60)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    rows = tokenizer([record["text"] for record in records], add_special_tokens=False)["input_ids"]
    for name, content in {
        "t.txt": text.encode(),
        "t.jsonl": lines,
        "g.jsonl.gz": gzip.compress(lines, mtime=0),
        "x.jsonl.xz": lzma.compress(lines),
        "i.jsonl": "".join(json.dumps({"input_ids": row}) + "\n" for row in rows).encode(),
        "sets.json": json.dumps({"of": ["of", " of"], "stops": [".", ","]}).encode(),
        "sets.yaml": yaml.safe_dump({"of": ["of", " of"], "stops": [".", ","]}).encode(),
        "labels.py": b"def long(s):\n    return len(s) > 3\n",
        "settings.yaml": yaml.safe_dump(
            {"models": ["a", "b"], "data": "t.txt", "roles": {"values": [0.0, 1.0]}}
        ).encode(),
        "study.json": json.dumps(
            {"complete": True, "config": un.StudyConfig(models=("a", "b")).model_dump(mode="json", exclude={"out"})}
        ).encode(),
    }.items():
        (folder / name).write_bytes(content)
    table = pl.DataFrame({"text": [r["text"] for r in records], "subset": [r["subset"] for r in records]})
    table.write_parquet(folder / "t.parquet")
    spans = pl.DataFrame({"row": [0, 1], "start": [1, 2], "end": [3, 9], "label": ["a", "b"]})
    spans.write_parquet(folder / "spans.parquet")

    def packed(path: Path) -> un.TokenDataset:
        config = un.StudyConfig(data=str(path), context=CONTEXT, max_tokens=4000)
        return un.TokenDataset.load(config, tokenizer, context=CONTEXT)

    def corpus(path: Path) -> str:
        tokens = packed(path)
        return digest([tokens.fingerprint, tokens.counted, tokens.notes])

    whole = packed(folder / "t.jsonl")

    def labels(path: Path) -> str:
        marks = read_own_labels((str(path),), {}, vocabulary, whole)
        return digest([sorted(marks.tokens), sorted(marks.spans)])

    def settings(path: Path) -> str:
        values, _ = read_config(path)
        make_dynamics_config({key: value for key, value in values.items() if key in ("models", "data", "context")})
        return digest(make_config(values, str(path)).model_dump())

    corpora = [
        Target(name, folder / name, corpus) for name in ("t.txt", "t.jsonl", "g.jsonl.gz", "x.jsonl.xz", "i.jsonl")
    ]
    return [
        *corpora,
        Target("t.parquet", folder / "t.parquet", corpus, share=2),
        *(Target(name, folder / name, labels) for name in ("sets.yaml", "labels.py", "spans.parquet")),
        Target("sets.json", folder / "sets.json", labels, structured=True),
        Target("settings.yaml", folder / "settings.yaml", settings, share=2),
        Target("study.json", folder / "study.json", settings, structured=True, share=2),
    ]


def dictionary_targets(folder: Path) -> list[Target]:
    """A dictionary's folder, of every format."""
    weights = {name: torch.randn(shape) for name, shape in {"W_enc": (8, 12), "W_dec": (12, 8)}.items()}
    weights |= {"b_enc": torch.zeros(12), "b_dec": torch.zeros(8), "threshold": torch.ones(12)}
    topk = {"encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"]}
    topk |= {name: weights[name] for name in ("W_dec", "b_dec")}
    saelens = {"architecture": "jumprelu", "d_in": 8, "d_sae": 12, "normalize_activations": "none",
               "metadata": {"hook_name": "blocks.1.hook_resid_post", "model_from_pretrained_kwargs": {}}}  # fmt: skip
    own = {
        "format": "universal-neurons dictionary 1",
        "read": {"kind": "mlp_out", "layer": 1},
        "activation": "jumprelu",
    }
    scope = folder / "gemma-scope-2b-pt-res" / "layer_1"
    files = []
    for place, settings, name, tensors in (
        (folder / "saelens", ("cfg.json", saelens), "sae_weights.safetensors", weights),
        (folder / "layers.1.mlp", ("cfg.json", {"d_in": 8, "num_latents": 12, "k": 3}), "sae.safetensors", topk),
        (folder / "own", ("dictionary.json", own), "dictionary.safetensors", weights),
        (scope, None, "params.npz", weights),
    ):
        place.mkdir(parents=True)
        files.append(place / name)
        if settings is None:
            np.savez(place / name, **{name: tensor.numpy() for name, tensor in tensors.items()})
        else:
            save_file(tensors, place / name)
            files.append(place / settings[0])
            files[-1].write_text(json.dumps(settings[1]))

    def read(path: Path) -> str:
        return digest([[str(each.read), each.W_enc, each.W_dec] for each in load_dictionaries(path.parent)])

    return [Target(f"dictionary/{p.parent.name}/{p.name}", p, read, structured=p.suffix == ".json") for p in files]


def model_targets(folder: Path) -> list[Target]:
    """A model's folder: its configuration, weights and tokenizer; and those of dictionaries."""
    ids = torch.arange(16)[None]
    targets = []
    for family in ("gpt2", "llama", "bert"):
        whole = save_tiny(folder / family, family)

        def read(path: Path) -> str:
            model = un.load_model(str(path.parent))
            told = read_vocabulary(model.tokenizer, model.vocab_size) if model.tokenizer is not None else None
            strings = None if told is None else told.strings
            return digest([model.activations(ids), strings])

        names = ["config.json", "model.safetensors"]
        names += ["tokenizer.json", "tokenizer_config.json"] if family == "gpt2" else []
        for name in names:
            structured = name.endswith(".json")
            share = 4 if name == "config.json" else 2
            targets.append(Target(f"{family}/{name}", whole / name, read, structured=structured, share=share))
    return targets + dictionary_targets(folder)


def study_targets(folder: Path) -> list[Target]:
    """What the project itself writes: studies, their tables, sketches, snapshots."""
    (folder / "t.txt").write_text(some_text(3000))
    models = [str(save_tiny(folder / name, seed=seed)) for seed, name in enumerate("ab")]
    common = {"data": str(folder / "t.txt"), "context": CONTEXT, "max_tokens": 4000}
    settings = un.StudyConfig(
        models=tuple(models), out=str(folder / "run"), draws=2, labels=("tokens", "position"), roles=FEW_ROLES, **common
    )
    un.run_study(settings, progress=False)
    pair = un.DiffConfig(models=tuple(models), out=str(folder / "diff"), draws=2, stages=("universality",), **common)
    un.run_diff(pair, progress=False)
    sketch = un.StudyConfig(
        models=(models[0],), out=str(folder / "a.safetensors"), search="sketch", group_size=4, **common
    )
    un.make_sketch(sketch)
    tensors = {name: torch.arange(400.0) + step for step, name in enumerate(("one", "two"))}
    for step in (1, 2):
        Generations(folder / "work").save({name: tensor * step for name, tensor in tensors.items()}, step)
    saved = {step: digest({name: tensor * step for name, tensor in tensors.items()}) for step in (1, 2)}
    newest = folder / "work" / "checkpoint-00000002"

    def study(path: Path) -> str:
        store = un.Store(path.parent)
        neuron_view(store, "L0.1")
        return plain_summary(store)

    def table(path: Path) -> str:
        return digest(un.Store(path.parent).table(path.stem))

    def diff(path: Path) -> str:
        opened = un.Diff(path.parent)
        plain(diff_view(opened), 140)
        plain(unit_view(opened, "L0.1"), 140)
        return digest([opened.config.model_dump(), opened.models, opened.nulls])

    def diff_table(path: Path) -> str:
        return digest(un.Diff(path.parent).table(path.stem))

    def histogram(path: Path) -> str:
        return digest(list(un.Store(path.parent).histogram("a", 3)))

    def sums(path: Path) -> str:
        opened = SketchFile(path)
        names = [*(f"{kind}.{name}" for kind in STATISTICS.values() for name in opened.state(kind)), "lengths", "sums"]
        return digest([opened.about, {name: opened.get(name) for name in names}, vars(opened.token_rows())])

    def snapshot(path: Path) -> str:
        loaded = Generations(folder / "work").load()
        assert loaded is not None, "the generation before is whole"
        state, step = loaded
        assert digest(state) == saved[step], f"other bits than were saved at step {step}"
        return "as saved"

    run, compared = folder / "run", folder / "diff"
    return [
        Target("diff/diff.json", compared / "diff.json", diff, structured=True, share=2),
        Target("diff/changes.parquet", compared / "changes.parquet", diff_table, hashed=True),
        Target("study/study.json", run / "study.json", study, structured=True, share=3),
        *(
            Target(f"study/{name}.parquet", run / f"{name}.parquet", table, hashed=True)
            for name in ("neurons", "matches", "effects", "vocabulary")
        ),
        Target("study/histograms", run / "histograms.safetensors", histogram, hashed=True),
        Target("sketch", folder / "a.safetensors", sums, hashed=True, share=4),
        Target("snapshot/manifest", newest / "manifest.json", snapshot, structured=True, hashed=True, share=2),
        Target("snapshot/tensors", newest / "0000.safetensors", snapshot, hashed=True, share=2),
    ]


GROUPS: dict[str, Callable[[Path], list[Target]]] = {
    "text": text_targets, "models": model_targets, "studies": study_targets,
}  # fmt: skip
