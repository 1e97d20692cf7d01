"""Is the engine at the machine's limit, and how right are the fast searches?

    python benchmarks/scale.py speed [--shape reduced|small|medium] [--tokens N] [--models N]
    python benchmarks/scale.py accuracy [--seeds N]

`speed`: GPT-2-shaped models with random weights (shape sets the cost), random tokens.  On a CPU one pair of reduced
models (12 × 768 neurons) against the plain way: transformer-lens activations, a float32 product per pair of layers,
sums in float64, a second pass for the rotated baseline.  On a GPU models at full width, and the time of 100 M tokens
extrapolated.  Everything in one process, side by side: seconds of every stage, shares of the measured peak of the
product, memory against the estimate, slopes in tokens and in neurons.

`accuracy`: the bundled suite, many seeds of signs: errors of sketched ρ, recall of the best match, certificates.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from throughput import machine, timed
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import universal_neurons as un
from universal_neurons.accumulators import SUMS, Batch, Block
from universal_neurons.baselines import rotation
from universal_neurons.checkpoints import BUNDLED_TOKENIZER
from universal_neurons.comoments import CoMoments
from universal_neurons.compare import Evidence, look
from universal_neurons.estimate import gemm_rate, memory_plan
from universal_neurons.findings import WHOLE, Findings
from universal_neurons.models import Model, quiet_transformers
from universal_neurons.panels import model_pairs, signs_of, study_recipes
from universal_neurons.plan import resolve
from universal_neurons.screen import Screen
from universal_neurons.stream import NeuronSource, Pass, provisional_state, settle_from

torch.set_grad_enabled(False)
SHAPES = {
    "reduced": {"n_layer": 12, "n_embd": 192, "n_inner": 768, "n_head": 3},
    "small": {"n_layer": 12, "n_embd": 768, "n_inner": 3072, "n_head": 12},
    "medium": {"n_layer": 24, "n_embd": 1024, "n_inner": 4096, "n_head": 16},
}
CONTEXT = 512
PAPER_TOKENS = 100_000_000
PLAIN_ROWS = 8


def random_model(shape: str, seed: int, device: str, layers: int | None = None) -> Model:
    """A GPT-2 of random weights and GPT-2's vocabulary."""
    torch.manual_seed(seed)
    shape_of = SHAPES[shape] | ({"n_layer": layers} if layers else {})
    network = GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, initializer_range=0.1, **shape_of))
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        dtype = "bfloat16" if device == "cuda" else "float32"
        model = un.load_model(folder, device=device, dtype=dtype)
    model.name = f"{shape}-{seed}"
    return model


def random_tokens(count: int) -> un.TokenDataset:
    """Rows of random tokens; positions 0 are not counted."""
    draw = np.random.default_rng(0)
    ids = (draw.integers(1, 50_257, CONTEXT - 1) for _ in range(count // CONTEXT))
    return un.TokenDataset.from_pieces((("", row) for row in ids), context=CONTEXT, bos=0, masked={0})


@dataclass
class Run:
    """One search from beginning to end, its stages timed."""

    models: Sequence[Model]
    tokens: un.TokenDataset
    config: un.StudyConfig
    seconds: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Do and time a stage."""
        seconds, result = timed(work)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        return result

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def go(self) -> Any:
        """Pass, answer and, of a screened search, the second pass."""
        config, models = self.config, self.models
        names = [model.name for model in models]
        shards = self.tokens.shards(np.arange(len(self.tokens)))
        asked = [(names[0], other) for other in names[1:]]
        sources = [NeuronSource(model, config.gemm_dtype) for model in models]
        recipes = study_recipes(models, model_pairs(models, "reference"), config)
        run = Pass(sources, recipes, signs=signs_of(config))
        read = partial(run.run, self.tokens, shards, batch_tokens=config.batch_tokens)
        self.stage("pass", read)
        findings = Findings(config)
        study = SimpleNamespace(models=models, asked=asked, names=names, config=config, n_groups=1, subsets=[])
        screen = Screen(study, findings)
        evidence = Evidence(run.accumulators, [0], "" if config.search == "exact" else SUMS)
        z = screen.z if config.search == "screened" else None
        self.stage("answer", lambda: findings.look(WHOLE, evidence, asked, draws=1, z=z))
        if z is not None:
            again = [NeuronSource(model, config.gemm_dtype) for model in models]
            settle_from(provisional_state(sources), again)
            second = self.stage("candidates", lambda: Pass(again, screen.recipes()))
            self.stage("second pass", partial(second.run, self.tokens, shards, batch_tokens=config.batch_tokens))
            self.stage("candidates", lambda: screen.settle(second.accumulators, run.accumulators))
        self.doubts = findings.doubts(asked)
        return self.stage("answer", lambda: findings.comparison(WHOLE, names[0], names[1:]))


def search_config(search: str, device: str, **more: Any) -> un.StudyConfig:
    """A resolved configuration of one search."""
    return resolve(un.StudyConfig(search=search, device=device, stages=("universality",), **more), 2)


def plain_way(lenses: Sequence[Any], tokens: un.TokenDataset, layers: int, width: int) -> Any:
    """Activations from transformer-lens, a float32 product per pair of layers, float64 sums, everything again rotated."""
    turned = rotation("rotation", width, 0, 0).float()
    answers = []
    for rotate in (False, True):
        cross = torch.zeros(layers, layers, width, width, dtype=torch.float64)
        sums = torch.zeros(2, layers, width, dtype=torch.float64)
        squares = torch.zeros(2, layers, width, dtype=torch.float64)
        counted = 0
        for start in range(0, len(tokens), PLAIN_ROWS):
            rows = np.arange(start, min(start + PLAIN_ROWS, len(tokens)))
            ids, keep = torch.from_numpy(tokens.ids(rows)), torch.from_numpy(tokens.mask(rows)).flatten()
            left, right = (_lens_layers(lens, ids, keep) for lens in lenses)
            if rotate:
                right = [layer @ turned.T for layer in right]
            for side, values in enumerate((left, right)):
                for layer, activations in enumerate(values):
                    sums[side, layer] += activations.sum(0).double()
                    squares[side, layer] += activations.square().sum(0).double()
            for i, mine in enumerate(left):
                for j, theirs in enumerate(right):
                    cross[i, j] += (mine.T @ theirs).double()
            counted += int(keep.sum())
        spread = (squares - sums.square() / counted).rsqrt()
        best = torch.full((layers, width), -torch.inf, dtype=torch.float64)
        for i in range(layers):
            for j in range(layers):
                centred = cross[i, j] - torch.outer(sums[0, i], sums[1, j]) / counted
                best[i] = torch.maximum(best[i], (centred * spread[0, i][:, None] * spread[1, j]).amax(1))
        answers.append(best.flatten())
    return answers


def _lens_layers(lens: Any, ids: torch.Tensor, keep: torch.Tensor) -> list[torch.Tensor]:
    _, cache = lens.run_with_cache(ids, names_filter=lambda n: n.endswith("mlp.hook_post"), return_type=None)
    return [cache[f"blocks.{layer}.mlp.hook_post"].flatten(0, 1)[keep] for layer in range(lens.cfg.n_layers)]


def to_lens(model: Model) -> Any:
    """The same network in transformer-lens."""
    from transformer_lens.model_bridge import TransformerBridge

    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        model.hf.save_pretrained(folder)  # its configuration says gelu_new, as GPT-2's
        network = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_TOKENIZER)
        return TransformerBridge.boot_transformers(folder, hf_model=network, tokenizer=tokenizer, device="cpu")


def exact_rows(models: Sequence[Model], tokens: un.TokenDataset, layer: int) -> torch.Tensor:
    """ρ of one layer of the first model with all neurons of the second, in float64."""
    mine = models[0].units.columns(layer)
    total, squares = torch.zeros(2, models[0].n_neurons).double(), torch.zeros(2, models[0].n_neurons).double()
    cross = torch.zeros(models[0].d_mlp, models[1].n_neurons, dtype=torch.float64)
    counted = 0
    for start in range(0, len(tokens), PLAIN_ROWS):
        rows = np.arange(start, min(start + PLAIN_ROWS, len(tokens)))
        keep = torch.from_numpy(tokens.mask(rows)).flatten()
        ids = torch.from_numpy(tokens.ids(rows))
        values = [model.activations(ids).flatten(0, 1)[keep].double() for model in models]
        for side, activations in enumerate(values):
            total[side] += activations.sum(0)
            squares[side] += activations.square().sum(0)
        cross += values[0][:, mine].T @ values[1]
        counted += int(keep.sum())
    spread = (squares - total.square() / counted).rsqrt()
    centred = cross - torch.outer(total[0, mine], total[1]) / counted
    return centred * spread[0, mine][:, None] * spread[1]


def forwards(models: Sequence[Model], tokens: un.TokenDataset, batch_tokens: int) -> None:
    """The forward passes alone."""
    rows = batch_tokens // CONTEXT
    for start in range(0, len(tokens), rows):
        ids = torch.from_numpy(tokens.ids(np.arange(start, min(start + rows, len(tokens)))))
        for model in models:
            model.forward(ids)
    if models[0].device.type == "cuda":
        torch.cuda.synchronize()


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def speed_on_cpu(shape: str, count: int, given: Sequence[str]) -> None:
    """One pair of models, every search and the plain way on the same tokens."""
    models = [random_model(shape, seed, "cpu") for seed in (1, 2)]
    tokens = random_tokens(count)
    counted = tokens.counted
    entries = models[0].n_neurons * models[1].n_neurons
    peak = gemm_rate("cpu", size=3072)
    forward, _ = timed(lambda: forwards(models, tokens, 2048))
    runs, peaks, estimates, answers = {}, {}, {}, {}
    Run(models, random_tokens(4096), search_config("exact", "cpu", context=CONTEXT)).go()
    for search in given:
        before = psutil.Process().memory_info().rss
        config = search_config(search, "cpu", context=CONTEXT)
        runs[search] = Run(models, tokens, config)
        with Watched() as watched:
            answers[search] = runs[search].go()
        peaks[search] = watched.peak - before
        plan = memory_plan(config, models)
        estimates[search] = plan.statistics + plan.blocks + plan.workspace
    layer = 7 % models[0].n_layers
    rows = models[0].units.columns(layer)
    true_best = exact_rows(models, tokens, layer).max(1)
    lenses = [to_lens(model) for model in models]
    plain_seconds, plain = timed(lambda: plain_way(lenses, tokens, models[0].n_layers, models[0].d_mlp))
    peak = max(peak, gemm_rate("cpu", size=3072))
    product = 2.0 * counted * entries / peak
    print(f"""## scale: speed

`python benchmarks/scale.py speed --shape {shape} --tokens {count}`; one pair of GPT-2-shaped models of random weights,
{models[0].n_layers} × {models[0].d_mlp} = {models[0].n_neurons:,} neurons each, {counted:,} counted tokens, one baseline draw, all in one process.
{machine()}
No GPU was to be had: the figures of full width and the GPU's targets are not measured.

| | seconds | faster than the plain way | max error of the best ρ | same best match |
|---|---|---|---|---|""")
    expected = true_best.values.numpy()
    print(f"| the plain way | {plain_seconds:.1f} | | {np.abs(plain[0][rows].numpy() - expected).max():.1e} | |")
    for search, run in runs.items():
        error = np.abs(answers[search].best[0, rows] - expected).max()
        same = (answers[search].best_index[0, rows] == true_best.indices.numpy()).mean()
        print(f"| {search} | {run.total:.1f} | {plain_seconds / run.total:.1f}× | {error:.1e} | {same:.2%} |")
    print(f"""
Errors are against float64, layer {layer}'s {models[0].d_mlp} neurons. {_doubts(runs)}

| stage, seconds | {" | ".join(runs)} |
|---|{"---|" * len(runs)}""")
    for name in ("pass", "second pass", "candidates", "answer"):
        print(f"| {name} | " + " | ".join(f"{run.seconds.get(name, 0.0):.1f}" for run in runs.values()) + " |")
    print(f"""
| | |
|---|---|
| peak of the float32 product, measured here | {peak / 1e9:.0f} GFLOP/s |
| the forward passes alone | {forward:.1f} s |
| all pairs' products at the peak | {product:.1f} s |
| exact: product at the peak / (pass − forwards) | {product / (runs["exact"].seconds["pass"] - forward):.0%} |
| exact: (forwards + product at the peak) / whole | {(forward + product) / runs["exact"].total:.0%} |
""")
    print("| memory, MiB | estimated | measured |\n|---|---|---|")
    for search in runs:
        print(f"| {search} | {estimates[search] >> 20:,} | {peaks[search] >> 20:,} |")
    by_tokens = [(n, _exact_seconds(models, n)) for n in (count // 16, count // 8, count // 4)]
    by_layers = [
        (n * models[0].d_mlp, _exact_seconds([random_model(shape, s, "cpu", n) for s in (1, 2)], count // 8))
        for n in (3, 6, 12)
    ]
    print(f"""
| the pass, exact: log-log slope | at | |
|---|---|---|
| in tokens | {", ".join(f"{n:,}: {seconds:.1f} s" for n, seconds in by_tokens)} | {slope(*zip(*by_tokens)):.2f} |
| in neurons a model | {", ".join(f"{n:,}: {seconds:.1f} s" for n, seconds in by_layers)} | {slope(*zip(*by_layers)):.2f} |
""")


def _doubts(runs: dict[str, Run]) -> str:
    said = []
    if "screened" in runs:
        found = runs["screened"].doubts
        said.append(f"Screened: {found['certified']:,} of {found['matches']:,} matches certified.")
    if "sketch" in runs:
        found = runs["sketch"].doubts
        said.append(f"Sketch: standard error {found['standard_error']:.4f}, best lowered by {found['lowered']:.4f}.")
    return " ".join(said)


def _exact_seconds(models: Sequence[Model], count: int) -> float:
    run = Run(models, random_tokens(count), search_config("exact", "cpu", context=CONTEXT))
    run.go()
    return run.seconds["pass"]


class Watched:
    """The peak of this process's resident memory while open."""

    def __enter__(self) -> "Watched":
        import threading

        self.peak, self.stop = 0, threading.Event()

        def watch() -> None:
            process = psutil.Process()
            while not self.stop.wait(0.02):
                self.peak = max(self.peak, process.memory_info().rss)

        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def speed_on_gpu(shape: str, count: int, number: int, given: Sequence[str]) -> None:
    """Models at full width: shares of the peak, and the paper's 100 M tokens extrapolated."""
    models = [random_model(shape, seed, "cuda") for seed in range(number)]
    tokens = random_tokens(count)
    peak = gemm_rate("cuda", "bfloat16", size=8192, rounds=10)
    forwards(models, random_tokens(16_384 * 2), 16_384)
    forward, _ = timed(lambda: forwards(models, tokens, 16_384))
    entries = sum(a.n_neurons * b.n_neurons for a, b in model_pairs(models, "reference"))
    within = sum(m.n_layers * m.d_mlp**2 for m in models[1:]) * 0.625
    product = 2.0 * tokens.counted * (entries + within) / peak
    print(f"""## scale: speed, {shape}

`python benchmarks/scale.py speed --shape {shape} --tokens {count} --models {number}`; {torch.cuda.get_device_name()},
torch {torch.__version__}; bfloat16 product at its peak here: {peak / 1e12:.0f} TFLOP/s; forward passes alone {forward:.1f} s.

| | pass, s | second pass, s | answer, s | product's share of the peak | end to end | 100 M tokens, extrapolated |
|---|---|---|---|---|---|---|""")
    for search in given:
        config = search_config(search, "cuda", context=CONTEXT)
        run = Run(models, tokens, config)
        torch.cuda.reset_peak_memory_stats()
        run.go()
        seconds = run.seconds
        passes = seconds["pass"] + seconds.get("second pass", 0.0)
        whole = passes * PAPER_TOKENS / count + run.total - passes
        share = f"{product / (seconds['pass'] - forward):.0%}" if search == "exact" else ""
        ends = f"{(forward + product) / run.total:.0%}" if search == "exact" else ""
        answer = run.total - passes
        print(
            f"| {search} | {seconds['pass']:.1f} | {seconds.get('second pass', 0.0):.1f} | {answer:.1f} | {share} | {ends} | {whole / 60:.1f} min |"
        )
        plan = memory_plan(config, models)
        print(
            f"| memory, GiB: estimated {plan.total / 2**30:.1f}, measured {torch.cuda.max_memory_allocated() / 2**30:.1f} | | | | | | |"
        )


def accuracy(seeds: int, count: int) -> None:
    """The bundled suite: seed-1 against the four others, many seeds of signs."""
    models = [un.load_model(f"bundled/seed-{seed}") for seed in range(1, 6)]
    config = search_config("screened", "cpu", max_tokens=count)
    tokens = un.TokenDataset.load(config, models[0].tokenizer, context=models[0].context)
    shards = tokens.shards(np.arange(len(tokens)))
    kept: list[tuple[dict[str, torch.Tensor], np.ndarray]] = []
    sources = [NeuronSource(model) for model in models]
    run = Pass(sources, [])
    run.look(tokens, shards)
    for shard in shards:
        parts = [
            (b.index, {n: block.values.clone() for n, block in b.blocks.items()})
            for _, b in run.batches(tokens, shard, 2048)
        ]
        start = int(shard.rows[0])
        places = torch.cat([(index["row"] - start) * tokens.context + index["position"] for index, _ in parts])
        kept.append(({m.name: torch.cat([values[m.name] for _, values in parts]) for m in models}, places.numpy()))
    names = [model.name for model in models]
    asked = [(names[0], other) for other in names[1:]]
    exact = [_exact_rho(kept, *pair) for pair in asked]
    best = torch.stack([rho.amax(1) for rho in exact])
    index = torch.stack([rho.argmax(1) for rho in exact])
    pairs = [(models[0], other) for other in models[1:]]
    rows = []
    for seed in range(seeds):
        config = search_config("screened", "cpu", max_tokens=count, seed=seed)
        rows.append(_one_seed(config, models, pairs, asked, kept, shards, tokens.context, sources, exact, best, index))
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    worst = {key: max(row[key] for row in rows) for key in rows[0]}
    cases = seeds * best.numel()
    high = int((best >= 0.3).sum()) * seeds
    print(f"""## scale: accuracy

`python benchmarks/scale.py accuracy --seeds {seeds} --tokens {count}`; bundled seed-1 ({models[0].n_neurons:,} neurons) against seeds 2–5,
{tokens.counted:,} counted tokens, groups of {config.group_size}, {seeds} seeds of signs: {cases:,} matches.
{machine()}

| | |
|---|---|
| sketched ρ, all pairs: rms error | {math.sqrt(total["square"] / seeds):.4f} |
| the worst error | {worst["worst"]:.3f} |
| sketch alone finds the best match | {total["sketch"] / cases:.2%}; of ρ ≥ .3 {total["sketch_high"] / high:.2%} |
| its best ρ, mean error before / after the correction | {total["raw"] / seeds:+.4f} / {total["corrected"] / seeds:+.4f} |
| its baseline, mean error | {total["baseline"] / seeds:+.4f} |
| screened finds the best match | {total["found"] / cases:.3%} |
| of those with ρ ≥ .3, at least 99.9 % wanted | {total["found_high"] / high:.3%} |
| screened: max error of the best ρ where found, against float64 | {worst["error"]:.1e} |
| certified | {total["certified"] / cases:.1%}; of ρ ≥ .3 {total["certified_high"] / high:.1%} |
| certified and right, 100 % wanted | {total["right"] / max(total["certified"], 1):.4%} of {total["certified"]:,} |
| candidates a neuron | {total["candidates"] / cases:.1f} |
""")


Kept = Sequence[tuple[dict[str, torch.Tensor], np.ndarray]]


def _exact_rho(kept: Kept, left: str, right: str) -> torch.Tensor:
    cross, sums, squares, count = 0.0, [0.0, 0.0], [0.0, 0.0], 0
    for blocks, _ in kept:
        values = [blocks[name].double() for name in (left, right)]
        cross = cross + values[0].T @ values[1]
        sums = [total + value.sum(0) for total, value in zip(sums, values)]
        squares = [total + value.square().sum(0) for total, value in zip(squares, values)]
        count += len(values[0])
    spread = [(square - total.square() / count).rsqrt() for square, total in zip(squares, sums)]
    return (cross - torch.outer(sums[0], sums[1]) / count) * spread[0][:, None] * spread[1]


def _feed(accumulators: Iterable[Any], batch: Batch) -> None:
    for accumulator in accumulators:
        if accumulator.wants(batch):
            accumulator.update(batch)
            accumulator.fold()


def _one_seed(
    config: un.StudyConfig, models: Any, pairs: Any, asked: Any, kept: Kept, shards: Any, context: int, sources: Any,
    exact: Sequence[torch.Tensor], best: torch.Tensor, index: torch.Tensor,
) -> dict[str, float]:  # fmt: skip
    """One seed of signs, from activations that are at hand."""
    signs = signs_of(config)
    assert signs is not None
    accumulators = [recipe(device="cpu") for recipe in study_recipes(models, pairs, config)]
    for shard, (blocks, places) in zip(shards, kept):
        positions = len(shard.rows) * context
        group, sign = signs.of(shard.index, positions)
        n = np.bincount(group[places], sign[places], signs.groups(positions))
        batch = {name: Block(values) for name, values in blocks.items()}
        for source in sources:
            source.sums.start(len(n))
            source.sums.add(blocks[source.model.name], group[places], sign[places])
            batch[source.model.name + SUMS] = source.sums.finish("", n, "float32")
        _feed(accumulators, Batch(batch, shard=shard.index))
    findings = Findings(config)
    names = [model.name for model in models]
    study = SimpleNamespace(models=models, asked=asked, names=names, config=config, n_groups=1, subsets=[])
    screen = Screen(study, findings)
    evidence = Evidence(accumulators, [0], SUMS)
    findings.look(WHOLE, evidence, asked, draws=2, z=screen.z)
    sketched = [findings.of[(WHOLE, *pair)] for pair in asked]
    raw = torch.stack([finding.pieces[0].matches.corr[:, 0] for finding in sketched])
    corrected = torch.stack([finding.whole(1).matches.corr[:, 0] for finding in sketched])
    first = torch.stack([finding.pieces[0].matches.index[:, 0] for finding in sketched])
    errors = [_sketched_rho(evidence, *pair) - rho for pair, rho in zip(asked, exact)]
    baseline = torch.stack([finding.pieces[0].maxima for finding in sketched]).mean((0, 1))
    true_baseline = _true_baseline(models, kept, asked)
    candidates = [recipe(device="cpu") for recipe in screen.recipes()]
    for shard, (blocks, _) in zip(shards, kept):
        _feed(candidates, Batch({name: Block(values) for name, values in blocks.items()}, shard=shard.index))
    screen.settle(candidates, accumulators)
    matches = [findings.of[(WHOLE, *pair)].pieces[0].matches for pair in asked]
    corr = torch.stack([m.corr[:, 0] for m in matches])
    found = torch.stack([m.index[:, 0] for m in matches]) == index
    certified = torch.stack([m.certified for m in matches])
    high = best >= 0.3
    return {
        "square": float(torch.stack(errors).square().mean()),
        "worst": float(torch.stack(errors).abs().max()),
        "sketch": int((first == index).sum()),
        "sketch_high": int((first == index)[high].sum()),
        "raw": float((raw - best).mean()),
        "corrected": float((corrected - best).mean()),
        "baseline": float((baseline - true_baseline).mean()),
        "found": int(found.sum()),
        "found_high": int(found[high].sum()),
        "error": float((corr - best)[found].abs().max()),
        "certified": int(certified.sum()),
        "certified_high": int(certified[high].sum()),
        "right": int((certified & found).sum()),
        "candidates": sum(len(c.pairs) for c in candidates),
    }


def _sketched_rho(evidence: Evidence, left: str, right: str) -> torch.Tensor:
    ((_, _, cross),) = evidence.panels(CoMoments, left, right)
    return cross.centred() * evidence.norms(left)[:, None] * evidence.norms(right)


_BASELINE: dict[str, torch.Tensor] = {}


def _true_baseline(models: Any, kept: Kept, asked: Any) -> torch.Tensor:
    """The exact baseline of the same two draws, averaged over models and draws."""
    if "there" not in _BASELINE:
        config = search_config("exact", "cpu")
        pairs = [(models[0], other) for other in models[1:]]
        accumulators = [recipe(device="cpu") for recipe in study_recipes(models, pairs, config)]
        for number, (blocks, _) in enumerate(kept):
            _feed(accumulators, Batch({name: Block(values) for name, values in blocks.items()}, shard=number))
        evidence = Evidence(accumulators, [0])
        maxima = [look(evidence, *pair, config, draws=2)[0].maxima for pair in asked]
        _BASELINE["there"] = torch.stack(maxima).mean((0, 1))
    return _BASELINE["there"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["speed", "accuracy"])
    options.add_argument("--shape", choices=list(SHAPES))
    options.add_argument("--tokens", type=int)
    options.add_argument("--models", type=int, default=5)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--search", nargs="+", default=["exact", "screened", "sketch"])
    given = options.parse_args()
    if given.what == "accuracy":
        accuracy(given.seeds, given.tokens or 131_072)
    elif torch.cuda.is_available():
        speed_on_gpu(given.shape or "small", given.tokens or 2_097_152, given.models, given.search)
    else:
        speed_on_cpu(given.shape or "reduced", given.tokens or 131_072, given.search)


if __name__ == "__main__":
    main()
