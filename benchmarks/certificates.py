"""How often does a pair's true ρ exceed its bound?  Pairs of every spread of energy, many seeds of signs.

    python benchmarks/certificates.py [--pairs N] [--seeds N]

Of every kind of pair the share whose true ρ exceeds the upper bound at z standard errors, over the Gaussian tail
probability of z, beside the same for z plain standard errors of atanh ρ̂; and the bound's width over that of the latter.
A certificate rests on the bound at one pair, fixed before the signs are drawn: at most 1 is wanted.  Prints a Markdown
section; benchmarks/RESULTS.md holds one.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from measure import machine
from scipy import stats

from universal_neurons.statistics import Batch, Block, Key, ShardEnergies, SignedSums, Signs
from universal_neurons.statistics.certainty import upper_bound

SHARDS, POSITIONS, GROUP_SIZE = 8, 2048, 16
TOKENS = SHARDS * POSITIONS
STANDARD_ERRORS = (2.0, 3.0, 3.5)
Pairs = tuple[np.ndarray, np.ndarray]
draw = np.random.default_rng(0)


def unit(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1."""
    return (values - values.mean(0)) / values.std(0)


def gaussian(n: int) -> np.ndarray:
    """Independent Gaussians."""
    return draw.standard_normal((TOKENS, n))


def mixed(
    make: Callable[[int], np.ndarray], rho: float, first: int = TOKENS, louder: float = 1.0
) -> Callable[[int], Pairs]:
    """Pairs of this ρ, both of independent parts; the `first` positions, or all, are louder."""

    def pairs(n: int) -> Pairs:
        x, noise = unit(make(n)), unit(make(n))
        y = rho * x + np.sqrt(1 - rho**2) * noise
        for part in (x, y):
            part[:first] *= louder
        return x, y

    return pairs


def flipped(shards: int) -> Callable[[int], Pairs]:
    """Pairs of which one is the other, but negated in some shards."""

    def pairs(n: int) -> Pairs:
        x = gaussian(n)
        sign = np.ones((SHARDS, n))
        for pair in range(n):
            sign[draw.choice(SHARDS, shards, replace=False), pair] = -1
        return x, x * np.repeat(sign, POSITIONS, 0)

    return pairs


def in_few(count: int, energy: float, way: str) -> Callable[[int], Pairs]:
    """Pairs that are alike but in a few positions of one shard with this energy: of each its own, added, or opposite."""

    def pairs(n: int) -> Pairs:
        x = gaussian(n) * np.sqrt(1 - energy if way != "added" else 1)
        y = x.copy()
        for pair in range(n):
            places = [draw.choice(POSITIONS, count, replace=False) for _ in range(2)]
            values = np.sqrt(TOKENS * energy / count) * draw.choice([-1, 1], (2, count))
            if way == "added":
                y[places[0], pair] += values[0]
            elif way == "own":
                x[places[0], pair], y[places[1], pair] = values
            else:
                x[places[0], pair], y[places[0], pair] = values[0], -values[0]
        return x, y

    return pairs


def quiet(n: int) -> Pairs:
    """Pairs that are the same but in one shard, where they are independent."""
    x, y = gaussian(n), gaussian(n)
    y[POSITIONS:] = x[POSITIONS:]
    return x, y


KINDS: dict[str, Callable[[int], Pairs]] = {
    "Gaussian, ρ 0.1": mixed(gaussian, 0.1),
    "Gaussian, ρ 0.5": mixed(gaussian, 0.5),
    "Gaussian, ρ 0.9": mixed(gaussian, 0.9),
    "Student t, 3 degrees, ρ 0.5": mixed(lambda n: draw.standard_t(3, (TOKENS, n)), 0.5),
    "lognormal, σ 2, ρ 0.5": mixed(lambda n: np.exp(2 * gaussian(n)), 0.5),
    "active in 1 of 100, ρ 0.5": mixed(lambda n: gaussian(n) * (draw.random((TOKENS, n)) < 0.01), 0.5),
    "eight times louder in one shard, ρ 0.5": mixed(gaussian, 0.5, POSITIONS, 8.0),
    "negated in one shard": flipped(1),
    "negated in two shards": flipped(2),
    "negated in three shards": flipped(3),
    "independent in one shard": quiet,
    "half the energy in one position of each": in_few(1, 0.5, "own"),
    "a tenth in one position of each": in_few(1, 0.1, "own"),
    "half in five": in_few(5, 0.5, "own"),
    "half in a hundred": in_few(100, 0.5, "own"),
    "duplicates, a tenth added in two positions": in_few(2, 0.1, "added"),
    "duplicates, a tenth added in ten": in_few(10, 0.1, "added"),
    "duplicates, half added in fifty": in_few(50, 0.5, "added"),
    "opposite in two positions of a twentieth": in_few(2, 0.05, "opposite"),
    "opposite in ten of a tenth": in_few(10, 0.1, "opposite"),
    "opposite in forty of a quarter": in_few(40, 0.25, "opposite"),
}


def sketched_rho(values: torch.Tensor, seed: int) -> torch.Tensor:
    """ρ̂ of the first half of the columns with the second, pair by pair."""
    signs, parts = Signs(GROUP_SIZE, seed), []
    sums = SignedSums(values.shape[1], torch.device("cpu"), torch.float32)
    for shard, part in enumerate(values.split(POSITIONS)):
        sums.start(signs.groups(POSITIONS))
        sums.add(part, *signs.of(shard, POSITIONS))
        parts.append(sums.sums.double())
    u, v = torch.cat(parts).chunk(2, 1)
    return (u * v).sum(0) / (u.square().sum(0) * v.square().sum(0)).sqrt()


def row_of(kind: str, pairs: int, seeds: int) -> tuple[str, list[float]]:
    """A kind's row of the table, and the shares above the bound over the Gaussian's."""
    values = torch.from_numpy(np.concatenate([unit(part) for part in KINDS[kind](pairs)], 1).astype(np.float32))
    energies = ShardEnergies("a", 2 * pairs, Signs(GROUP_SIZE, 0))
    for part in values.split(POSITIONS):
        energies.update(Batch({Key("a"): Block(part)}))
        energies.fold()
    squares = values.double().square()
    tails = energies.result().tails(squares.sum(0), squares.amax(0))
    mine, theirs = tails.chunk(2, 1)
    rho = (values[:, :pairs].double() * values[:, pairs:]).mean(0)
    sure, plain, widths = np.zeros(len(STANDARD_ERRORS)), np.zeros(len(STANDARD_ERRORS)), []
    for seed in range(seeds):
        sketch = sketched_rho(values, seed)
        for place, z in enumerate(STANDARD_ERRORS):
            bound = upper_bound(sketch, mine, theirs, z)
            error = (sketch.clamp(-1 + 1e-12, 1 - 1e-12).atanh() + z * (mine[0] * theirs[0]).sqrt()).tanh()
            sure[place] += int((bound < rho).sum())
            plain[place] += int((error < rho).sum())
        widths.append(float(((bound - sketch) / (error - sketch)).median()))
    expected = stats.norm.sf(STANDARD_ERRORS) * pairs * seeds
    cells = [f"{float(rho.median()):.2f}", f"{float(mine[3].median()):.3f}"]
    cells += [f"{p:.2f} / {s:.2f}" for p, s in zip(plain / expected, sure / expected)]
    return f"| {kind} | " + " | ".join([*cells, f"{np.mean(widths):.1f}×"]) + " |", list(sure / expected)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    rows = [row_of(kind, options.pairs, options.seeds) for kind in KINDS]
    print(f"""## certificates

`python benchmarks/certificates.py --pairs {options.pairs} --seeds {options.seeds}`; {TOKENS:,} positions in {SHARDS} shards, groups of
{GROUP_SIZE}; {options.pairs * options.seeds:,} cases of each kind. {machine()}

True ρ above its bound, over the Gaussian tail: by plain standard errors / by the bound. At most 1 is wanted of the latter; the highest is
{max(max(shares) for _, shares in rows):.2f}.

| pairs | ρ | max x² / Σ x² | {" | ".join(f"z = {z:g}" for z in STANDARD_ERRORS)} | width at {STANDARD_ERRORS[-1]:g} |
|---|---|---|---|---|---|---|""")
    print("\n".join(row for row, _ in rows))


if __name__ == "__main__":
    main()
