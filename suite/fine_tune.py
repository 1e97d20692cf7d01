"""Fine-tune a bundled seed on one subset at a time: python suite/fine_tune.py RECIPE OUT [SECONDS]

1. Build the corpus of the subsets out of their packages (`corpus`) where OUT holds none.  Left out is what is held out,
   and what has lines in common with it: extractors change, and a held-out page may read a little differently today.
2. Train a LoRA adapter on each subset (`train`: the same steps, saves and interruptions).  A is drawn as `peft` draws
   it, B is 0.  OUT/NAME becomes a folder of `peft`, weights in float16.
3. Measure the losses on the held-out text of every subset, before and after.
4. Put the adapters into the package; its suite.json says what they were made of, its card their losses.

After SECONDS training stops at its next save; the same command goes on.
"""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batched
import corpus
import numpy as np
import torch
import yaml
from bundle import TARGET, target_of, told, with_section
from evaluate import losses, texts_by_subset
from safetensors.torch import load_file, save_file
from text import encode, held_out, read
from torch import Tensor
from train import Training

from universal_neurons.models import convert

LONG = 40  # characters; shorter lines are anybody's
HEADING = "Fine-tunes"


def training_texts(documents: Path, heldout: Path, subset: str | None, shared: float) -> Iterator[str]:
    """The documents of a subset, or of all, that are not held out, nor share more of their long lines with what is."""
    known = {line for document in read(heldout) for line in long_lines(document["text"])}
    for document in read(documents):
        if subset in (None, document["subset"]) and not held_out(document["text"]):
            lines = long_lines(document["text"])
            if sum(line in known for line in lines) <= shared * len(lines):
                yield document["text"]


def long_lines(text: str) -> list[str]:
    """The lines of a text that are long enough to be its own."""
    return [line for line in map(str.strip, text.split("\n")) if len(line) >= LONG]


@dataclass(frozen=True)
class Adapted:
    """The forward pass of a model whose matrices W (in × out) are W + s (B A)ᵀ."""

    forward: batched.Forward
    base: dict[str, Tensor]
    scale: float

    def losses(self, adapter: dict[str, Tensor], ids: Tensor) -> Tensor:
        """As `Forward.losses`, of an adapter's weights."""
        weights = dict(self.base)
        for module in {name.rpartition(".")[0] for name in adapter}:
            change = (adapter[f"{module}.B"] @ adapter[f"{module}.A"]).transpose(1, 2)
            weights[f"{module}.weight"] = weights[f"{module}.weight"] + self.scale * change
        return self.forward.losses(weights, ids)


class FineTune(Training):
    """A LoRA adapter of one model under way; its folder is OUT."""

    def __init__(self, recipe: dict, base: Path, tokens: np.ndarray, out: Path) -> None:
        stored = load_file(base / "model.safetensors")
        self.base = {name.removeprefix("transformer."): tensor.float()[None] for name, tensor in stored.items()}
        self.lora = recipe["lora"]
        super().__init__(recipe, tokens, out, "cpu")
        self.forward = Adapted(self.forward, self.base, self.lora["lora_alpha"] / self.lora["r"])

    def _initial(self) -> dict[str, Tensor]:
        """A (r × in) uniform up to 1 / √in, B (out × r) 0."""
        generator = torch.Generator().manual_seed(self.seeds[0]["weights"])
        ends = tuple(f"{module}.weight" for module in self.lora["target_modules"])
        adapter = {}
        for name in filter(lambda name: name.endswith(ends), self.base):
            _, width, out = self.base[name].shape
            drawn = torch.empty(1, self.lora["r"], width).uniform_(-1, 1, generator=generator)
            module = name.removesuffix(".weight")
            adapter |= {f"{module}.A": drawn / math.sqrt(width), f"{module}.B": torch.zeros(1, out, self.lora["r"])}
        return adapter

    @property
    def identity(self) -> dict:
        """With the adapter's settings and the base's weights."""
        weights = hashlib.sha256(b"".join(self.base[name].numpy().tobytes() for name in sorted(self.base)))
        return super().identity | {"lora": self.lora, "base": weights.hexdigest()}

    def write(self, checkpoint: str = "") -> None:
        """The adapter as a folder of `peft`."""
        assert not checkpoint, "the recipe asks for no checkpoints"
        tensors = {}
        for name, tensor in self.weights.items():
            module, _, matrix = name.rpartition(".")
            tensors[f"base_model.model.transformer.{module}.lora_{matrix}.weight"] = tensor[0].detach().half()
        save_file(tensors, self.out / "adapter_model.safetensors", metadata={"format": "pt"})
        (self.out / "adapter_model.safetensors").chmod(0o644)
        of_all = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "fan_in_fan_out": True, "inference_mode": True}
        settings = of_all | self.lora | {"base_model_name_or_path": self.recipe["base"]}
        (self.out / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def model_of(suite: dict, name: str) -> dict:
    """The settings of a seed's model in a suite's recipe."""
    (seed,) = (seed for seed in suite["seeds"] if seed["name"] == name)
    return suite["model"] | seed.get("model", {})


def recipe_of(tune: dict, recipe: dict, model: dict) -> dict:
    """What `Training` reads, of one fine-tune."""
    seed = {"name": tune["name"], "weights": 1, "data": 1}
    return recipe | {"model": model, "seeds": [seed], "base": f"bundled/{recipe['of']}"}


def build(subsets: set[str] | None, suite: dict, out: Path) -> Path:
    """The corpus of these subsets, or of all, where it is not there yet."""
    every = suite["corpus"]["sources"]
    sources = [source for source in every if subsets is None or source["subset"] in subsets]
    text = out / "corpus.jsonl.xz"
    if not text.exists():
        corpus.build({"corpus": suite["corpus"] | {"sources": sources}}, out, out / "packages")
    return text


def measure(recipe: dict, out: Path, bundled: Path, context: int) -> dict[str, dict[str, float]]:
    """The losses of the base and of every fine-tune, as `peft` would merge it, on each subset's held-out text."""
    texts = texts_by_subset(
        bundled / "heldout.jsonl.xz", bundled / "tokenizer", context, recipe["evaluation"]["tokens_per_subset"]
    )
    measured = {recipe["of"]: losses(bundled / recipe["of"], texts, context)}
    for tune in recipe["fine_tunes"]:
        whole = convert(str(out / tune["name"]), out / "merged" / tune["name"])
        measured[tune["name"]] = losses(whole, texts, context)
    return measured


def card(recipe: dict, measured: dict[str, dict[str, float]], tokens: dict[str, int], context: int) -> str:
    """The section of the model card."""
    base, training, lora = recipe["of"], recipe["training"], recipe["lora"]
    rows = [["adapter", "subset", "M tokens of it", "its loss before", "after", "loss on all before", "after"]]
    rows.append(["---"] * len(rows[0]))
    for name, subset in ((tune["name"], tune["subset"]) for tune in recipe["fine_tunes"]):
        each = [f"{measured[model][text]:.3f}" for text in (subset, "all") for model in (base, name)]
        rows.append([name, subset, f"{tokens[name] / 1e6:.1f}", *each])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    seen = training["steps"] * training["rows"] * context / 1e6
    modules, peak = ", ".join(lora["target_modules"]), training["peak"]
    return f"""
LoRA adapters of {base} (rank {lora["r"]}, α {lora["lora_alpha"]}) on {modules}, each trained on one subset:
{training["steps"]:,} steps of {training["rows"]} rows ({seen:.1f} M tokens), learning rate up to {peak:g}; in float16.
Training left out documents that share more than {recipe["shared"]:.0%} of their long lines with held-out text.
Losses are nats a token on held-out text.

{table}
"""


def bundle(recipe: dict, out: Path, bundled: Path, of_all: dict[str, Any], section: str) -> None:
    """Put the adapters into the package, with what is told of them in its suite.json and its card."""
    readme = bundled / "README.md"
    readme.write_text(with_section(readme.read_text(), HEADING, section))
    changed = [bundled / "README.md"]
    for tune in recipe["fine_tunes"]:
        folder = bundled / tune["name"]
        folder.mkdir(exist_ok=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            changed.append(Path(shutil.copyfile(out / tune["name"] / file, folder / file)))
    told(bundled, {"fine_tunes": of_all}, changed)


def make(recipe: dict, suite: dict, out: Path, seconds: float = math.inf, bundled: Path = TARGET) -> bool:
    """Everything above; returns whether it is complete, which it is not when training ran out of time."""
    out.mkdir(parents=True, exist_ok=True)
    documents = build({tune["subset"] for tune in recipe["fine_tunes"]}, suite, out)
    heldout, model = bundled / "heldout.jsonl.xz", model_of(suite, recipe["of"])
    tokens = {}
    for tune in recipe["fine_tunes"]:
        folder = out / tune["name"]
        folder.mkdir(exist_ok=True)
        texts = training_texts(documents, heldout, tune["subset"], recipe["shared"])
        ids = encode(texts, bundled / "tokenizer")
        training = FineTune(recipe_of(tune, recipe, model), bundled / recipe["of"], ids, folder)
        if training.state_file.exists():
            training.restore()
        if not training.run(seconds):
            return False
        tokens[tune["name"]] = len(ids)
    measured = measure(recipe, out, bundled, model["n_positions"])
    of_all = {
        "recipe": recipe,
        "corpus_sha256": hashlib.sha256(documents.read_bytes()).hexdigest(),
        "sources": json.loads((out / "sources.json").read_text()),
        "tokens": tokens,
        "losses": measured,
    }
    bundle(recipe, out, bundled, of_all, card(recipe, measured, tokens, model["n_positions"]))
    return True


def as_told(make: Callable[..., bool], given: str, out: str, seconds: str = "inf") -> None:
    """Make what a recipe that goes on from a suite's says, of both, for so long; as a command's words say."""
    own = yaml.safe_load(Path(given).read_text())
    suite = corpus.recipe_at(Path(given).parent / own["recipe"])
    whole = make(own, suite, Path(out), float(seconds), target_of(suite))
    print(f"{out}: " + ("complete" if whole else "training is under way; the same command goes on"))


if __name__ == "__main__":
    as_told(make, *sys.argv[1:])
