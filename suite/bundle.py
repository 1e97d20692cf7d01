"""Bundle a trained suite: python suite/bundle.py SUITE

SUITE holds models/seed-N, tokenizer/ and corpus.jsonl.xz ({"text": …, "subset": …} per line).  The weights are
halved to float16; the held-out documents (those whose text has a SHA-1 divisible by 20, which training left out) are
ordered so that every stretch of the file holds the subsets in proportion.
"""

import hashlib
import json
import lzma
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TARGET = Path(__file__).parents[1] / "src/universal_neurons/bundled"


def sha1(text: str) -> int:
    return int(hashlib.sha1(text.encode()).hexdigest(), 16)


def bundle_models(suite: Path) -> None:
    for source in sorted((suite / "models").glob("seed-*")):
        target = TARGET / source.name
        target.mkdir(parents=True, exist_ok=True)
        weights = load_file(source / "model.safetensors")
        halved = {name: tensor.to(torch.float16).contiguous() for name, tensor in weights.items()}
        save_file(halved, target / "model.safetensors", metadata={"format": "pt"})
        (target / "model.safetensors").chmod(0o644)
        config = json.loads((source / "config.json").read_text()) | {"dtype": "float16"}
        (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(suite / "tokenizer" / name, target / name)


def in_proportion(documents: list[dict]) -> list[dict]:
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


def bundle_text(suite: Path) -> None:
    with lzma.open(suite / "corpus.jsonl.xz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    heldout = [document for document in documents if sha1(document["text"]) % 20 == 0]
    with lzma.open(TARGET / "heldout.jsonl.xz", "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as out:
        for document in in_proportion(heldout):
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
    print(f"{len(heldout)} of {len(documents)} documents are held out")


if __name__ == "__main__":
    bundle_models(Path(sys.argv[1]))
    bundle_text(Path(sys.argv[1]))
