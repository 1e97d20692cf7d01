"""What do labels cost?  python benchmarks/labels.py [--tokens 250000] [--rounds 1] [--only study|groupby]

1. The study of the five bundled models with and without the labels stage, side by side (spaCy's annotation is cached
   before: it is read once per corpus, whatever the models).
2. Variance reductions of all labels with all neurons of one bundled model, against the way of the paper's authors: a
   pandas group-by per label, on the same activations and labels, in one run; and whether the two agree.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from universal_neurons import StudyConfig, TokenDataset, run_study
from universal_neurons.features import NeuronSource
from universal_neurons.labels import Labelling
from universal_neurons.models import find_tokenizer
from universal_neurons.passes import Pass
from universal_neurons.progress import Reporter
from universal_neurons.statistics import LABELS
from universal_neurons.study import decide
from universal_neurons.study.resolve import load_models, resolve

GROUPBY_LABELS = 40
SEEDS = tuple(f"bundled/seed-{seed}" for seed in range(1, 6))
GROUPBY_TOKENS = 32_768
WITHOUT = ("weights", "statistics", "universality")


def prepared(tokens: int, models: tuple[str, ...]):
    """Models, packed tokens and labels of a configuration; the annotation is in the cache afterwards."""
    config = decide(StudyConfig(models=models, max_tokens=tokens))
    loaded = load_models(config)
    config = resolve(config, loaded)
    tokenizer = find_tokenizer(config, loaded)
    packed = TokenDataset.load(config, tokenizer, context=config.context)
    labelling = Labelling(config, loaded, packed, tokenizer, {})
    labels = labelling.build(Reporter(quiet=True))
    return loaded, packed, labelling, labels


def studies(tokens: int, rounds: int) -> None:
    models, packed, _, labels = prepared(tokens, SEEDS)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for name, stages in (("without", WITHOUT), ("with", ())):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                run_study(
                    StudyConfig(models=SEEDS, max_tokens=tokens, stages=stages, out=str(Path(folder) / "run")),
                    progress=False,
                )
                seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    neurons = sum(model.n_neurons for model in models)
    print(f"\nFive bundled models, {packed.n_tokens:,} tokens, {len(labels.all):,} labels, {neurons:,} neurons;")
    print(f"medians of {rounds}, {torch.get_num_threads()} threads.\n")
    print("| study | seconds |\n|---|---|")
    print(f"| without labels | {middle['without']:.1f} |\n| with all labels | {middle['with']:.1f} |")
    print(f"| ratio, at most 1.5 wanted | {middle['with'] / middle['without']:.2f} |")


def groupby() -> None:
    (model,), packed, labelling, labels = prepared(GROUPBY_TOKENS, ("bundled/seed-1",))
    source = labelling.source()
    run = Pass([NeuronSource(model)], labelling.recipes(source.width), [source])
    rows = np.arange(len(packed))
    shards = packed.shards(rows)
    ours = 0.0
    run._look(packed, rows)
    blocks = []
    labelling.dense = True
    dense = labelling.source()
    labelling.dense = False
    run.sources[model.name].pre = True
    for shard in shards:
        for _, batch in run.batches(packed, shard, 2048):
            kept = rows_of(packed, batch)
            started = time.perf_counter()
            source.batch(*kept)
            for accumulator in run.accumulators:
                accumulator.update(batch)
            ours += time.perf_counter() - started
            blocks.append((batch.blocks[model.name].values.clone(), dense.batch(*kept)[0][LABELS].values))
        started = time.perf_counter()
        for accumulator in run.accumulators:
            accumulator.fold()
        ours += time.perf_counter() - started
    evidence = labelling.evidence(run.accumulators)
    started = time.perf_counter()
    reductions = evidence.reductions(model.name)[:-1]
    ours += time.perf_counter() - started

    values = torch.cat([block for block, _ in blocks]).numpy()
    holds = torch.cat([block for _, block in blocks]).bool().numpy()
    n_words = len(labels.word_labels) + len(labels.previous_labels)
    often = np.flatnonzero((holds[:, :n_words].sum(0) >= 20) & (holds[:, :n_words].mean(0) < 0.99))
    chosen = often[np.linspace(0, len(often) - 1, GROUPBY_LABELS).astype(int)]
    frame = pd.DataFrame(values.astype(np.float64))
    total = frame.var(ddof=0)
    worst = 0.0
    started = time.perf_counter()
    pandas_reductions = []
    for label in chosen:
        groups = frame.groupby(holds[:, label])
        inside = groups.var(ddof=0)
        share = groups.size() / len(frame)
        pandas_reductions.append(1 - (inside.mul(share, axis=0).sum() / total).to_numpy())
    pandas_seconds = time.perf_counter() - started
    for label, theirs_one in zip(chosen, pandas_reductions):
        worst = max(worst, float(np.nanmax(np.abs(np.abs(reductions[label].numpy()) - theirs_one))))
    n = values.shape[1]
    ours_each, theirs_each = ours / (len(reductions) * n), pandas_seconds / (len(chosen) * n)
    print(f"\nOne bundled model, {len(values):,} counted tokens, {n:,} neurons; activations at hand for both.\n")
    print("| | labels | seconds | µs per label and neuron |\n|---|---|---|---|")
    print(f"| ours: sums, co-moments, variance reductions | {len(reductions):,} | {ours:.2f} | {1e6 * ours_each:.3f} |")
    print(f"| pandas group-by per label | {len(chosen)} | {pandas_seconds:.2f} | {1e6 * theirs_each:.3f} |")
    print(f"| faster by, at least 50 wanted | | | {theirs_each / ours_each:.0f}× |")
    print(f"\nLargest difference of a variance reduction: {worst:.1g}.")


def rows_of(packed: TokenDataset, batch) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a batch and its counted positions in them."""
    row = batch.index["row"].numpy()
    rows = np.unique(row)
    return rows, np.searchsorted(rows, row) * packed.context + batch.index["position"].numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=("study", "groupby"))
    arguments = parser.parse_args()
    print("## labels\n\n`python benchmarks/labels.py`")
    if arguments.only != "study":
        groupby()
    if arguments.only != "groupby":
        studies(arguments.tokens, arguments.rounds)


if __name__ == "__main__":
    main()
