"""What a trained suite is like on held-out text: losses per subset, universal neurons, families, growth with steps."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as nnf
from text import encode, read
from transformers import AutoModelForCausalLM

import universal_neurons as un
from universal_neurons.report.facts import facts

ROWS_AT_ONCE = 32


@torch.inference_mode()
def losses(folder: Path, texts: Mapping[str, np.ndarray], context: int) -> dict[str, float]:
    """Mean next-token loss of a model, in nats, on the token ids of each subset, and on `all` of them together.

    Rows are BOS and `context` − 1 tokens; every token but BOS is predicted once.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sums, counts = {}, {}
    for subset, ids in texts.items():
        count = len(ids) // (context - 1)
        rows = ids[: count * (context - 1)].reshape(count, context - 1).astype(np.int64)
        rows = torch.from_numpy(np.pad(rows, ((0, 0), (1, 0))))
        each = []
        for part in rows.split(ROWS_AT_ONCE):
            logits = model(part).logits[:, :-1]
            each.append(float(nnf.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")))
        sums[subset], counts[subset] = sum(each), count * (context - 1)
    by_subset = {subset: sums[subset] / counts[subset] for subset in sums}
    return by_subset | {"all": sum(sums.values()) / sum(counts.values())}


def texts_by_subset(heldout: Path, tokenizer: Path, context: int, most: int) -> dict[str, np.ndarray]:
    """Token ids of the held-out text of each subset, at most so many; subsets without a full row are left out."""
    texts = defaultdict(list)
    for document in read(heldout):
        texts[document["subset"]].append(document["text"])
    ids = {subset: encode(documents, tokenizer)[:most] for subset, documents in sorted(texts.items())}
    return {subset: tokens for subset, tokens in ids.items() if len(tokens) >= context - 1}


def universality(store: un.Store) -> dict[str, Any]:
    """Of every model: universal neurons per layer, with the interval of their number, and neurons per family."""
    by_model = {}
    for asker in store.askers:
        seen = facts(store, asker)
        neurons = store.neurons.filter((pl.col("model") == asker) & ~pl.col("dead"))
        families = {}
        if store.has("labels"):
            families = {
                name: dict(table.group_by("family").len().sort("family").iter_rows())
                for name, table in (("all", neurons), ("universal", neurons.filter("is_universal")))
            }
        by_model[asker] = {
            "neurons": seen.neurons,
            "dead": seen.dead,
            "universal": seen.universal,
            "universal_per_layer": list(seen.universal_per_layer),
            "universal_heldout": seen.paper.heldout,
            "universal_surely": seen.paper.surely,
            "universal_possibly": seen.paper.possibly,
            "excess_median": seen.excess_median,
            "excess_p99": seen.excess_p99,
            "families": families,
        }
    return by_model


def evaluate(recipe: dict, out: Path) -> dict[str, Any]:
    """Everything the model card says about a suite, also written to evaluation.json; studies stay in OUT/studies.

    The first of the recipe's `sets` is the suite: its families and growth are looked at too.
    """
    settings = recipe["evaluation"]
    context = recipe["model"]["n_positions"]
    texts = texts_by_subset(out / "heldout.jsonl.xz", out / "tokenizer", context, settings["tokens_per_subset"])
    names = [seed["name"] for seed in recipe["seeds"]]
    results: dict[str, Any] = {"losses": {name: losses(out / "models" / name, texts, context) for name in names}}
    results["sets"] = {}
    for name, members in recipe["sets"].items():
        stages = ("universality",) if results["sets"] else ("universality", "labels")
        folders = [out / "models" / member for member in members]
        store = study(out, name, folders, max_tokens=settings["tokens"], pairs="all", stages=stages)
        results["sets"][name] = universality(store)
        results["tokens"] = store.manifest["counted_tokens"]
    results["growth"] = growth(recipe, out)
    (out / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def study(out: Path, name: str, folders: list[Path], **settings: Any) -> un.Store:
    """Which neurons of these models are universal among them, on held-out text."""
    config = un.StudyConfig(
        models=tuple(map(str, folders)),
        data=str(out / "heldout.jsonl.xz"),
        tokenizer=str(out / "tokenizer"),
        out=str(out / "studies" / name),
        **settings,
    )
    return un.run_study(config)


def growth(recipe: dict, out: Path) -> list[dict[str, Any]]:
    """Universal neurons of the suite's first model at every checkpoint, on half of the tokens."""
    members = next(iter(recipe["sets"].values()))
    per_step = recipe["training"]["rows"] * recipe["model"]["n_positions"]
    tokens = recipe["evaluation"]["tokens"] // 2
    rows = []
    for folder in sorted((out / "models" / members[0]).glob("step-*"), key=lambda path: int(path.name[5:])):
        folders = [path for member in members if (path := out / "models" / member / folder.name).exists()]
        store = study(out, folder.name, folders, max_tokens=tokens, stages=("universality",))
        seen = facts(store, store.askers[0])
        step = int(folder.name[5:])
        rows.append(
            {
                "step": step,
                "tokens": step * per_step,
                "neurons": seen.neurons,
                "universal": seen.universal,
                "surely": seen.paper.surely,
                "possibly": seen.paper.possibly,
                "excess_median": seen.excess_median,
                "excess_p99": seen.excess_p99,
            }
        )
    return rows
