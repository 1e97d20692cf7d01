"""How right are the fast searches?  The bundled suite, many seeds of signs (benchmarks/scale.py accuracy)."""

import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measure import machine
from searches import settings_of

import universal_neurons as un
from universal_neurons.config import Settings
from universal_neurons.features import NeuronSource
from universal_neurons.matching import WHOLE, Evidence, Findings
from universal_neurons.matching.comparison import pieces_of
from universal_neurons.passes import Pass, signs_of
from universal_neurons.passes.panels import study_recipes
from universal_neurons.statistics import BY_POSITION, BY_ROW, Batch, Block, CoMoments, Key, Statistics, What
from universal_neurons.study.screen import Screen


def accuracy(seeds: int, count: int) -> None:
    """The bundled suite: seed-1 against the four others, many seeds of signs."""
    models = [un.load_model(f"bundled/seed-{seed}") for seed in range(1, 6)]
    config = settings_of(models, "screened", max_tokens=count)
    tokens = un.TokenDataset.load(config, models[0].tokenizer, context=models[0].context)
    shards = tokens.shards(np.arange(len(tokens)))
    kept: list[tuple[dict[str, torch.Tensor], np.ndarray]] = []
    sources = [NeuronSource(model) for model in models]
    run = Pass(sources, [])
    run.settle_means(tokens, shards)
    for shard in shards:
        start = int(shard.rows[0])
        places = []
        values: dict[str, list[torch.Tensor]] = {model.name: [] for model in models}
        for _, batch in run.batches(tokens, shard, 2048):
            places.append((batch.index[BY_ROW] - start) * tokens.context + batch.index[BY_POSITION])
            for name, parts in values.items():
                parts.append(batch.blocks[Key(name)].values.clone())
        joined = {name: torch.cat(parts) for name, parts in values.items()}
        kept.append((joined, torch.cat(places).numpy()))
    names = [model.name for model in models]
    asked = [(names[0], other) for other in names[1:]]
    exact = [_exact_rho(kept, *pair) for pair in asked]
    best = torch.stack([rho.amax(1) for rho in exact])
    index = torch.stack([rho.argmax(1) for rho in exact])
    pairs = [(models[0], other) for other in models[1:]]
    rows = []
    for seed in range(seeds):
        config = settings_of(models, "screened", max_tokens=count, seed=seed)
        rows.append(_one_seed(config, models, pairs, asked, kept, shards, tokens.context, sources, exact, best, index))
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    worst = {key: max(row[key] for row in rows) for key in rows[0]}
    cases = seeds * int((best != 0).sum())  # living neurons
    high = int((best >= 0.3).sum()) * seeds
    print(f"""## scale: accuracy

`python benchmarks/scale.py accuracy --seeds {seeds} --tokens {count}`; bundled seed-1 ({models[0].n_neurons:,} neurons) against seeds 2–5,
{tokens.counted:,} counted tokens, groups of {config.group_size}, {seeds} seeds of signs: {cases:,} matches.
{machine()}

| | |
|---|---|
| sketched ρ, all pairs: rms error | {math.sqrt(total["square"] / seeds):.4f} |
| the worst error | {worst["worst"]:.3f} |
| sketch alone finds the best match | {total["sketch"] / cases:.2%}; of ρ ≥ 0.3 {total["sketch_high"] / high:.2%} |
| its best ρ, mean error before / after the correction | {total["raw"] / seeds:+.4f} / {total["corrected"] / seeds:+.4f} |
| its baseline, mean error | {total["baseline"] / seeds:+.4f} |
| screened finds the best match | {total["found"] / cases:.3%} |
| of those with ρ ≥ 0.3, at least 99.9 % wanted | {total["found_high"] / high:.3%} |
| screened: max error of the best ρ where found, against float64 | {worst["error"]:.1e} |
| certified | {total["certified"] / cases:.1%}; of ρ ≥ 0.3 {total["certified_high"] / high:.1%} |
| certified and right, 100 % wanted | {total["right"] / max(total["certified"], 1):.4%} of {total["certified"]:,} |
| candidates a neuron | {total["candidates"] / cases:.1f} |
""")


Kept = Sequence[tuple[dict[str, torch.Tensor], np.ndarray]]


def _exact_rho(kept: Kept, left: str, right: str) -> torch.Tensor:
    cross = 0.0
    sums = [0.0, 0.0]
    squares = [0.0, 0.0]
    count = 0
    for blocks, _ in kept:
        values = [blocks[name].double() for name in (left, right)]
        cross = cross + values[0].T @ values[1]
        sums = [total + value.sum(0) for total, value in zip(sums, values)]
        squares = [total + value.square().sum(0) for total, value in zip(squares, values)]
        count += len(values[0])
    variances = [square - total.square() / count for square, total in zip(squares, sums)]
    spread = [variance.rsqrt().nan_to_num(posinf=0.0) for variance in variances]  # a dead neuron correlates with none
    return (cross - torch.outer(sums[0], sums[1]) / count) * spread[0][:, None] * spread[1]


def _feed(accumulators: Iterable[Any], batch: Batch) -> None:
    for accumulator in accumulators:
        if accumulator.wants(batch):
            accumulator.update(batch)
            accumulator.fold()


def _one_seed(
    config: Settings,
    models: Any,
    pairs: Any,
    asked: Any,
    kept: Kept,
    shards: Any,
    context: int,
    sources: Any,
    exact: Sequence[torch.Tensor],
    best: torch.Tensor,
    index: torch.Tensor,
) -> dict[str, float]:
    """One seed of signs, from activations that are at hand; dead neurons have no sketched ρ and count in no mean."""
    signs = signs_of(config)
    assert signs is not None
    accumulators = [recipe(device="cpu") for recipe in study_recipes(models, pairs, config)]
    for shard, (blocks, places) in zip(shards, kept):
        positions = len(shard.rows) * context
        group, sign = signs.of(shard.index, positions)
        n = np.bincount(group[places], sign[places], signs.groups(positions))
        batch = {Key(name): Block(values) for name, values in blocks.items()}
        for source in sources:
            source.sums.start(len(n))
            source.sums.add(blocks[source.name], group[places], sign[places])
            batch[Key(source.name, What.SUMS)] = source.sums.finish("", n, "float32")
        _feed(accumulators, Batch(batch, shard=shard.index))
    findings = Findings(config)
    names = [model.name for model in models]
    study = SimpleNamespace(models=models, asked=asked, names=names, config=config, n_groups=1, subsets=[])
    screen = Screen(study, findings)
    evidence = Evidence(Statistics(accumulators), [0], What.SUMS)
    findings.take_in(WHOLE, evidence, asked, draws=2, z=screen.z)
    sketched = [findings.of[(WHOLE, *pair)] for pair in asked]
    raw = torch.stack([finding.pieces[0].matches.corr[:, 0] for finding in sketched])
    corrected = torch.stack([finding.whole(1).matches.corr[:, 0] for finding in sketched])
    first = torch.stack([finding.pieces[0].matches.index[:, 0] for finding in sketched])
    errors = [_sketched_rho(evidence, *pair) - rho for pair, rho in zip(asked, exact)]
    baseline = torch.stack([finding.pieces[0].maxima.corr for finding in sketched]).mean((0, 1))
    true_baseline = _true_baseline(models, kept, asked)
    candidates = [recipe(device="cpu") for recipe in screen.recipes()]
    for shard, (blocks, _) in zip(shards, kept):
        _feed(candidates, Batch({Key(name): Block(values) for name, values in blocks.items()}, shard=shard.index))
    screen.settle(candidates, accumulators)
    matches = [findings.of[(WHOLE, *pair)].pieces[0].matches for pair in asked]
    corr = torch.stack([m.corr[:, 0] for m in matches])
    agree = torch.stack([m.index[:, 0] for m in matches]) == index
    certified = torch.stack([m.certified for m in matches])
    high = best >= 0.3
    return {
        "square": float(torch.stack(errors).square().nanmean()),
        "worst": float(torch.stack(errors).abs().nan_to_num().max()),
        "sketch": int((first == index).sum()),
        "sketch_high": int((first == index)[high].sum()),
        "raw": float((raw - best).nanmean()),
        "corrected": float((corrected - best).nanmean()),
        "baseline": float((baseline - true_baseline).nanmean()),
        "found": int(agree.sum()),
        "found_high": int(agree[high].sum()),
        "error": float((corr - best)[agree].abs().max()),
        "certified": int(certified.sum()),
        "certified_high": int(certified[high].sum()),
        "right": int((certified & agree).sum()),
        "candidates": sum(len(c.pairs) for c in candidates),
    }


def _sketched_rho(evidence: Evidence, left: str, right: str) -> torch.Tensor:
    ((_, _, cross),) = evidence.panels(CoMoments, left, right)
    return cross.centred() * evidence.norms(left)[:, None] * evidence.norms(right)


_BASELINE: dict[str, torch.Tensor] = {}


def _true_baseline(models: Any, kept: Kept, asked: Any) -> torch.Tensor:
    """The exact baseline of the same two draws, averaged over models and draws."""
    if "there" not in _BASELINE:
        config = settings_of(models, "exact")
        pairs = [(models[0], other) for other in models[1:]]
        accumulators = [recipe(device="cpu") for recipe in study_recipes(models, pairs, config)]
        for number, (blocks, _) in enumerate(kept):
            _feed(accumulators, Batch({Key(name): Block(values) for name, values in blocks.items()}, shard=number))
        evidence = Evidence(Statistics(accumulators), [0])
        maxima = [pieces_of(evidence, *pair, config, draws=2)[0].maxima.corr for pair in asked]
        _BASELINE["there"] = torch.stack(maxima).mean((0, 1))
    return _BASELINE["there"]
