"""Every neuron of the last layer mean-ablated alone: is any an entropy or a token frequency neuron?

    python suite/last_layer.py TEXT.jsonl.xz MODEL … [--frequencies FILE]

A study tries the most likely few (docs/roles.md).  This tries all, on 4 096 positions of held-out text, and prints of
each model the largest share of the effect on the loss that goes through the final norm (an entropy neuron: above 0.5)
and along token frequency (a token frequency neuron: above 0.5), among neurons whose effect is above 0.001 nats.  How
frequent a token is FILE says (`token`, `count`), else what a study goes by; which of them is printed.
"""

import argparse
import tempfile
from pathlib import Path

import polars as pl

import universal_neurons as un
from universal_neurons.roles import frequency_line, one_model

FEWEST_NATS = 0.001
LITTLE = {"tokens": 4096, "controls": 2, "entropy_neurons": 2, "ablated": 1, "attention_pairs": 1, "values": (0.0,)}


def study(model: str, text: str, out: Path, frequencies: str | None = None) -> un.Store:
    """A study of what mean ablation of each neuron of the last layer does."""
    one_model.FREQUENCY_CANDIDATES = 1 << 20  # all of them
    stages, roles = ("weights", "statistics", "roles"), LITTLE | {"frequencies": frequencies}
    config = un.StudyConfig(models=(model,), data=text, out=str(out), max_tokens=100_000, stages=stages, roles=roles)
    return un.run_study(config, progress=False)


def row(store: un.Store) -> str:
    """A study's row of the table, but for the model."""
    found = store.table("ablations").filter(pl.col("kind") != "control", pl.col("total_effect") > FEWEST_NATS)
    shares = []
    for column in ("mediated", "frequency_share"):
        best = found.sort(column, descending=True, nulls_last=True).row(0, named=True)
        shares.append(f"L{best['layer']}.{best['neuron']} {best[column]:.2f}")
    return f"{len(found)} | {' | '.join(shares)}"


def main() -> None:
    """Print a Markdown table, a row per model as soon as it is there, and by which text tokens are frequent."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--frequencies")
    given = parser.parse_args()
    print("| model | neurons with an effect | most through the norm | most along frequency |\n|---|---|---|---|")
    said = set()
    for model in given.models:
        with tempfile.TemporaryDirectory() as folder:
            store = study(model, given.text, Path(folder) / "study", given.frequencies)
            print(f"| {model} | {row(store)} |", flush=True)
            said.add(frequency_line(store))
    print("\n" + " ".join(sorted(said)))


if __name__ == "__main__":
    main()
