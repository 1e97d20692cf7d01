"""Every neuron of the last layer mean-ablated alone: is any an entropy or a token frequency neuron?

    python suite/last_layer.py TEXT.jsonl.xz MODEL …

A study tries the most likely few (docs/roles.md).  This tries all, on 1 024 positions of held-out text, and prints of
each model the largest share of the effect on the loss that goes through the final norm (an entropy neuron: above 0.5)
and along token frequency (a token frequency neuron: above 0.5), among neurons whose effect is above 0.001 nats.
"""

import sys
import tempfile
from pathlib import Path

import polars as pl

import universal_neurons as un
from universal_neurons.roles import one_model

FEWEST_NATS = 0.001
LITTLE = {"tokens": 1024, "controls": 2, "entropy_neurons": 2, "ablated": 1, "attention_pairs": 1, "values": (0.0,)}


def ablations(model: str, text: str, out: Path) -> pl.DataFrame:
    """What mean ablation of each neuron of the last layer does."""
    one_model.FREQUENCY_CANDIDATES = 1 << 20  # all of them
    stages = ("weights", "statistics", "roles")
    study = un.StudyConfig(models=(model,), data=text, out=str(out), max_tokens=24_000, stages=stages, roles=LITTLE)
    found = un.run_study(study, progress=False).table("ablations")
    return found.filter((pl.col("kind") != "control") & (pl.col("total_effect") > FEWEST_NATS))


def main(text: str, models: list[str]) -> None:
    """Print a Markdown table, a row per model as soon as it is there."""
    print("| model | neurons with an effect | most through the norm | most along frequency |\n|---|---|---|---|")
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            found = ablations(model, text, Path(folder) / "study")
        shares = []
        for column in ("mediated", "frequency_share"):
            best = found.sort(column, descending=True, nulls_last=True).row(0, named=True)
            shares.append(f"L{best['layer']}.{best['neuron']} {best[column]:.2f}")
        print(f"| {model} | {len(found)} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
