"""Do 95 % intervals hold 95 % of the values on other text?

    python benchmarks/coverage.py [--tokens N] [--models N] [--draws N]

The bundled held-out text is cut into six disjoint parts.  Of each part a study is made: matches and baselines from the rows
that choose, intervals from its held-out stretches.  The value on other text is that of the same matches and rotated
neurons on every third row of the five other parts.  Twice:

- `alike`: parts are dealt ten rows at a time, so that all read of the same documents;
- `drifting`: a part is a sixth of the text in its order; other parts hold other documents.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from measure import machine
from searches import settings_of

import universal_neurons as un
from universal_neurons.config import Settings
from universal_neurons.features import NeuronSource
from universal_neurons.matching import (
    ROTATED_DRAWS,
    Comparison,
    Evidence,
    HeldOut,
    PairedMoments,
    RotatedMoments,
    corr_interval,
    excess_estimate,
    groups_of,
    heldout_baseline,
)
from universal_neurons.matching.baselines import Baseline
from universal_neurons.matching.comparison import compare
from universal_neurons.models import Model
from universal_neurons.passes import Pass, model_pairs
from universal_neurons.passes.panels import study_recipes
from universal_neurons.statistics import Jackknifed, Recipe, Statistics
from universal_neurons.statistics.jackknife import quantile, standard_error
from universal_neurons.study.tables import FEW_STRETCHES, UNLIKE
from universal_neurons.text import Shard, TokenDataset

PARTS, DEALT, THINNED = 6, 10, 3
KINDS = ("ρ of the match", "excess", "excess before", "excess, standardised")


@dataclass(frozen=True)
class Matched:
    """What some rows say of an asker's matches and their rotated neurons."""

    matches: list[HeldOut]
    raw: list[Jackknifed]
    standardised: list[Jackknifed]


def matched(
    sources: Sequence[NeuronSource],
    tokens: TokenDataset,
    stretches: Sequence[np.ndarray],
    comparison: Comparison,
    deviations: dict[str, torch.Tensor],
    config: Settings,
) -> Matched:
    """The same matches and rotated neurons on other rows."""
    recipes: list[Recipe] = []
    asker, n = comparison.asker, len(stretches)
    units = {source.name: source.units for source in sources}
    for place, other in enumerate(comparison.others):
        recipes += [partial(PairedMoments, asker, other, torch.from_numpy(comparison.best_index[place]), n)]
        for baseline, scale in ((comparison.raw, None), (comparison.standardised, deviations[other])):
            rotated = torch.from_numpy(baseline.units[:ROTATED_DRAWS, place].copy())
            of = (asker, other, rotated, units[other], config.baseline, config.seed, n)
            recipes += [partial(RotatedMoments, *of, scale=scale)]
    run = Pass(sources, recipes)
    run.run(tokens, [Shard(number, rows) for number, rows in enumerate(stretches)], batch_tokens=config.batch_tokens)
    kept = Statistics(run.accumulators)

    def rotated_of(standardised: bool) -> list[Jackknifed]:
        return [kept.get(RotatedMoments, asker, o, standardised=standardised).result() for o in comparison.others]

    pairs = [kept.get(PairedMoments, asker, other).result() for other in comparison.others]
    return Matched(pairs, rotated_of(False), rotated_of(True))


def before(heldout: Matched, baseline: Baseline) -> tuple[np.ndarray, np.ndarray]:
    """The excess's interval without the baseline's dependence on the text: t of 19 degrees, beside its draws' error."""
    corr = np.mean([match.corr.value for match in heldout.matches], 0)
    error = standard_error(np.mean([match.corr.without for match in heldout.matches], 0))
    draws = baseline.maxima.mean(1)
    draw_error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    reach = quantile(len(heldout.matches[0].corr.without)) * np.sqrt(error**2 + draw_error**2)
    excess = corr - baseline.mean.mean(0)
    return excess - reach, excess + reach


def one_part(
    models: Sequence[Model], tokens: TokenDataset, rows: np.ndarray, rest: np.ndarray, config: Settings
) -> dict[str, np.ndarray]:
    """Of one part: by kind of number whether each neuron's interval holds its value on the rest, and its width."""
    chosen, stretches = replace(tokens, lengths=tokens.lengths[rows]).split()
    sources = [NeuronSource(model, config.gemm_dtype) for model in models]
    run = Pass(sources, study_recipes(models, model_pairs(models, "reference"), config))
    run.run(tokens, tokens.shards(rows[chosen]), batch_tokens=config.batch_tokens)
    evidence = Evidence(Statistics(run.accumulators), groups_of(run.accumulators))
    names = [model.name for model in models]
    comparison = compare(evidence, names[0], names[1:], config)
    deviations = {name: evidence.norms(name).nan_to_num(nan=0) for name in names}
    heldout = matched(sources, tokens, [rows[s] for s in stretches], comparison, deviations, config)
    other = matched(sources, tokens, [rest], comparison, deviations, config)

    raw = heldout_baseline(comparison.raw, heldout.raw, heldout.matches)
    rescaled = heldout_baseline(comparison.standardised, heldout.standardised, heldout.matches)
    there = heldout_baseline(comparison.raw, other.raw, other.matches)
    there_rescaled = heldout_baseline(comparison.standardised, other.standardised, other.matches)
    excess = excess_estimate(heldout.matches, comparison.raw, raw)
    standardised = excess_estimate(heldout.matches, comparison.standardised, rescaled)
    corr = np.mean([match.corr.value for match in other.matches], 0)
    of_excess = corr - np.mean([b.value for b in there], 0)
    ends = {
        "excess": ((excess.low, excess.high), of_excess),
        "excess before": (before(heldout, comparison.raw), of_excess),
        "excess, standardised": (
            (standardised.low, standardised.high),
            corr - np.mean([b.value for b in there_rescaled], 0),
        ),
    }
    pairs = [corr_interval(match) for match in heldout.matches]
    ends[KINDS[0]] = (
        (np.concatenate([low for low, _ in pairs]), np.concatenate([high for _, high in pairs])),
        np.concatenate([match.corr.value for match in other.matches]),
    )
    variances = {name: evidence.variances(name).numpy() for name in names}
    few = np.zeros(len(corr), bool)
    for place, match in enumerate(heldout.matches):
        chosen_there = np.stack([variances[names[0]], variances[names[1 + place]][comparison.best_index[place]]])
        few |= (match.stretches < FEW_STRETCHES) | (
            np.abs(np.log(match.variances / chosen_there)) > np.log(UNLIKE)
        ).any(0)
    kept = {"universal": comparison.excess > config.threshold, "few": few, "alive": np.isfinite(comparison.excess)}
    for kind, ((low, high), value) in ends.items():
        kept[f"{kind}/held"], kept[f"{kind}/width"] = (low <= value) & (value <= high), high - low
    return kept


def table(parts: Sequence[dict[str, np.ndarray]]) -> str:
    """Coverage and median width of each kind, of all neurons and of some."""
    lines = [
        "| | all | universal | marked | not marked | width, all | width, universal |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        held, width, alive, universal, few = [], [], [], [], []
        for part in parts:
            times = len(part[f"{kind}/held"]) // len(part["alive"])
            for into, name in ((held, f"{kind}/held"), (width, f"{kind}/width")):
                into.append(part[name])
            for into, name in ((alive, "alive"), (universal, "universal"), (few, "few")):
                into.append(np.tile(part[name], times))
        h, w, a, u, f = (np.concatenate(each) for each in (held, width, alive, universal, few))
        cells = [f"{h[mask].mean():.1%}" for mask in (a, a & u, a & f, a & ~f)]
        cells += [f"{np.nanmedian(w[mask]):.3f}" for mask in (a, a & u)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10**6)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    models = [un.load_model(f"bundled/seed-{seed}") for seed in range(1, given.models + 1)]
    config = settings_of(models, "exact", max_tokens=given.tokens, draws=given.draws)
    tokens = TokenDataset.load(config, models[0].tokenizer, context=models[0].context)
    every = np.arange(len(tokens))
    print(f"""## coverage

`python benchmarks/coverage.py --tokens {given.tokens} --models {given.models} --draws {given.draws}`: bundled seed-1 against
{given.models - 1} others, {tokens.counted:,} counted tokens in {PARTS} parts.
{machine()}
""")
    for name, part_of in (("alike", every // DEALT % PARTS), ("drifting", every * PARTS // len(tokens))):
        parts = [
            one_part(models, tokens, every[part_of == n], every[part_of != n][::THINNED], config) for n in range(PARTS)
        ]
        print(f"Text that is {name}:\n\n{table(parts)}\n", flush=True)


if __name__ == "__main__":
    main()
