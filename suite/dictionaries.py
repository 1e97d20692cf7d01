"""Train a TopK dictionary for every layer of bundled seeds: python suite/dictionaries.py RECIPE OUT [SECONDS]

1. Build the corpus out of its packages (`corpus`) where OUT holds none; left out is what `fine_tune` leaves out.
2. Train the dictionaries of all layers of a model together, on one forward pass: Gao et al. (arXiv 2406.04093).  The
   decoder begins as the encoder's transpose and keeps directions of length 1; latents that are long silent are trained
   on what the others leave.  Every `save_every` steps the state is written; the same command goes on from there, to
   the same bits.  After SECONDS training stops at its next save.
3. Fold the scale in which they were trained into the biases, so that latents are in the stream's own units.
4. Write them in the package's plain form, in float16, verify them on held-out text, and put them into the package
   (MODEL/dictionaries/layer-N); its suite.json says what they were made of, its card what they explain.
"""

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bundle import TARGET, told, with_section
from evaluate import texts_by_subset
from fine_tune import as_told, build, training_texts
from rows import Rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from schedule import learning_rate
from text import encode
from torch import Tensor

import universal_neurons as un
from universal_neurons.features import Dictionary, load_dictionaries, save_dictionary, verified
from universal_neurons.features.dictionary_activations import TopK
from universal_neurons.models import Model, Place, captured

HEADING = "Dictionaries"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Training:
    """Dictionaries of all layers of one model under way: weights with a leading dimension of layers."""

    def __init__(self, recipe: dict, model: Model, seed: int, tokens: np.ndarray, out: Path) -> None:
        self.recipe, self.model, self.out = recipe, model, out
        self.settings = recipe["training"]
        self.k = recipe["dictionary"]["k"]
        self.places = [Place(recipe["place"], layer) for layer in range(model.n_layers)]
        self.rows = Rows(tokens, model.context, [seed])
        self.step = 0
        self.identity = json.dumps({**recipe, "seed": seed, "model": model.digest, "tokens": _sha256(tokens)})
        self.mean, self.scale = self._mean_and_scale()
        self.weights = {name: tensor.requires_grad_() for name, tensor in self._initial(seed).items()}
        self.fired = torch.zeros(model.n_layers, recipe["dictionary"]["width"])  # the step of the last time
        betas = tuple(self.settings["betas"])
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=1.0, betas=betas, foreach=True)

    def read(self, step: int) -> Tensor:
        """What stands at the places on the rows of a step, without BOS: (layers, positions, width)."""
        ids = self.rows.batch(step, self.settings["rows"])[0]
        with captured(self.model, self.places) as values:
            self.model.forward(ids)
        return torch.stack([values[place][:, 1:].flatten(0, 1).float() for place in self.places]).clone()

    def _mean_and_scale(self) -> tuple[Tensor, Tensor]:
        """Of the first rows: the mean, and the factor by which norms are √width on average."""
        x = torch.cat([self.read(step) for step in range(8)], 1)
        return x.mean(1, keepdim=True), x.shape[2] ** 0.5 / x.norm(dim=2).mean(1)[:, None, None]

    def _initial(self, seed: int) -> dict[str, Tensor]:
        layers, d, width = self.model.n_layers, self.mean.shape[2], self.recipe["dictionary"]["width"]
        drawn = torch.randn(layers, width, d, generator=torch.Generator().manual_seed(seed))
        decoder = drawn / drawn.norm(dim=2, keepdim=True)
        bias = torch.zeros(layers, 1, width)
        encoder = decoder.transpose(1, 2).contiguous()
        return {"W_enc": encoder, "b_enc": bias, "W_dec": decoder, "b_dec": self.mean * self.scale}

    @property
    def state_file(self) -> Path:
        """The file that holds weights, moments and step between runs."""
        return self.out / "state.safetensors"

    def losses(self, x: Tensor) -> Tensor:
        """The share of the variance that each layer's dictionary leaves; of silent latents, of what that leaves."""
        weights = self.weights
        x = x * self.scale
        pre = torch.baddbmm(weights["b_enc"], x - weights["b_dec"], weights["W_enc"])
        latents = _top(pre, self.k)
        left = x - torch.baddbmm(weights["b_dec"], latents, weights["W_dec"])
        with torch.no_grad():
            self.fired[(latents > 0).any(1)] = self.step
            silent = self.step - self.fired > self.settings["dead_after"]
        loss = left.square().sum((1, 2)) / (x - x.mean(1, keepdim=True)).square().sum((1, 2))
        if silent.any():
            of_silent = _top(pre.masked_fill(~silent[:, None], -torch.inf), self.settings["k_dead"]) @ weights["W_dec"]
            missed = (left.detach() - of_silent).square().sum((1, 2)) / left.detach().square().sum((1, 2))
            loss = loss + self.settings["dead_weight"] * missed * silent.any(1)
        return loss

    def run(self, seconds: float = math.inf) -> bool:
        """Train to the end, or to the first save after so many seconds; whether it is at the end."""
        started = time.perf_counter()
        while self.step < self.settings["steps"]:
            self.step += 1
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.settings)
            losses = self.losses(self.read(self.step - 1))
            self.optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            self.optimizer.step()
            with torch.no_grad():
                self.weights["W_dec"] /= self.weights["W_dec"].norm(dim=2, keepdim=True)
            if self.step % self.settings["save_every"] == 0 or self.step == self.settings["steps"]:
                print(f"{self.model.name} {self.step}: {[f'{loss:.3f}' for loss in losses.tolist()]}", flush=True)
                self.save()
                if time.perf_counter() - started > seconds:
                    break
        return self.step == self.settings["steps"]

    def save(self) -> None:
        """Write the state."""
        state = {f"weight/{name}": tensor.detach() for name, tensor in self.weights.items()} | {"fired": self.fired}
        for name, tensor in self.weights.items():
            state |= {f"{moment}/{name}": self.optimizer.state[tensor][moment] for moment in MOMENTS}
        unfinished = self.state_file.with_suffix(".partial")
        save_file(state, unfinished, metadata={"step": str(self.step), "of": self.identity})
        unfinished.rename(self.state_file)

    def restore(self) -> None:
        """Go on from a state that `save` wrote; another recipe's is refused."""
        with safe_open(self.state_file, "pt") as file:
            metadata = file.metadata()
        if metadata["of"] != self.identity:
            raise SystemExit(f"{self.state_file}: a state of another recipe or text; remove it or name another folder")
        state = load_file(self.state_file)
        self.step, self.fired = int(metadata["step"]), state["fired"]
        for name, tensor in self.weights.items():
            tensor.data.copy_(state[f"weight/{name}"])
            moments = {moment: state[f"{moment}/{name}"] for moment in MOMENTS}
            self.optimizer.state[tensor] = {"step": torch.tensor(float(self.step))} | moments

    def dictionaries(self) -> Iterator[Dictionary]:
        """What was trained, in the stream's units: ReLU and TopK of c · x are c times those of x."""
        weights = {name: tensor.detach() for name, tensor in self.weights.items()}
        for layer, place in enumerate(self.places):
            by = self.scale[layer].flatten()
            bias = weights["b_dec"][layer, 0] / by
            yield Dictionary(
                f"layer-{layer}", place, place, W_enc=weights["W_enc"][layer], b_enc=weights["b_enc"][layer, 0] / by,
                W_dec=weights["W_dec"][layer], b_dec=bias, activation=TopK(self.k), b_in=bias, bos=True,
            )  # fmt: skip


def _sha256(tokens: np.ndarray) -> str:
    return hashlib.sha256(tokens.tobytes()).hexdigest()


def _top(pre: Tensor, k: int) -> Tensor:
    values, places = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, places, values.relu())


def first_characters(texts: Iterable[str], most: int) -> Iterator[str]:
    """Texts up to so many characters."""
    for text in texts:
        if most <= 0:
            return
        most -= len(text)
        yield text


def measure(folder: Path, model: Model, recipe: dict, bundled: Path) -> list[dict[str, Any]]:
    """What dictionaries do on each subset's held-out text; rows are BOS and text, BOS is not counted."""
    context = model.context
    most = recipe["evaluation"]["tokens_per_subset"]
    texts = texts_by_subset(bundled / "heldout.jsonl.xz", bundled / "tokenizer", context, most)
    rows = [ids[: len(ids) // (context - 1) * (context - 1)].reshape(-1, context - 1) for ids in texts.values()]
    ids = torch.from_numpy(np.pad(np.concatenate(rows).astype(np.int64), ((0, 0), (1, 0))))
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[:, 0] = False
    return [result.describe() for result in verified(load_dictionaries(folder), model, ids, keep)]


def card(recipe: dict, measured: dict[str, list[dict]], context: int) -> str:
    """The section of the model card."""
    width, k, training = recipe["dictionary"]["width"], recipe["dictionary"]["k"], recipe["training"]
    table = ["| model | layer | variance explained | L0 | silent latents |", "| --- | --- | --- | --- | --- |"]
    for name, results in measured.items():
        for layer, told_of in enumerate(results):
            figures = f"{told_of['explained']:.3f} | {told_of['l0']:.1f} | {told_of['silent']}"
            table.append(f"| {name} | {layer} | {figures} |")
    lines, seen = "\n".join(table), training["steps"] * training["rows"] * (context - 1) / 1e6
    return f"""
TopK dictionaries, {width} latents of which {k} are active, of what stands at `{recipe["place"]}` of each block, in
`MODEL/dictionaries/`: {training["steps"]:,} steps, {seen:.1f} M tokens of training text, in float16. On held-out
text, BOS left out:

{lines}
"""


def make(recipe: dict, suite: dict, out: Path, seconds: float = math.inf, bundled: Path = TARGET) -> bool:
    """Everything above; returns whether it is complete, which it is not when training ran out of time."""
    torch.set_num_threads(1)  # the same bits on every machine with the same instructions
    out.mkdir(parents=True, exist_ok=True)
    documents = build(None, suite, out)
    texts = training_texts(documents, bundled / "heldout.jsonl.xz", None, recipe["shared"])
    ids = encode(first_characters(texts, recipe["characters"]), bundled / "tokenizer")
    measured, files = {}, []
    for name, seed in ((each["name"], each["seed"]) for each in recipe["of"]):
        folder = out / name
        folder.mkdir(exist_ok=True)
        model = un.load_model(str(bundled / name), device="cpu")
        training = Training(recipe, model, seed, ids, folder)
        if training.state_file.exists():
            training.restore()
        if not training.run(seconds):
            return False
        for dictionary in training.dictionaries():
            save_dictionary(dictionary, folder / "dictionaries" / dictionary.name, torch.float16)
        measured[name] = measure(folder / "dictionaries", model, recipe, bundled)
        for file in sorted((folder / "dictionaries").glob("*/*")):
            target = bundled / name / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.append(Path(shutil.copyfile(file, target)))
    of_all = {
        "recipe": recipe,
        "corpus_sha256": hashlib.sha256(documents.read_bytes()).hexdigest(),
        "tokens": len(ids),
        "measured": measured,
    }
    readme = bundled / "README.md"
    readme.write_text(with_section(readme.read_text(), HEADING, card(recipe, measured, suite["model"]["n_positions"])))
    told(bundled, {"dictionaries": of_all}, [readme, *files])
    return True


if __name__ == "__main__":
    as_told(make, *sys.argv[1:])
