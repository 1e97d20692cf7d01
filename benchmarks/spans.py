"""How well do tokenizers fit, how full are the rows that they share, and what does finding their spans cost?

    python benchmarks/spans.py FOLDER [FOLDER ...] [--data TEXT] [--tokens N] [--context N]

Every pair of the folders' tokenizers and the bundled one reads the text twice: each tokenizer alone (as a study of one
tokenizer does), then both into rows of spans.  Seconds are of one processor.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from measure import machine

from universal_neurons import StudyConfig, TokenDataset
from universal_neurons.models import BUNDLED_FOLDER, load_tokenizer
from universal_neurons.text import Passages

ROUNDS = 3


def best(make: Callable[[], Any]) -> tuple[Any, float]:
    """What `make` makes, and the processor seconds of the fastest of some rounds."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        made = make()
        seconds.append(time.process_time() - started)
    return made, min(seconds)


def fit(config: StudyConfig, pair: dict[str, Any], context: int) -> None:
    """Print a row for each of a pair."""
    alone = [best(partial(TokenDataset.load, config, one, context=context))[1] for one in pair.values()]
    passages, seconds = best(partial(Passages.load, config, pair, context=context))
    for row in passages.fit_table().iter_rows(named=True):
        lengths = passages.tokens_of(row["model"]).lengths
        left_out = row["bytes_special"] + row["bytes_white_space"] + row["bytes_dropped"] + row["bytes_too_long"]
        cells = (
            " × ".join(pair),
            row["model"],
            f"{row['tokens_per_span']:.2f}",
            f"{row['own_fraction']:.1%}",
            f"{lengths.mean() / context:.3f}",
            f"{left_out:,} of {row['bytes']:,}",
            f"{seconds:.2f}",
            f"{sum(alone):.2f}",
        )
        print("| " + " | ".join(cells) + " |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--data", default="bundled")
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--context", type=int, default=512)
    given = parser.parse_args(arguments)
    tokenizers = {"bundled": load_tokenizer(BUNDLED_FOLDER / "tokenizer")} | {
        path.name: load_tokenizer(path) for path in given.folders
    }
    config = StudyConfig(models=("bundled/seed-1",), data=given.data, max_tokens=given.tokens)
    print(f"{given.tokens:,} token positions at most, rows of {given.context}. {machine()}\n")
    print(
        "| pair | tokenizer | tokens a span | spans of their own | rows filled | bytes left out | s | s, each alone |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for names in combinations(tokenizers, 2):
        fit(config, {name: tokenizers[name] for name in names}, given.context)


if __name__ == "__main__":
    main()
