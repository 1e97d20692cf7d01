"""Numbers of the suite of seeds that docs/method.md and docs/suite.md quote: python benchmarks/seeds.py [--tokens N]

1. Sinks: by how much the norm of the residual stream exceeds its row's median, at most, at BOS and elsewhere.
2. Scales: how many neurons of seed-1 are universal among seed-2 and seed-3 by ρ of the activations as they are, of
   their square roots, and of whether a neuron fires; three rotations.  And what ρ of ranks their matches have.
3. Untrained networks of the same shape: how many neurons pass the basis test, and how many are universal.
"""

import argparse
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from twins import UNIVERSAL, activations, correlations, rotated

import universal_neurons as un
from universal_neurons.models import untrained_model

SEEDS = ("bundled/seed-1", "bundled/seed-2", "bundled/seed-3")
SCALES = {
    "as they are": lambda values: values,
    "square roots": np.sqrt,  # squared ReLU: none is below 0
    "whether it fires": lambda values: values > 0,
}
DRAWS = 3
torch.set_grad_enabled(False)


def sinks(tokens: int) -> None:
    """The highest norm of each model's positions, and of BOS, in times the row's median."""
    print("| model | highest of a position | highest of BOS |\n|---|---|---|")
    for name in SEEDS:
        model = un.load_model(name)
        config = un.StudyConfig(models=(name,), max_tokens=tokens)
        text = un.TokenDataset.load(config, model.tokenizer, context=model.context)
        highest = torch.zeros(2)
        for rows in torch.from_numpy(text.ids(np.arange(len(text)))).split(8):
            streams: list[torch.Tensor] = []
            with model.after_blocks(lambda _, stream, streams=streams: streams.append(stream)):
                model.activations(rows)
            norms = torch.stack(streams).norm(dim=-1).view(len(streams), *rows.shape)
            times = norms / norms[..., 1:].median(-1, keepdim=True).values
            highest = torch.maximum(highest, torch.stack([times[..., 1:].max(), times[..., 0].max()]))
        print(f"| {model.name} | {highest[0]:.1f} | {highest[1]:.1f} |", flush=True)


def scales(tokens: int) -> None:
    """How many neurons of the first model are universal, by what ρ is taken of."""
    read = [activations(name, tokens) for name in SEEDS]
    print("| ρ of | universal neurons of seed-1 |\n|---|---|")
    for scale, change in SCALES.items():
        (one, layers), *others = [(change(values).astype(np.float32), layers) for values, layers in read]
        excess = np.zeros(one.shape[1])
        for other, _ in others:
            chance = [correlations(one, rotated(other, layers, seed)).max(1) for seed in range(DRAWS)]
            excess += (correlations(one, other).max(1) - np.mean(chance, 0)) / len(others)
        print(f"| {scale} | {(excess > UNIVERSAL).sum()} |", flush=True)


def study(tokens: int, folder: str, models: Sequence[un.Model] | None = None) -> un.Store:
    """A study of the seeds, or of other models of their shape."""
    config = un.StudyConfig(models=SEEDS, max_tokens=tokens, stages=("universality",), out=f"{folder}/run")
    return un.run_study(config, models=models, progress=False)


def ranks(tokens: int) -> None:
    """What ρ of the matches of universal neurons is, and what it is of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        store = study(tokens, folder)
        universal = store.neurons.filter("is_universal").select("model", "layer", "neuron")
        matches = store.matches.filter(rank=1).join(universal, on=["model", "layer", "neuron"])
    corr, of_ranks = matches["corr_heldout"].mean(), matches["corr_ranks"].mean()
    print(
        f"{len(universal)} universal neurons: mean ρ {corr:.2f}, of ranks {of_ranks:.2f}, on held-out rows", flush=True
    )


def untrained(tokens: int) -> None:
    """The basis test of untrained networks."""
    networks = [untrained_model(un.load_model(name), seed) for seed, name in enumerate(SEEDS)]
    with tempfile.TemporaryDirectory() as folder:
        store = study(tokens, folder, networks)
        neurons = store.neurons.filter(model=store.models[0])
    passed, universal = ((neurons["q_value"] <= 0.05).sum(), neurons["is_universal"].sum())
    print(f"untrained: {passed} of {len(neurons)} neurons at q ≤ 0.05, {universal} universal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=30_000)
    tokens = parser.parse_args().tokens
    for part in (sinks, scales, ranks, untrained):
        part(tokens)
        print()


if __name__ == "__main__":
    main()
