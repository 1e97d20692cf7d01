"""Are dense blocks of TopK latents slower than sparse ones?  Seconds of the products, and of a whole pass.

    python benchmarks/sparse_codes.py [POSITIONS WIDTH OTHER]

Products: latents (positions x width, some active at each) with a dense block of OTHER columns, the other way round, and
with themselves, multiplied as dense blocks and as sparse ones, at several shares of active latents.
The pass: two bundled models' residual streams with random TopK dictionaries of WIDTH / 2 latents, 32 of them active;
their co-moments with each other and with the neurons, and those within layers.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from measure import machine
from searches import settings_of

import universal_neurons as un
from universal_neurons.features import Dictionary, NeuronSource
from universal_neurons.features.dictionary_activations import TopK
from universal_neurons.features.latents import Latents
from universal_neurons.matching import Evidence
from universal_neurons.models import Place
from universal_neurons.passes import Pass, model_pairs
from universal_neurons.passes.panels import study_recipes
from universal_neurons.statistics import Accumulator, Block, Statistics, sparse_codes
from universal_neurons.statistics.comoments import add_product
from universal_neurons.statistics.sparse_codes import SPARSE_SHARE, codes_of
from universal_neurons.statistics.sparse_products import OuterProducts, add_sparse_product

K = 32
SHARES = (0.0013, 0.01, 0.02, SPARSE_SHARE)
torch.set_grad_enabled(False)


def seconds_of(compute: Callable[[], object], times: int = 2) -> float:
    """The least processor seconds of several, after one that does not count."""
    compute()
    spent = []
    for _ in range(times):
        started = time.process_time()
        compute()
        spent.append(time.process_time() - started)
    return min(spent)


def latents_of(positions: int, width: int, share: float) -> torch.Tensor:
    """Latents of which a share is active at each position, any as often as any other."""
    chance = torch.Generator().manual_seed(0)
    values, places = torch.rand(positions, width, generator=chance).topk(max(1, round(share * width)))
    return torch.zeros(positions, width).scatter_(1, places, values)


def products(positions: int, width: int, other: int) -> list[str]:
    """A row of the table for every share."""
    dense = Block(torch.randn(positions, other, generator=torch.Generator().manual_seed(1)))
    into, across, within = torch.zeros(width, other), torch.zeros(other, width), torch.zeros(width, width)
    rows = []
    for share in SHARES:
        block = Block(latents_of(positions, width, share), inactive=torch.zeros(width))
        pairs = ((into, block, dense), (across, dense, block), (within, block, block))
        made = seconds_of(lambda: codes_of(block.values, torch.zeros(width)))  # noqa: B023
        told = [f"{share:.2%}", f"{made:.3f}"]
        for place, left, right in pairs:
            whole = slice(0, len(place))
            dense_s = seconds_of(lambda: add_product(place, left.values, right.values, False), 1)  # noqa: B023
            sparse_s = seconds_of(lambda: add_sparse_product(place, OuterProducts(), left, right, whole, False))  # noqa: B023
            told.append(f"{dense_s:.2f} → {sparse_s:.2f}")
        rows.append(f"| {' | '.join(told)} |")
    return rows


def latents_on(model: un.Model, width: int, seed: int) -> Latents:
    """TopK latents on the stream after each block: random directions, which nobody has to verify."""
    made = []
    for layer in range(model.n_layers):
        chance = torch.Generator().manual_seed(1000 * seed + layer)
        directions = torch.nn.functional.normalize(torch.randn(model.d_model, width, generator=chance), dim=0)
        at = Place("residual_out", layer)
        nothing = torch.zeros(width), torch.zeros(model.d_model)
        made.append(Dictionary(f"layer-{layer}", at, at, directions, nothing[0], directions.T, nothing[1], TopK(K)))
    return Latents(model, made)


def whole_pass(
    asked: list[Latents | un.Model], tokens: un.TokenDataset, share: float
) -> tuple[float, list[Accumulator]]:
    """Processor seconds of the pass where blocks of which at most this share is active are sparse, and what it found."""
    sparse_codes.SPARSE_SHARE = share
    recipes = study_recipes(asked, model_pairs(asked, "all"), settings_of(asked, "exact", pairs="all"))
    run = Pass([NeuronSource(each) for each in asked], recipes)
    started = time.process_time()
    run.run(tokens, tokens.shards(np.arange(len(tokens))), batch_tokens=4096)
    return time.process_time() - started, run.accumulators


def correlations(found: list[Accumulator], left: str, right: str) -> torch.Tensor:
    """ρ of two sources' units."""
    evidence = Evidence(Statistics(found), [0])
    return evidence.cross(left, right).centred() * torch.outer(evidence.norms(left), evidence.norms(right))


def passes(width: int, tokens_read: int) -> str:
    """A sentence on the pass, dense and sparse."""
    models = [un.load_model(f"bundled/seed-{seed}") for seed in (1, 2)]
    config = settings_of(models, "exact", max_tokens=tokens_read)
    tokens = un.TokenDataset.load(config, models[0].tokenizer, context=models[0].context)
    asked = [latents_on(model, width, seed) for seed, model in enumerate(models)] + [models[1]]
    (dense_s, dense), (sparse_s, sparse) = (whole_pass(asked, tokens, share) for share in (0, SPARSE_SHARE))
    pairs = [(left.name, right.name) for left, right in model_pairs(asked, "all")]
    off = max(float((correlations(dense, *p) - correlations(sparse, *p)).nan_to_num().abs().max()) for p in pairs)
    n, read = asked[0].n_neurons, tokens.n_tokens
    return (
        f"The pass over {read:,} positions, of two sources of {n:,} latents ({K} of {width:,} active in each of {models[0].n_layers} "
        f"layers) and the second model's {models[1].n_neurons} neurons: {dense_s:.1f} s dense, {sparse_s:.1f} s sparse; "
        f"correlations differ by {off:.1g} at most."
    )


def report(positions: int, width: int, other: int) -> str:
    """The table and the sentence."""
    torch.set_num_threads(1)
    told = [
        f"{machine()} {positions} positions, {width:,} latents, {other} columns; processor seconds, dense → sparse.",
        "",
    ]
    told += ["| active | making them sparse | with a dense block | a dense block with them | with themselves |"]
    return "\n".join(
        [*told, "|---|---|---|---|---|", *products(positions, width, other), "", passes(width // 2, 2 * positions)]
    )


if __name__ == "__main__":
    print(report(*map(int, sys.argv[1:] or (2048, 4096, 2048))))
