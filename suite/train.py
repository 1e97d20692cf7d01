"""Train all seeds of a recipe at once: python suite/train.py RECIPE TOKENS OUT

TOKENS is a .npy of token ids (uint16), token 0 before each document.  A row is BOS and `n_positions` tokens,
so that every position predicts one.
Each seed has its own weights (seed `weights`) and its own order of the rows (seed `data`), whatever seeds are trained
beside it (but for dropout, whose masks are drawn for all at once).  Every `save_every` steps the state is written
(weights in float32, AdamW's moments in bfloat16: 8 bytes a weight) and *taken over as written*, so that an interrupted
run ends with the same bits as one that was not; the same command goes on from there.  OUT gets `models/SEED/step-K/`
at log-spaced steps and `models/SEED/` at the end, all ordinary Hugging Face folders, and `losses-PART.csv`.  On a CPU
with several cores, `processes` cuts the seeds into so many parts, each with a state of its own: small products gain
little from a second thread.
"""

import hashlib
import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import batched
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config

BOS = 0


def model_config(recipe: dict) -> GPT2Config:
    """The architecture as `transformers` knows it."""
    return GPT2Config(**recipe["model"], attn_pdrop=0.0, embd_pdrop=0.0, bos_token_id=BOS, eos_token_id=BOS)


class Rows:
    """The rows of a corpus, `context` ids each, in each seed's own order, a permutation an epoch."""

    def __init__(self, tokens: np.ndarray, context: int, data_seeds: list[int]) -> None:
        self.tokens, self.width = tokens, context - 1
        self.count = len(tokens) // self.width
        self.seeds = data_seeds
        self.orders: dict[tuple[int, int], np.ndarray] = {}

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """A seed's order of the rows in one epoch."""
        if (seed, epoch) not in self.orders:
            self.orders = {key: value for key, value in self.orders.items() if key[1] >= epoch - 1}
            self.orders[seed, epoch] = np.random.default_rng([seed, epoch]).permutation(self.count)
        return self.orders[seed, epoch]

    def batch(self, step: int, rows: int) -> Tensor:
        """Ids (seeds, rows, context) of one step, from 0; rows at the end of an epoch that fill no step drop out."""
        per_epoch = self.count // rows
        epoch, place = divmod(step, per_epoch)
        chosen = np.stack([self.order(seed, epoch)[place * rows : (place + 1) * rows] for seed in self.seeds])
        text = self.tokens[chosen[..., None] * self.width + np.arange(self.width)].astype(np.int64)
        return torch.from_numpy(np.concatenate([np.full((*chosen.shape, 1), BOS), text], 2))


def learning_rate(step: int, given: dict) -> float:
    """Of step 1, 2, …: a linear warm-up, then a cosine down to `final` of the peak."""
    if step <= given["warmup"]:
        return given["peak"] * step / given["warmup"]
    share = (step - given["warmup"]) / max(1, given["steps"] - given["warmup"])
    return given["peak"] * (given["final"] + (1 - given["final"]) * 0.5 * (1 + math.cos(math.pi * share)))


def log_spaced(steps: int, count: int) -> list[int]:
    """So many steps from 1 to the last, evenly in the logarithm, each once."""
    return sorted({round(steps ** (k / max(1, count - 1))) for k in range(count)})


def clip(gradients: list[Tensor], most: float) -> None:
    """Shorten each seed's gradient to a length, in place."""
    squares = torch.stack([g.square().flatten(1).sum(1) for g in gradients]).sum(0)
    scale = (most / (squares.sqrt() + 1e-6)).clamp_max(1.0)
    for g in gradients:
        g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))


class Training:
    """A recipe under way: weights and AdamW's moments of all seeds, and the step they are at."""

    def __init__(self, recipe: dict, tokens: np.ndarray, out: Path, device: str, part: int = 0) -> None:
        self.recipe, self.given, self.out, self.device, self.part = recipe, recipe["training"], out, device, part
        self.config = model_config(recipe)
        self.seeds = recipe["seeds"]
        if tokens.max() >= self.config.vocab_size:
            raise SystemExit(
                f"{out}: token ids up to {tokens.max()}, a vocabulary of {self.config.vocab_size}; encode again"
            )
        self.rows = Rows(tokens, self.config.n_positions + 1, [seed["data"] for seed in self.seeds])
        weights = batched.init(self.config, [seed["weights"] for seed in self.seeds])
        self.weights = {name: t.to(device).requires_grad_() for name, t in weights.items()}
        matrices = [t for name, t in self.weights.items() if len(batched.shapes(self.config)[name]) > 1]
        vectors = [t for name, t in self.weights.items() if len(batched.shapes(self.config)[name]) == 1]
        groups = [{"params": matrices, "weight_decay": self.given["weight_decay"]}]
        groups += [{"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=tuple(self.given["betas"]), fused=True)
        self.step = 0
        self.identity = {section: recipe[section] for section in ("model", "training", "seeds")}
        self.identity["tokens"] = hashlib.sha256(tokens).hexdigest()
        self.dtype = getattr(torch, self.given["dtype"])

    @property
    def state_file(self) -> Path:
        """Where the state is between runs."""
        return self.out / f"state-{self.part}.safetensors"

    def save(self) -> None:
        """Write the state, and take it over as written."""
        state = {f"weight/{name}": t.detach().cpu() for name, t in self.weights.items()}
        for name, t in self.weights.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                held = self.optimizer.state[t][moment]
                held.copy_(held.bfloat16())
                state[f"{moment}/{name}"] = held.bfloat16().cpu()
        unfinished = self.state_file.with_suffix(".partial")
        save_file(state, unfinished, metadata={"step": str(self.step), "of": json.dumps(self.identity)})
        unfinished.rename(self.state_file)

    def restore(self) -> None:
        """Go on from a state that `save` wrote; another recipe's is refused."""
        from safetensors import safe_open

        with safe_open(self.state_file, "pt") as file:
            metadata = file.metadata()
        if metadata["of"] != json.dumps(self.identity):
            raise SystemExit(f"{self.state_file}: a state of another recipe or text; remove it or name another folder")
        state = load_file(self.state_file)
        self.step = int(metadata["step"])
        for name, t in self.weights.items():
            t.data.copy_(state[f"weight/{name}"])
            moments = {m: state[f"{m}/{name}"].float().to(self.device) for m in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[t] = {"step": torch.tensor(float(self.step), device=self.device)} | moments

    def run(self, seconds: float = math.inf) -> bool:
        """Train on until the end, or until so many seconds have passed; returns whether it is done."""
        given, started = self.given, time.perf_counter()
        kept = set(log_spaced(given["steps"], given["checkpoints"])) - {given["steps"]}
        while self.step < given["steps"]:
            ids = self.rows.batch(self.step, given["rows"]).to(self.device)
            self.step += 1
            torch.manual_seed(self.step)  # of dropout, the same after an interruption
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, given)
            losses = batched.losses(self.config, self.weights, ids, self.dtype)
            losses.sum().backward()
            clip([t.grad for t in self.weights.values()], given["clip"])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if self.step in kept:
                self.write(f"step-{self.step}")
            if self.step % given["report_every"] == 0 or self.step == given["steps"]:
                self._report(losses.detach().tolist(), time.perf_counter() - started)
            if self.step % given["save_every"] == 0 or self.step == given["steps"]:
                self.save()
                if time.perf_counter() - started > seconds:
                    return False
        self.write()
        return True

    def _report(self, losses: list[float], seconds: float) -> None:
        line = f"{self.step},{seconds:.0f}," + ",".join(f"{loss:.4f}" for loss in losses)
        print(line, flush=True)
        with (self.out / f"losses-{self.part}.csv").open("a") as file:
            file.write(line + "\n")

    def write(self, checkpoint: str = "") -> None:
        """Every seed as an ordinary Hugging Face folder."""
        for place, seed in enumerate(self.seeds):
            folder = self.out / "models" / seed["name"] / checkpoint
            batched.to_hugging_face(self.config, self.weights, place).save_pretrained(folder)
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": self.step}))


def parts(recipe: dict) -> list[dict]:
    """The recipe cut into recipes of seeds that are trained together.

    The seeds of the recipe's own model make `processes` parts, as even as can be; those with a `model` of their own,
    whose settings replace the recipe's, one part for each such model.
    """
    by_model: dict[str, list[dict]] = {}
    for seed in recipe["seeds"]:
        by_model.setdefault(json.dumps(seed.get("model", {})), []).append(seed)
    found = []
    for other, seeds in by_model.items():
        count = 1 if json.loads(other) else min(recipe["training"]["processes"], len(seeds))
        cuts = [len(seeds) * k // count for k in range(count + 1)]
        model = recipe["model"] | json.loads(other)
        found += [recipe | {"model": model, "seeds": seeds[start:stop]} for start, stop in pairwise(cuts)]
    return found


def train_part(recipe: dict, tokens: Path, out: Path, seconds: float, part: int) -> bool:
    """Start or go on with one part of the seeds; returns whether it is done."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe["training"]["processes"] > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // recipe["training"]["processes"]))
    training = Training(parts(recipe)[part], np.load(tokens, mmap_mode="r"), out, device, part)
    if training.state_file.exists():
        training.restore()
        print(f"goes on after step {training.step}", flush=True)
    return training.run(seconds)


def train(recipe: dict, tokens: Path, out: Path, seconds: float = math.inf) -> bool:
    """Start or go on, `processes` parts of the seeds side by side; returns whether all are done."""
    out.mkdir(parents=True, exist_ok=True)
    processes, each = recipe["training"]["processes"], partial(train_part, recipe, tokens, out, seconds)
    places = range(len(parts(recipe)))
    if processes == 1:
        done = list(map(each, places))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            done = list(pool.map(each, places))
    return all(done)


if __name__ == "__main__":
    train(
        yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Path(sys.argv[3]),
        float(sys.argv[4]) if len(sys.argv) > 4 else math.inf,
    )  # fmt: skip
