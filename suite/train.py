"""Train all seeds of a recipe at once: python suite/train.py RECIPE TOKENS OUT [SECONDS] [--pack RESULTS]

TOKENS is a .npy of token ids (uint16) or what tokens.py writes, token 0 before each document.  A row is BOS and
`n_positions` tokens, so that every position predicts one.
Each seed has its own weights (seed `weights`) and its own order of the rows (seed `data`), whatever seeds are trained
beside it (but for dropout, whose masks are drawn for all at once).  Every `save_every` steps the state is written
(weights in float32, AdamW's moments in bfloat16: 8 bytes a weight) and *taken over as written*, so that on a CPU an
interrupted run ends with the same bits as one that was not; the same command goes on from there.  OUT gets
`models/SEED/step-K/` at the steps of `checkpoints` and `models/SEED/` at the end, all ordinary Hugging Face folders,
and `losses-PART.csv`; with `--pack` the weights go into few small files instead (pack.py).  On a CPU with several
cores, `processes` cuts the seeds into so many parts, each with a state of its own: small products gain little from a
second thread.  Seeds that differ in `activation_function` or `weight_decay` alone are trained together.

`steps: fit` takes as many steps as fill SECONDS, counted from the start of the process to finished files: steps are
timed on throw-away weights, their number is settled and kept in OUT/settled.json, and a run that is late all the same
stops in time and writes the weights it has.  On a GPU everything is compiled unless `--compile never` is said; where
that fails the run goes on without and says why.
"""

import argparse
import csv
import hashlib
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import batched
import numpy as np
import speed
import torch
import yaml
from pack import Pack, write_model
from rows import Rows
from safetensors.torch import load_file, save_file
from schedule import checkpoint_steps, learning_rate, process_age, steps_that_fit
from tokens import read_tokens
from torch import Tensor

FIT = "fit"
TIMED_AT_ONCE = 10  # steps, while a run is timed
WARM = 3  # steps before


def model_config(recipe: dict):
    """The architecture as `transformers` knows it."""
    return batched.model_config(recipe["model"])


class Training:
    """A recipe under way: weights and AdamW's moments of all seeds, and the step they are at."""

    def __init__(self, recipe: dict, tokens: np.ndarray, out: Path, device: str, part: int = 0) -> None:
        self.recipe = recipe
        self.settings = dict(recipe["training"])
        self.out = out
        self.device = device
        self.part = part
        self.config = model_config(recipe)
        self.seeds = recipe["seeds"]
        self.configs = [batched.model_config(recipe["model"] | seed.get("model", {})) for seed in self.seeds]
        if tokens.max() >= self.config.vocab_size:
            raise SystemExit(
                f"{out}: token ids up to {tokens.max()}, a vocabulary of {self.config.vocab_size}; encode again"
            )
        self.rows = Rows(tokens, self.config.n_positions + 1, [seed["data"] for seed in self.seeds], device)
        self.weights = {name: t.to(device).requires_grad_() for name, t in self._initial().items()}
        self.matrices = [t for t in self.weights.values() if t.dim() > 2]  # the first dimension is of seeds
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=1.0, betas=tuple(self.settings["betas"]), weight_decay=0.0, fused=True
        )
        decays = [seed.get("weight_decay", self.settings["weight_decay"]) for seed in self.seeds]
        self.decays = torch.tensor(decays, device=device)
        activations = [config.activation_function for config in self.configs]
        dtype = getattr(torch, self.settings["dtype"])
        self.forward = batched.Forward.of(self.config, len(self.seeds), dtype, activations)
        self.clip = batched.clip
        self.compilation = "not asked for"
        self.pack: Pack | None = None
        self.step, self.seconds = 0, 0.0
        self.late = False
        self.tokens_sha256 = hashlib.sha256(tokens).hexdigest()

    def _initial(self) -> dict[str, Tensor]:
        return batched.init(self.config, [seed["weights"] for seed in self.seeds])

    @property
    def identity(self) -> dict:
        """Recipe and tokens whose state this is; another's is not taken up."""
        recipe = {"model": self.recipe["model"], "training": self.settings, "seeds": self.seeds}
        return recipe | {"tokens": self.tokens_sha256}

    @property
    def state_file(self) -> Path:
        """The file that holds weights, moments and step between runs."""
        return self.out / f"state-{self.part}.safetensors"

    @property
    def losses_file(self) -> Path:
        """Where the losses are: step, seconds, each seed's."""
        return self.out / f"losses-{self.part}.csv"

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

    def compile(self) -> None:
        """Compile the forward pass and the clip; where that fails, go on without and say why."""
        eager = self.forward
        started = time.perf_counter()
        try:
            self.forward, self.clip = replace(eager, compiled=True), batched.compiled(batched.clip)
            self.try_out(WARM)
            self.compilation = f"done in {time.perf_counter() - started:.1f} s"
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises
            self.forward, self.clip = eager, batched.clip
            self.compilation = f"failed: {type(error).__name__}: {error}"[:2000]
            self.optimizer.zero_grad(set_to_none=True)
        self.forget()
        print(f"compilation: {self.compilation}", flush=True)

    def settle(self, seconds: float, measured: float) -> dict:
        """The number of steps that fill so many seconds, timed for some of them on throw-away weights."""
        started = time.perf_counter()
        self.try_out(WARM)
        timed = 0
        begun = time.perf_counter()
        while time.perf_counter() - begun < measured:
            self.try_out(TIMED_AT_ONCE)
            timed += TIMED_AT_ONCE
        rate = timed / (time.perf_counter() - begun)
        self.forget()
        left = seconds - (time.perf_counter() - started)
        self.settings["steps"] = steps_that_fit(rate, left)
        return {"steps": self.settings["steps"], "steps_per_second": rate, "timed_steps": timed, "seconds_left": left}

    def try_out(self, steps: int) -> None:
        """Some steps of no consequence, waited for."""
        for step in range(steps):
            losses = self.advance(self.rows.batch(step, self.settings["rows"]), 0.0)
        losses.tolist()

    def forget(self) -> None:
        """Start again from the initial weights."""
        for name, initial in self._initial().items():
            self.weights[name].data.copy_(initial)
        self.optimizer.state.clear()
        self.step = 0

    def advance(self, ids: Tensor, rate: float) -> Tensor:
        """One step of all seeds; returns their losses, which are not waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.forward.losses(self.weights, ids)
        losses.sum().backward()
        self.clip([t.grad for t in self.weights.values()], self.settings["clip"])
        batched.shrink(self.matrices, 1 - rate * self.decays)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.detach()

    def run(self, seconds: float = math.inf, ends: float = math.inf) -> bool:
        """Train on until the end; returns whether it is done.

        After so many seconds it stops at the next save, to go on another time; at `ends`, on `time.perf_counter()`, it
        is done with the weights it has.
        """
        settings = self.settings
        started = time.perf_counter()
        kept = set(checkpoint_steps(settings["steps"], settings["checkpoints"]))
        if not self.step:
            self.losses_file.unlink(missing_ok=True)
        while self.step < settings["steps"] and not self.late:
            ids = self.rows.batch(self.step, settings["rows"])
            self.step += 1
            if self.config.resid_pdrop:
                torch.manual_seed(self.step)  # the same after an interruption
            losses = self.advance(ids, learning_rate(self.step, settings))
            if self.step in kept:
                self.write(f"step-{self.step}")
            last = self.step == settings["steps"]
            if self.step % settings["report_every"] == 0 or last:
                self._report(losses.tolist(), time.perf_counter() - started)
                self.late = not last and time.perf_counter() > ends
            if (self.step % settings["save_every"] == 0 and not self.late) or last:
                self.save()
                if time.perf_counter() - started > seconds:
                    return False
                if self.pack and not last:
                    self.write()
        self.seconds = time.perf_counter() - started
        self.write()
        return True

    def _report(self, losses: list[float], seconds: float) -> None:
        line = f"{self.step},{seconds:.0f}," + ",".join(f"{loss:.4f}" for loss in losses)
        print(line, flush=True)
        with self.losses_file.open("a") as file:
            file.write(line + "\n")

    def write(self, checkpoint: str = "") -> None:
        """Every seed as an ordinary Hugging Face folder, or into the pack."""
        names = [seed["name"] for seed in self.seeds]
        wanted = self.settings.get("checkpoint_seeds", names) if checkpoint else names
        places = {name: place for place, name in enumerate(names) if name in wanted}
        if self.pack:
            held = {name: t.detach().half().cpu() for name, t in self.weights.items()}
            each = {name: {key: t[place] for key, t in held.items()} for name, place in places.items()}
            self.pack.write(self.step, each, bool(checkpoint))
            self.pack.tell(self.results())
            return
        for name, place in places.items():
            folder = self.out / "models" / name / checkpoint
            write_model(folder, self.configs[place], self.weights, place, self.step)

    def results(self) -> dict:
        """What is known of the run: recipe with its steps, speed, losses, what it ran on."""
        a_step = self.settings["rows"] * self.config.n_positions
        losses = list(csv.reader(self.losses_file.open())) if self.losses_file.exists() else []
        speed = self.step * a_step * len(self.seeds) / self.seconds if self.seconds else None
        flops = batched.product_flops(self.config, self.config.n_positions)
        return {
            "recipe": self.recipe | {"training": self.settings},
            "step": self.step,
            "finished": self.step == self.settings["steps"],
            "late": self.late,
            "tokens_per_seed": self.step * a_step,
            "training_seconds": self.seconds or None,
            "process_seconds": process_age(),
            "tokens_per_second": speed,
            "product_tflops_per_second": None if speed is None else speed * flops / 1e12,
            "compilation": self.compilation,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "CPU",
            "torch": torch.__version__,
            "tokens_sha256": self.tokens_sha256,
            "losses": [[int(step), float(after), *map(float, each)] for step, after, *each in losses],
        }


def parts(recipe: dict) -> list[dict]:
    """The recipe cut into recipes of seeds that are trained together.

    The seeds of the recipe's own model make `processes` parts, as even as can be; those with a `model` of their own,
    whose settings replace the recipe's, one part for each such model.  Another activation alone is no other model.
    """
    by_model: dict[str, list[dict]] = {}
    for seed in recipe["seeds"]:
        other = {name: value for name, value in seed.get("model", {}).items() if name != "activation_function"}
        by_model.setdefault(json.dumps(other), []).append(seed)
    cut = []
    for other, seeds in by_model.items():
        count = 1 if json.loads(other) else min(recipe["training"]["processes"], len(seeds))
        cuts = [len(seeds) * k // count for k in range(count + 1)]
        model = recipe["model"] | json.loads(other)
        cut += [recipe | {"model": model, "seeds": seeds[start:stop]} for start, stop in pairwise(cuts)]
    return cut


def settled(training: Training, seconds: float) -> float:
    """Settle the steps of a recipe that leaves them open; returns the second of this machine's clock to end at."""
    begun = time.perf_counter()
    note = training.out / "settled.json"
    settings = training.settings
    if not math.isfinite(seconds):
        raise SystemExit("steps: fit needs a number of SECONDS")
    ends = begun + seconds - settings["margin"]
    identity = training.identity
    kept = json.loads(note.read_text()) if note.exists() else {}
    if kept.get("of") == identity:
        settings["steps"] = kept["steps"]
    else:
        measured = training.settle(ends - begun, settings["measured"])
        note.write_text(json.dumps(measured | {"of": identity | {"training": identity["training"] | {"steps": FIT}}}))
    print(f"{settings['steps']} steps", flush=True)
    return ends


@dataclass(frozen=True)
class Options:
    """How to train: `compiles` left open compiles on a GPU, `results` is where weights are packed, `profile` a file."""

    compiles: bool | None = None
    results: Path | None = None
    profile: Path | None = None


def train_part(
    recipe: dict, tokens: Path, out: Path, seconds: float, options: Options, started: float, part: int
) -> bool:
    """Start or go on with one part of the seeds; returns whether it is done."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.enable_cudnn_sdp(False)  # flash attention comes next
    if recipe["training"]["processes"] > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // recipe["training"]["processes"]))
    training = Training(parts(recipe)[part], read_tokens(tokens), out, device, part)
    if options.results:
        names = [seed["name"] for seed in training.seeds]
        training.pack = Pack(options.results, names, 2 * sum(t[0].numel() for t in training.weights.values()))
        checkpoints = training.settings["checkpoints"]
        count = checkpoints - 1 if isinstance(checkpoints, int) else len(checkpoints)
        training.pack.check(count, training.settings.get("checkpoint_seeds", names))
    if options.compiles or (options.compiles is None and device == "cuda"):
        training.compile()
    if options.profile:
        speed.write(training, options.profile)
        training.forget()
    ends = math.inf
    if training.settings["steps"] == FIT:
        ends = settled(training, started + seconds - time.perf_counter())
        seconds = math.inf
    if training.state_file.exists():
        training.restore()
        print(f"goes on after step {training.step}", flush=True)
    return training.run(seconds, ends)


def train(
    recipe: dict, tokens: Path, out: Path, seconds: float = math.inf, options: Options = Options(), age: float = 0.0
) -> bool:
    """Start or go on, `processes` parts of the seeds side by side; returns whether all are done.

    Of the seconds that `steps: fit` fills, `age` are gone.
    """
    out.mkdir(parents=True, exist_ok=True)
    places = range(len(parts(recipe)))
    processes = recipe["training"]["processes"]
    if len(places) > 1 and (options.results or recipe["training"]["steps"] == FIT):
        raise SystemExit("steps: fit and packed results ask for seeds that are trained together")
    started = time.perf_counter() - age
    each = partial(train_part, recipe, tokens, out, seconds, options, started)
    if processes == 1 or len(places) == 1:
        done = list(map(each, places))
    else:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            done = list(pool.map(each, places))
    return all(done)


def as_trained(recipe: dict, out: Path) -> dict:
    """A recipe with the steps that were settled for it."""
    if recipe["training"]["steps"] != FIT:
        return recipe
    steps = json.loads((out / "settled.json").read_text())["steps"]
    return recipe | {"training": recipe["training"] | {"steps": steps}}


def main() -> None:
    """Read the command's arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("recipe", "tokens", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("seconds", type=float, nargs="?", default=math.inf)
    parser.add_argument("--pack", type=Path, help="a folder for results: few small files instead of models/")
    parser.add_argument("--profile", type=Path, help="a file for what a step's time is spent on")
    parser.add_argument("--compile", choices=("auto", "always", "never"), default="auto")
    arguments = parser.parse_args()
    options = Options(
        {"auto": None, "always": True, "never": False}[arguments.compile], arguments.pack, arguments.profile
    )
    recipe = yaml.safe_load(arguments.recipe.read_text())
    train(recipe, arguments.tokens, arguments.out, arguments.seconds, options, process_age())


if __name__ == "__main__":
    main()
