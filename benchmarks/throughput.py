"""How fast is the whole job?  python benchmarks/throughput.py [--tokens N] [--rounds R]

Two bundled models, the same tokens, all in one run, every contestant in turn in every round, medians of the rounds, seconds
of the processors:

- ours: the pass (forwards, co-moments, within-layer co-moments), matches and one baseline draw;
- transformer-lens: `run_with_cache` (of the activations only) and `torch.corrcoef`, a second run with rotated activations
  for the baseline;
- numpy: activations from our hooks (forwards included), a float64 two-pass correlation and rotation in NumPy;
- the plain way (plain_way.py): transformer-lens in batches, a product per pair of layers added up; everything again rotated;
- the authors' way (authors_way.py): the same as the paper's published code does it, activations in float16;
- the forward passes alone, and the pass's products alone, on blocks that are there.

Neurons that are dead (their values are all the same) have no ρ and are left out of all.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
import statistics
from functools import partial

import numpy as np
import torch
from authors_way import authors_way
from measure import machine, processor_timed
from plain_way import has_lens, plain_way, reads_by
from searches import settings_of
from transformers import AutoModelForCausalLM, AutoTokenizer

import universal_neurons as un
from universal_neurons.features import NeuronSource
from universal_neurons.matching import Evidence
from universal_neurons.matching.baselines import rotated_best, rotation, rotations
from universal_neurons.matching.correlation import find_matches
from universal_neurons.models import BUNDLED_FOLDER, quiet_transformers
from universal_neurons.passes import Pass, model_pairs
from universal_neurons.passes.panels import study_recipes
from universal_neurons.statistics import Batch, Block, CoMoments, Key, LayerMoments, Statistics
from universal_neurons.torch_state import settled_torch

torch.set_grad_enabled(False)
BATCH = 2048


@settled_torch()
def our_pass(models, tokens) -> Pass:
    recipes = study_recipes(models, model_pairs(models, "reference"), settings_of(models, "exact"))
    run = Pass([NeuronSource(m) for m in models], recipes)
    run.run(tokens, tokens.shards(np.arange(len(tokens))), batch_tokens=BATCH)
    return run


@settled_torch()
def our_answer(run: Pass, models) -> tuple[torch.Tensor, torch.Tensor]:
    evidence = Evidence(Statistics(run.accumulators), [0])
    left, right = (m.name for m in models)
    cross = evidence.cross(left, right)
    matches = find_matches(cross, evidence.norms(left), evidence.norms(right))
    turned = rotations("rotation", models[1].units.widths, 0, 0)
    return matches.corr[:, 0], rotated_best(cross, evidence.norms(left), evidence.layers(right), turned)[0]


@settled_torch()
def forwards(models, tokens) -> None:
    rows = BATCH // tokens.context
    for start in range(0, len(tokens), rows):
        ids = torch.from_numpy(tokens.ids(np.arange(start, min(start + rows, len(tokens)))))
        for model in models:
            model.forward(ids)


@settled_torch()
def products(models, positions: int) -> None:
    """The pass's products on so many positions, of blocks that are there."""
    blocks = {Key(m.name): Block(torch.randn(BATCH, m.n_neurons)) for m in models}
    left, right = models
    moments = [
        CoMoments(left.name, right.name, left.n_neurons, right.n_neurons),
        LayerMoments(right.name, right.units),
    ]
    for _ in range(positions // BATCH):
        for each in moments:
            each.update(Batch(blocks))


def best_of(rho: torch.Tensor) -> torch.Tensor:
    """The highest ρ of every row; of dead neurons, whose ρ are NaN, −∞."""
    return rho.nan_to_num(nan=-torch.inf).amax(1)


def living(values: torch.Tensor) -> torch.Tensor:
    """Activations, NaN where a neuron is dead."""
    return values.masked_fill(values.amin(0) == values.amax(0), torch.nan)


def lens_activations(lens, tokens) -> torch.Tensor:
    rows = BATCH // tokens.context
    kept = []
    for start in range(0, len(tokens), rows):
        batch = np.arange(start, min(start + rows, len(tokens)))
        _, cache = lens.run_with_cache(
            torch.from_numpy(tokens.ids(batch)), names_filter=lambda n: n.endswith("mlp.hook_post")
        )
        layers = [cache[f"blocks.{layer}.mlp.hook_post"].flatten(0, 1) for layer in range(lens.cfg.n_layers)]
        kept.append(torch.cat(layers, 1)[torch.from_numpy(tokens.mask(batch)).flatten()])
    return torch.cat(kept)


def lens_way(lenses, tokens, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As the authors' scripts do it: correlate, then run everything again with the second model rotated."""
    turned = rotation("rotation", width, 0, 0).float()
    answers = []
    for rotate in (False, True):
        left, right = (lens_activations(lens, tokens) for lens in lenses)
        if rotate:
            right = torch.cat([layer @ turned.T for layer in right.split(width, 1)], 1)
        rho = torch.corrcoef(torch.cat([living(left), living(right)], 1).T)
        answers.append(best_of(rho[: left.shape[1], left.shape[1] :]))
    return answers[0], answers[1]


def numpy_way(models, tokens) -> tuple[np.ndarray, np.ndarray]:
    every = np.arange(len(tokens))
    rows = BATCH // tokens.context
    values = []
    for model in models:
        parts = [
            model.activations(torch.from_numpy(tokens.ids(every[s : s + rows]))) for s in range(0, len(every), rows)
        ]
        kept = [part.numpy()[tokens.mask(every[n * rows : n * rows + len(part)])] for n, part in enumerate(parts)]
        values.append(np.concatenate(kept).astype(np.float64))
    dead = [each.min(0) == each.max(0) for each in values]
    left, right = values
    width = models[1].d_mlp
    turned = rotation("rotation", width, 0, 0).numpy()
    rotated = np.concatenate([layer @ turned.T for layer in np.split(right, right.shape[1] // width, 1)], 1)
    left = left - left.mean(0)
    with np.errstate(invalid="ignore"):
        left /= np.linalg.norm(left, axis=0)
    best = []
    for other, none in ((right, dead[1]), (rotated, np.zeros_like(dead[1]))):
        other = other - other.mean(0)
        with np.errstate(invalid="ignore"):
            other /= np.linalg.norm(other, axis=0)
        rho = left.T @ other
        rho[:, none], rho[dead[0]] = -np.inf, np.nan
        best.append(rho.max(1))
    return best[0], best[1]


def largest_error(answers, exact) -> float:
    """Of the best ρ, plain and rotated, of neurons that are not dead."""
    return max(
        float(np.nanmax(np.abs(np.asarray(each, dtype=np.float64) - right))) for each, right in zip(answers, exact)
    )


def to_lens(name: str):
    """A bundled model in transformer-lens, its own weights, unprocessed."""
    from transformer_lens.model_bridge import TransformerBridge

    folder = BUNDLED_FOLDER / name
    with quiet_transformers():
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER / "tokenizer")
        return TransformerBridge.boot_transformers(str(folder), hf_model=network, tokenizer=tokenizer, device="cpu")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=65_536)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    models = [un.load_model(f"bundled/seed-{seed}") for seed in (1, 2)]
    config = settings_of(models, "exact", max_tokens=arguments.tokens)
    tokens = un.TokenDataset.load(config, models[0].tokenizer, context=models[0].context)
    lenses = [to_lens(model.name) if has_lens() else model for model in models]
    counted = int(tokens.mask(np.arange(len(tokens))).sum())

    times: dict[str, list[float]] = {}
    answers = {}
    for _ in range(arguments.rounds):
        contestants = {
            "forwards": lambda: forwards(models, tokens),
            "pass": lambda: our_pass(models, tokens),
            "lens": lambda: lens_way(lenses, tokens, models[1].d_mlp),
            "numpy": lambda: numpy_way(models, tokens),
            "plain": lambda: plain_way(lenses, tokens, models[0].n_layers, models[0].d_mlp),
            "authors": lambda: authors_way(lenses, tokens, models[0].n_layers, models[0].d_mlp),
            "products": partial(products, models, counted),
        }
        if not has_lens():
            del contestants["lens"]
        for name, work in contestants.items():
            seconds, result = processor_timed(work)
            times.setdefault(name, []).append(seconds)
            if name == "pass":
                seconds, result = processor_timed(lambda run=result: our_answer(run, models))
                times.setdefault("answer", []).append(seconds)
            answers[name] = result

    middle = {name: statistics.median(values) for name, values in times.items()}
    ours = middle["pass"] + middle["answer"]
    errors = {
        way: largest_error(answers[way], answers["numpy"])
        for way in ("pass", "lens", "plain", "authors")
        if way in answers
    }
    lens = (
        f"{middle['lens']:.2f} | {middle['lens'] / ours:.1f}× | {errors['lens']:.1e}"
        if has_lens()
        else "not installed | | "
    )
    dead = int(np.isnan(answers["numpy"][0]).sum())
    print(f"""## throughput

`python benchmarks/throughput.py --tokens {arguments.tokens} --rounds {arguments.rounds}`; two bundled models ({models[0].n_layers} × {models[0].d_mlp} neurons
each, of the first {dead} dead), {tokens.n_tokens:,} token positions ({counted:,} counted), medians of {arguments.rounds} rounds.
{machine()} (c) and (d) read activations by {reads_by()}.

| | processor seconds | ours is faster by | max error against float64 |
|---|---|---|---|
| ours: pass, matches, one baseline draw | {ours:.2f} | | {errors["pass"]:.1e} |
| (a) transformer-lens `run_with_cache` + `torch.corrcoef`, twice | {lens} |
| (b) NumPy float64 two-pass | {middle["numpy"]:.2f} | {middle["numpy"] / ours:.1f}× | |
| (c) the plain way: products of layer pairs added up, twice | {middle["plain"]:.2f} | {middle["plain"] / ours:.1f}× | {errors["plain"]:.1e} |
| (d) the authors' way: the same, activations and their squares in float16, twice | {middle["authors"]:.2f} | {middle["authors"] / ours:.1f}× | {errors["authors"]:.1e} |

| ours | |
|---|---|
| the pass | {middle["pass"]:.2f} s, {tokens.n_tokens / middle["pass"]:,.0f} tokens a processor second |
| its forward passes alone | {middle["forwards"]:.2f} s |
| its products alone, on blocks that are there | {middle["products"]:.2f} s |
| pass / (forwards + products), at most 1.25 wanted | {middle["pass"] / (middle["forwards"] + middle["products"]):.2f} |
| matches and baseline | {middle["answer"]:.2f} s |
""")


if __name__ == "__main__":
    main()
