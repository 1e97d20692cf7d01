"""Put a suite that `make.py` made into the package: python suite/bundle.py RECIPE OUT

Weights are rounded to float16.  The recipe's section `bundle` says which checkpoints of which seeds go along.  What
is there already of an earlier suite is removed.  suite.json holds the recipe, the sources, what was measured, and the
SHA-256 of every file.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

TARGET = Path(__file__).parents[1] / "src/universal_neurons/bundled"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MOST = 40_000_000  # bytes


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
    final = target
    target = target.with_name(f"{target.name}.partial")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for seed in recipe["seeds"]:
        name = seed["name"]
        halve(out / "models" / name, target / name)
    (target / "tokenizer").mkdir()
    for file in TOKENIZER:
        shutil.copyfile(out / "tokenizer" / file, target / "tokenizer" / file)
    for name in recipe["bundle"]["seeds"]:
        for step in recipe["bundle"]["steps"]:
            halve(out / f"models/{name}/step-{step}", target / f"{name}/step-{step}")
    for file in ("heldout.jsonl.xz", "README.md"):
        shutil.copyfile(out / file, target / file)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    contents = {
        "recipe": recipe,
        "corpus_sha256": hashlib.sha256((out / "corpus.jsonl.xz").read_bytes()).hexdigest(),
        "sources": json.loads((out / "sources.json").read_text()),
        "measured": json.loads((out / "evaluation.json").read_text()),
        "sha256": {str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (target / "suite.json").write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{len(files) + 1} files, {size / 1e6:.1f} MB")
    if size > MOST:
        raise SystemExit(f"{target}: {size / 1e6:.1f} MB, more than {MOST / 1e6:.0f}; bundle fewer checkpoints")
    shutil.rmtree(final, ignore_errors=True)
    target.rename(final)


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
    bundle(yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
