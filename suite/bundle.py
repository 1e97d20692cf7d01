"""Put a suite that `make.py` made into the package: python suite/bundle.py RECIPE OUT

Weights are rounded to float16.  The recipe's section `bundle` says which `models` go along (else all), which
checkpoints (`steps`) of which `seeds`, how many `characters` of the held-out text (else all), and `into` which folder
of the package's.  What is there already of an earlier suite is removed, other suites in folders of their own are not.
token_counts.csv says how often each token occurs in the text that was trained on.
suite.json holds the recipe, the sources, how and on what was trained, what was measured, and the SHA-256 of every file.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import recipe_at
from safetensors.torch import load_file, save_file
from text import read, write_first
from tokens import read_tokens, training_tokens

from universal_neurons.models import TOKEN_COUNTS

TARGET = Path(__file__).parents[1] / "src/universal_neurons/bundled"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MOST = 25_000_000  # bytes of all suites together
TOLD_OF_TRAINING = (
    "step", "tokens_per_seed", "training_seconds", "process_seconds", "tokens_per_second", "compilation", "device",
    "torch", "tokens_sha256",
)  # fmt: skip


def target_of(recipe: dict) -> Path:
    """The folder of the package that a recipe's suite is in."""
    return TARGET / recipe["bundle"].get("into", "")


def halve(source: Path, target: Path) -> None:
    """A model's folder with its weights in float16."""
    target.mkdir(parents=True)
    weights = load_file(source / "model.safetensors")
    halved = {name: tensor.to(torch.float16).contiguous() for name, tensor in weights.items()}
    assert all(tensor.isfinite().all() for tensor in halved.values())
    save_file(halved, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    config = json.loads((source / "config.json").read_text()) | {"dtype": "float16"}
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(source / "trainer_state.json", target / "trainer_state.json")


def bundle(recipe: dict, out: Path, target: Path = TARGET) -> None:
    """Replace the suite in `target` by the one in `out`."""
    final, settings = target, recipe["bundle"]
    target = target.with_name(f"{target.name}.partial")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in settings.get("models") or [seed["name"] for seed in recipe["seeds"]]:
        halve(out / "models" / name, target / name)
    (target / "tokenizer").mkdir()
    for file in TOKENIZER:
        shutil.copyfile(out / "tokenizer" / file, target / "tokenizer" / file)
    for name in settings.get("seeds", ()):
        for step in settings["steps"]:
            halve(out / f"models/{name}/step-{step}", target / f"{name}/step-{step}")
    shutil.copyfile(out / "README.md", target / "README.md")
    heldout = "heldout.jsonl.xz"
    write_first(read(out / heldout), target / heldout, settings.get("characters", recipe["evaluation"]["characters"]))
    (target / TOKEN_COUNTS).write_text(token_counts(out, recipe["model"]["vocab_size"]))
    files = sorted(path for path in target.rglob("*") if path.is_file())
    contents = {
        "recipe": recipe,
        "corpus_sha256": hashlib.sha256((out / "corpus.jsonl.xz").read_bytes()).hexdigest(),
        "sources": json.loads((out / "sources.json").read_text()),
        "measured": json.loads((out / "evaluation.json").read_text()),
        "trained": trained(out),
        "sha256": {str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (target / "suite.json").write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n")
    for other in final.glob("*/suite.json"):
        shutil.copytree(other.parent, target / other.parent.name)
    shutil.rmtree(final, ignore_errors=True)
    target.rename(final)
    print(f"{len(files) + 1} files, {size_of(final) / 1e6:.1f} MB")


def token_counts(out: Path, vocabulary: int) -> str:
    """How often each token of a vocabulary occurs in what a suite was trained on: CSV, a line a token."""
    ids = read_tokens(training_tokens(out))
    told = trained(out).get("tokens_sha256")
    if told and hashlib.sha256(ids).hexdigest() != told:
        raise SystemExit(f"{training_tokens(out)}: not the tokens that the models were trained on")
    counts = np.bincount(ids, minlength=vocabulary)
    return "\n".join(["token,count", *(f"{token},{count}" for token, count in enumerate(counts))]) + "\n"


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def trained(out: Path) -> dict[str, Any]:
    """What is told of training on another machine; nothing of training here."""
    results = out / "packed/results.json"
    told = json.loads(results.read_text()) if results.exists() else {}
    return {name: told[name] for name in TOLD_OF_TRAINING if name in told}


def told(bundled: Path, of: dict, changed: list[Path]) -> None:
    """Tell suite.json of what was added to a bundled suite, and the new hashes of these files."""
    suite = json.loads((bundled / "suite.json").read_text())
    hashes = {str(path.relative_to(bundled)): hashlib.sha256(path.read_bytes()).hexdigest() for path in changed}
    suite |= of | {"sha256": dict(sorted((suite["sha256"] | hashes).items()))}
    (bundled / "suite.json").write_text(json.dumps(suite, indent=1, ensure_ascii=False) + "\n")


def with_section(card: str, heading: str, section: str) -> str:
    """A card with a section of this heading, in the place of an earlier one or at the end."""
    before, _, rest = card.partition(f"\n## {heading}\n")
    _, follows, after = rest.partition("\n## ")
    return f"{before}\n## {heading}\n{section}{follows}{after}"


if __name__ == "__main__":
    recipe = recipe_at(Path(sys.argv[1]))
    bundle(recipe, Path(sys.argv[2]), target_of(recipe))
    if size_of(TARGET) > MOST:
        raise SystemExit(f"{TARGET}: {size_of(TARGET) / 1e6:.1f} MB, more than {MOST / 1e6:.0f}; bundle less")
