"""What does it cost that two models have different tokenizers?  python benchmarks/span_studies.py [FOLDER] [--rounds R]

Two networks of random weights, 12 × 768 neurons each, read the same text: one by the bundled tokenizer, the other by
FOLDER's, or by a byte-level BPE of 4 096 tokens that is made of the text.  All in one process, every contestant in turn
in every round, medians of the rounds, seconds of the processors:

- whole studies (text, pass, baseline of two draws, the second reading, tables) of two models of one tokenizer, of the
  other tokenizer, and of one of each, by all three searches;
- the plain way with spans: both models twice, sums first and standardised activations then, spans pooled by
  `index_add_`, everything float32 and vectorised; without a baseline, and with as many rotated draws.  It is handed our rows
  and spans, so it pays for no text.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine
from searches import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import universal_neurons as un
from universal_neurons.matching.baselines import rotation
from universal_neurons.models import BUNDLED_FOLDER, Model, load_tokenizer
from universal_neurons.text import Passages
from universal_neurons.text.corpora import Corpus

torch.set_grad_enabled(False)
CONTEXT, ROWS = 256, 16
DRAWS = 2  # of the baseline, the fewest there can be
SEARCHES = ("exact", "screened", "sketch")


def made_tokenizer(text: str, size: int) -> Any:
    """A byte-level BPE tokenizer of the text's own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def network(name: str, tokenizer: Any, seed: int, shape: str) -> Model:
    """A GPT-2 of random weights that reads by a tokenizer."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=0,
        n_positions=CONTEXT,
        initializer_range=0.1,
        **SHAPES[shape],
    )
    return Model(GPT2LMHeadModel(config).eval().requires_grad_(False), name, digest=name, tokenizer=tokenizer)


def study(pair: Sequence[Model], text: Path, search: str = "exact") -> torch.Tensor:
    """The largest ρ of every neuron of the first model, by a whole study."""
    with tempfile.TemporaryDirectory() as folder:
        config = un.StudyConfig(
            data=str(text),
            out=f"{folder}/study",
            stages=("universality",),
            draws=DRAWS,
            search=search,
            max_tokens=10**9,
        )
        matches = un.run_study(config, models=list(pair), progress=False).table("matches")
    best = matches.filter((matches["asker"] == pair[0].name) & (matches["rank"] == 1))
    return torch.from_numpy(best.sort("layer", "neuron")["corr"].to_numpy().copy())


def pooled(model: Model, spans: Passages, rows: np.ndarray) -> torch.Tensor:
    """The mean activation of every counted span of some rows, span by span."""
    numbers = torch.from_numpy(spans.pooled(model.name, rows))
    tokens = (numbers >= 0).flatten()
    ids = torch.from_numpy(spans.tokens_of(model.name).ids(rows))
    flat = (numbers + torch.arange(len(rows))[:, None] * CONTEXT).flatten()[tokens]
    values = model.activations(ids).flatten(0, 1)[tokens]
    size = len(rows) * CONTEXT
    sums = torch.zeros(size, values.shape[1]).index_add_(0, flat, values)
    counts = torch.zeros(size).index_add_(0, flat, torch.ones(len(flat)))
    return (sums / counts.clamp_min(1)[:, None])[counts > 0]


def plain_way(pair: Sequence[Model], spans: Passages, rows: np.ndarray, *, baseline: bool) -> list[torch.Tensor]:
    """The largest ρ of every neuron of the first model on some rows, and with a baseline that in every rotated basis."""
    width = pair[1].d_mlp
    turned = [rotation("rotation", width, 0, draw).float() for draw in range(DRAWS if baseline else 0)]
    batches = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]

    def sides(rows: np.ndarray) -> list[torch.Tensor]:
        values = [pooled(model, spans, rows) for model in pair]
        layers = values[1].split(width, 1)
        return values + [torch.cat([layer @ matrix.T for layer in layers], 1) for matrix in turned]

    count, sums, squares = 0, [0.0] * (2 + len(turned)), [0.0] * (2 + len(turned))
    for rows in batches:
        values = sides(rows)
        count += len(values[0])
        for n, each in enumerate(values):
            sums[n] = sums[n] + each.sum(0, dtype=torch.float64)
            squares[n] = squares[n] + each.square().sum(0, dtype=torch.float64)
    means = [each / count for each in sums]
    norms = [(square / count - mean**2).sqrt().float() for square, mean in zip(squares, means)]
    cross = [torch.zeros(pair[0].n_neurons, pair[1].n_neurons) for _ in range(1 + len(turned))]
    for rows in batches:
        left, *others = (
            (each - mean.float()) / norm.where(norm > 0, torch.inf)
            for each, mean, norm in zip(sides(rows), means, norms)
        )
        for products, other in zip(cross, others):
            products.addmm_(left.T, other)
    return [(products / count).amax(1) for products in cross]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--characters", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=SHAPES, default="reduced")
    given = parser.parse_args(arguments)
    heldout = Corpus(un.StudyConfig(models=("bundled/seed-1",), data="bundled"))
    letters = "".join(str(document.content) for document in heldout)[: given.characters]
    first = load_tokenizer(BUNDLED_FOLDER / "tokenizer")
    second = load_tokenizer(given.folder) if given.folder else made_tokenizer(letters, 4096)
    ones = [network(f"one-{seed}", first, seed, given.shape) for seed in (0, 1)]
    others = [network(f"other-{seed}", second, seed, given.shape) for seed in (0, 1)]
    pair = ones[0], others[1]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(letters)
        config = un.StudyConfig(data=str(text), max_tokens=10**9)
        spans = Passages.load(config, {model.name: model.tokenizer for model in pair}, context=CONTEXT)
        work: dict[str, Callable[[], Any]] = {
            "one": partial(study, ones, text),
            "other": partial(study, others, text),
            **{search: partial(study, pair, text, search) for search in SEARCHES},
            "plain": partial(plain_way, pair, spans, np.arange(len(spans)), baseline=False),
            "plain with a baseline": partial(plain_way, pair, spans, np.arange(len(spans)), baseline=True),
        }
        times: dict[str, list[float]] = {}
        found: dict[str, Any] = {}
        for _ in range(given.rounds):
            for name, do in work.items():
                started = time.process_time()
                found[name] = do()
                times.setdefault(name, []).append(time.process_time() - started)
    chosen, _ = spans.split(None)  # the rows that matches are found on
    apart = float((plain_way(pair, spans, chosen, baseline=False)[0] - found["exact"]).abs().max())
    report({name: statistics.median(each) for name, each in times.items()}, pair, spans, given, apart)


def report(seconds: dict[str, float], pair: Sequence[Model], spans: Passages, given: Any, apart: float) -> None:
    """Print the section."""
    alone = max(seconds["one"], seconds["other"])
    rows = [
        ("two models of the bundled tokenizer, exact", "one"),
        ("two models of the other tokenizer, exact", "other"),
        *((f"one of each, {search}", search) for search in SEARCHES),
    ]
    print(f"""## studies of spans

`python benchmarks/span_studies.py --characters {given.characters} --rounds {given.rounds}`; {pair[0].n_layers} × {pair[0].d_mlp} neurons each, {given.characters:,} characters:
{spans.n_tokens:,} spans, {", ".join(f"{spans.tokens_of(model.name).n_tokens:,}" for model in pair)} tokens. Whole studies with two baseline draws and the second
reading; medians of {given.rounds} rounds, seconds of the processors. {machine()}

| study | seconds | of the dearer study of one tokenizer | plain way / ours | plain way with a baseline / ours |
|---|---|---|---|---|""")
    for title, name in rows:
        ours, mixed = seconds[name], name in SEARCHES
        ratios = [f"{seconds[plain] / ours:.2f}×" if mixed else "" for plain in ("plain", "plain with a baseline")]
        print(f"| {title} | {ours:.2f} | {ours / alone:.2f} | " + " | ".join(ratios) + " |")
    for plain in ("plain", "plain with a baseline"):
        print(f"| the {plain.replace('plain', 'plain way')} | {seconds[plain]:.2f} | | | |")
    print(
        f"\nThe plain way's largest ρ of every neuron and the exact study's, on the rows that matches are found on, differ by {apart:.1e} at most."
    )


if __name__ == "__main__":
    main()
