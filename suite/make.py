"""From a recipe to a suite of trained models: python suite/make.py RECIPE OUT [SECONDS]

In order: the corpus (corpus.jsonl.xz, sources.json), the held-out text, the tokenizer, the training text as token ids,
training (for at most SECONDS, if given: the same command goes on), the evaluation (evaluation.json, studies/), the
model card (README.md), and what `uneurons check` says of the models.  Whatever is in OUT already is not made again; a
corpus.jsonl.xz with its sources.json may be put there from elsewhere, and in packed/ what `train.py --pack` wrote on
another machine of this recipe, which is taken instead of training; `bundle.py` then wants the tokens.u16.xz that was
read there.
"""

import json
import math
import sys
from pathlib import Path

import corpus
import numpy as np
from card import write_card
from evaluate import evaluate
from pack import unpack
from rich.console import Console
from text import encode, train_tokenizer, training_texts, write_held_out
from train import as_trained, train

from universal_neurons.study import check_models


def make(recipe: dict, out: Path, seconds: float = math.inf) -> bool:
    """Everything above; returns whether the suite is complete, which it is not when training ran out of time."""
    out.mkdir(parents=True, exist_ok=True)
    text = out / "corpus.jsonl.xz"
    if not text.exists():
        corpus.build(recipe, out, out / "packages")
    tokenizer, ids, heldout = out / "tokenizer", out / "tokens.npy", out / "heldout.jsonl.xz"
    if not heldout.exists():
        write_held_out(text, heldout, recipe["evaluation"]["characters"])
    if not (tokenizer / "tokenizer.json").exists():
        train_tokenizer(training_texts(text), recipe["model"]["vocab_size"], recipe["model"]["n_positions"], tokenizer)
    if not ids.exists() and not (out / "packed/results.json").exists():
        np.save(ids, encode(training_texts(text), tokenizer))
    trained = {}
    if (out / "packed/results.json").exists():
        trained = unpack(out / "packed", out, recipe=recipe)
        recipe = recipe | {"training": trained["recipe"]["training"]}
    elif not train(recipe, ids, out, seconds):
        return False
    else:
        recipe = as_trained(recipe, out)
    folders = [out / "models" / seed["name"] for seed in recipe["seeds"]]
    for folder in folders:
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    Console().print(check_models(list(map(str, folders))))
    measured = evaluate(recipe, out)
    sources = json.loads((out / "sources.json").read_text())
    (out / "README.md").write_text(write_card(recipe, sources, measured, trained.get("device")))
    return True


if __name__ == "__main__":
    whole = make(
        corpus.recipe_at(Path(sys.argv[1])),
        Path(sys.argv[2]),
        float(sys.argv[3]) if len(sys.argv) > 3 else math.inf,
    )
    print(f"{sys.argv[2]}: " + ("complete" if whole else "training is under way; the same command goes on"))
