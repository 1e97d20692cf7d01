"""How fast is the whole job?  python benchmarks/throughput.py [--tokens N] [--rounds R]

Two bundled models, the same tokens, all in one run, every contestant in turn in every round, medians of the rounds:

- ours: the pass (forwards, co-moments, within-layer co-moments), matches and one baseline draw;
- transformer-lens: `run_with_cache` (of the activations only) and `torch.corrcoef`, a second run with rotated activations
  for the baseline;
- numpy: activations from our hooks (forwards included), a float64 two-pass correlation and rotation in NumPy;
- the forward passes alone, and the GEMM peak measured in the same process.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
import statistics

import numpy as np
import torch
from measure import machine, timed
from searches import settings_of
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import universal_neurons as un
from universal_neurons.features import NeuronSource
from universal_neurons.matching import Evidence
from universal_neurons.matching.baselines import rotated_best, rotation, rotations
from universal_neurons.matching.correlation import find_matches
from universal_neurons.models import BUNDLED_FOLDER, quiet_transformers
from universal_neurons.models.locations import BUNDLED_TOKENIZER
from universal_neurons.passes import Pass, model_pairs
from universal_neurons.passes.panels import study_recipes
from universal_neurons.statistics import Statistics
from universal_neurons.study.estimate import gemm_flops
from universal_neurons.study.measured import gemm_rate

torch.set_grad_enabled(False)
BATCH = 2048


def our_pass(models, tokens) -> Pass:
    recipes = study_recipes(models, model_pairs(models, "reference"), settings_of(models, "exact"))
    run = Pass([NeuronSource(m) for m in models], recipes)
    run.run(tokens, tokens.shards(np.arange(len(tokens))), batch_tokens=BATCH)
    return run


def our_answer(run: Pass, models) -> tuple[torch.Tensor, torch.Tensor]:
    evidence = Evidence(Statistics(run.accumulators), [0])
    left, right = (m.name for m in models)
    cross = evidence.cross(left, right)
    matches = find_matches(cross, evidence.norms(left), evidence.norms(right))
    turned = rotations("rotation", models[1].units.widths, 0, 0)
    return matches.corr[:, 0], rotated_best(cross, evidence.norms(left), evidence.layers(right), turned)[0]


def forwards(models, tokens) -> None:
    rows = BATCH // tokens.context
    for start in range(0, len(tokens), rows):
        ids = torch.from_numpy(tokens.ids(np.arange(start, min(start + rows, len(tokens)))))
        for model in models:
            model.forward(ids)


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
        rho = torch.corrcoef(torch.cat([left, right], 1).T)
        answers.append(rho[: left.shape[1], left.shape[1] :].amax(1))
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
    left, right = values
    width = models[1].d_mlp
    turned = rotation("rotation", width, 0, 0).numpy()
    rotated = np.concatenate([layer @ turned.T for layer in np.split(right, right.shape[1] // width, 1)], 1)
    left = left - left.mean(0)
    left /= np.linalg.norm(left, axis=0)
    best = []
    for other in (right, rotated):
        other = other - other.mean(0)
        other /= np.linalg.norm(other, axis=0)
        best.append((left.T @ other).max(1))
    return best[0], best[1]


def to_lens(name: str) -> TransformerBridge:
    """A bundled model in transformer-lens, its own weights, unprocessed."""
    folder = BUNDLED_FOLDER / name
    with quiet_transformers():
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
        return TransformerBridge.boot_transformers(str(folder), hf_model=network, tokenizer=tokenizer, device="cpu")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=65_536)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    models = [un.load_model(f"bundled/seed-{seed}") for seed in (1, 2)]
    config = settings_of(models, "exact", max_tokens=arguments.tokens)
    tokens = un.TokenDataset.load(config, models[0].tokenizer, context=models[0].context)
    lenses = [to_lens(model.name) for model in models]
    counted = int(tokens.mask(np.arange(len(tokens))).sum())

    times: dict[str, list[float]] = {}
    answers = {}
    for _ in range(arguments.rounds):
        for name, work in {
            "forwards": lambda: forwards(models, tokens),
            "pass": lambda: our_pass(models, tokens),
            "lens": lambda: lens_way(lenses, tokens, models[1].d_mlp),
            "numpy": lambda: numpy_way(models, tokens),
        }.items():
            seconds, result = timed(work)
            times.setdefault(name, []).append(seconds)
            if name == "pass":
                seconds, result = timed(lambda run=result: our_answer(run, models))
                times.setdefault("answer", []).append(seconds)
            answers[name] = result
        times.setdefault("peak", []).append(gemm_rate("cpu", size=2048))

    middle = {name: statistics.median(values) for name, values in times.items()}
    ours = middle["pass"] + middle["answer"]
    gemm = counted * gemm_flops(models, config) / middle["peak"]
    exact = answers["numpy"]
    errors = [
        max(float(np.abs(np.asarray(ours_each) - exact_each).max()) for ours_each, exact_each in zip(answers[a], exact))
        for a in ("pass", "lens")
    ]
    print(f"""## throughput

`python benchmarks/throughput.py --tokens {arguments.tokens} --rounds {arguments.rounds}`; two bundled models ({models[0].n_layers} × {models[0].d_mlp} neurons
each), {tokens.n_tokens:,} token positions ({counted:,} counted), medians of {arguments.rounds} rounds.
{machine()}

| | seconds | ours is faster by | max error against float64 |
|---|---|---|---|
| ours: pass, matches, one baseline draw | {ours:.2f} | | {errors[0]:.1e} |
| (a) transformer-lens `run_with_cache` + `torch.corrcoef`, twice | {middle["lens"]:.2f} | {middle["lens"] / ours:.1f}× | {errors[1]:.1e} |
| (b) NumPy float64 two-pass | {middle["numpy"]:.2f} | {middle["numpy"] / ours:.1f}× | |

| ours | |
|---|---|
| the pass | {middle["pass"]:.2f} s, {tokens.n_tokens / middle["pass"]:,.0f} tokens/s |
| its forward passes alone | {middle["forwards"]:.2f} s |
| its GEMM FLOP at the measured peak of {middle["peak"] / 1e9:.0f} GFLOP/s | {gemm:.2f} s |
| pass / (forwards + GEMM at peak), at most 1.25 wanted | {middle["pass"] / (middle["forwards"] + gemm):.2f} |
| GEMM's share of the peak in the pass (forwards taken off) | {gemm / (middle["pass"] - middle["forwards"]):.0%} |
| matches and baseline | {middle["answer"]:.2f} s |
""")


if __name__ == "__main__":
    main()
