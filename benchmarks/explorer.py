"""How long does a large study take to become a site, and how much memory?

    python benchmarks/explorer.py [--layers 12] [--width 8192] [--models 5] [--examples 5] [--folder DIR]

Writes a store of plausible content, every table of units among it (98 304 units in each of five models), and has
`uneurons export` make its site in a process of its own: seconds, the process's peak resident memory, the site's size.
Then opens its pages in Chromium, where there is one (benchmarks/explorer_pages.py).
The store and the site stay in DIR, where one is named; a store that is there already is taken.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import psutil
from explorer_pages import page_times, rows
from measure import machine
from safetensors.numpy import save_file

from universal_neurons.config import StudyConfig
from universal_neurons.disk import sha256_of
from universal_neurons.labels import FAMILIES
from universal_neurons.storage import StoreWriter
from universal_neurons.units import Units

VOCABULARY, WINDOW, TOP_K, LABELS, TOP_TOKENS, BINS = 50_304, 24, 2, 3, 10, 120
CLASSES = ("contains_digit", "starts_w_space", "all_caps", "is_personal_pronoun")
NUMBERS = (
    "max_corr", "mean_corr", "min_corr", "max_baseline", "mean_baseline", "min_baseline", "excess_corr", "excess_heldout",
    "excess_low", "excess_high", "q_value", "baseline_standardised", "excess_standardised",
    "excess_standardised_heldout", "excess_standardised_low", "excess_standardised_high", "w_in_norm", "w_out_norm",
    "input_bias", "in_out_sim", "l2_penalty", "vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt", "mean", "var", "skew",
    "kurt", "sparsity", "bos_mean", "activation_mean", "layer_corr_max", "position_mi", "variance_reduction",
    "variance_reduction_heldout", "null_fraction",
)  # fmt: skip
OF_UNIVERSALITY = tuple(name for name in NUMBERS if "corr" in name or "excess" in name or "baseline" in name)


@dataclass(frozen=True)
class Large:
    """The shape of a study: models of equal width, and how many examples each unit has."""

    layers: int
    width: int
    models: int
    examples: int

    @property
    def units(self) -> int:
        return self.layers * self.width

    @property
    def names(self) -> list[str]:
        return [f"seed-{number + 1}" for number in range(self.models)]

    def table(self, model: str, repeat: int = 1) -> dict[str, object]:
        """The columns that say whose rows they are."""
        layer, neuron = Units.equal(self.layers, self.width).place_of(np.repeat(np.arange(self.units), repeat))
        return {"model": np.full(len(layer), model), "layer": layer.astype(np.int32), "neuron": neuron.astype(np.int32)}


def neurons(large: Large, random: np.random.Generator) -> Iterator[pl.DataFrame]:
    for model in large.names:
        numbers = {name: random.normal(size=large.units) for name in NUMBERS}
        if model != large.names[0]:
            numbers |= dict.fromkeys(name for name in OF_UNIVERSALITY if name != "layer_corr_max")
        asked = model == large.names[0]
        facts = {
            "dead": random.random(large.units) < 0.01,
            "is_universal": numbers["excess_corr"] > 0.5 if asked else None,
            "mutual_all": random.random(large.units) < 0.1 if asked else None,
            "layer_corr_neuron": random.integers(0, large.width, large.units, np.int32),
            "family": random.choice(FAMILIES, large.units),
            "label": random.choice([f"token {number}" for number in range(20_000)], large.units),
            "label_sign": random.choice([1, -1], large.units).astype(np.int8),
        }
        frame = pl.DataFrame(large.table(model) | facts | numbers)
        roles = pl.when(pl.col("vocab_kurt") > 2.5).then(["prediction"]).otherwise([])
        kinds = {"is_universal": pl.Boolean, "mutual_all": pl.Boolean} | dict.fromkeys(NUMBERS, pl.Float64)
        yield frame.cast(kinds).with_columns(roles=pl.lit([], pl.List(pl.String)) if not asked else roles)


def matches(large: Large, random: np.random.Generator) -> pl.DataFrame:
    asker, *others = large.names
    ranks = [*range(1, TOP_K + 1), -1]
    each = len(others) * len(ranks)
    rows = large.units * each
    rank = np.tile(ranks, large.units * len(others)).astype(np.int32)
    best = {
        name: np.where(rank == 1, random.random(rows), np.nan) for name in ("corr_heldout", "corr_low", "corr_high")
    }
    frame = pl.DataFrame(
        {"asker": np.full(rows, asker)}
        | large.table(asker, each)
        | {
            "match_model": np.tile(np.repeat(others, len(ranks)), large.units),
            "rank": rank,
            "match_layer": random.integers(0, large.layers, rows, np.int32),
            "match_neuron": random.integers(0, large.width, rows, np.int32),
            "corr": random.random(rows),
        }
        | best
        | {"mutual": random.random(rows) < 0.5}
    )
    return frame.with_columns(pl.when(pl.col("rank") == 1).then(pl.col(name)).alias(name) for name in (*best, "mutual"))


def examples(large: Large, random: np.random.Generator) -> Iterator[pl.DataFrame]:
    for model in large.names:
        rows = large.units * large.examples
        tokens = random.integers(0, VOCABULARY, (rows, WINDOW), np.int32)
        activations = np.maximum(random.normal(size=(rows, WINDOW)), 0).astype(np.float16).astype(np.float32)
        yield pl.DataFrame(
            large.table(model, large.examples)
            | {
                "band": np.full(rows, "top"),
                "rank": np.tile(np.arange(1, large.examples + 1, dtype=np.int32), large.units),
                "row": random.integers(0, 100_000, rows, np.int32),
                "position": np.full(rows, 60, np.int32),
                "activation": activations[:, 16],
                "start": np.full(rows, 44, np.int32),
                "tokens": pl.Series(tokens).arr.to_list(),
                "activations": pl.Series(activations).arr.to_list(),
            }
        )


def labels(large: Large, random: np.random.Generator) -> Iterator[pl.DataFrame]:
    for model in large.names:
        rows = large.units * LABELS
        yield pl.DataFrame(
            large.table(model, LABELS)
            | {
                "rank": np.tile(np.arange(1, LABELS + 1, dtype=np.int32), large.units),
                "label": random.choice([f"token {number}" for number in range(20_000)], rows),
                "group": np.full(rows, "unigrams"),
                "previous": random.random(rows) < 0.2,
                "variance_reduction": random.random(rows),
                "sign": random.choice([1, -1], rows).astype(np.int8),
            }
        )


def tokens(large: Large, random: np.random.Generator) -> Iterator[pl.DataFrame]:
    for model in large.names:
        rows = large.units * TOP_TOKENS
        yield pl.DataFrame(
            large.table(model, TOP_TOKENS)
            | {
                "rank": np.tile(np.arange(1, TOP_TOKENS + 1, dtype=np.int32), large.units),
                "token": random.integers(0, VOCABULARY, rows, np.int32),
                "mean_activation": random.random(rows),
                "count": random.integers(1, 1000, rows),
            }
        )


def effects(large: Large, random: np.random.Generator) -> Iterator[pl.DataFrame]:
    for model in large.names:
        shape = (large.units, TOP_TOKENS)
        sides = {}
        for side, sign in (("top", 1), ("bottom", -1)):
            sides[f"{side}_tokens"] = pl.Series(random.integers(0, VOCABULARY, shape, np.int32)).arr.to_list()
            sides[f"{side}_effects"] = pl.Series((sign * random.random(shape)).astype(np.float32)).arr.to_list()
        yield pl.DataFrame(
            large.table(model)
            | {
                "role": pl.Series([None] * large.units, dtype=pl.String),
                "class": random.choice(CLASSES, large.units),
                "class_group": np.full(large.units, "tokens"),
                "class_sign": np.ones(large.units, np.int8),
                "class_variance_reduction": random.random(large.units),
                "orientation": np.ones(large.units, np.int8),
            }
            | sides
        )


def candidates(large: Large, random: np.random.Generator) -> dict[str, pl.DataFrame]:
    """Ablations and interventions: of a few units of the last layer of each model."""
    chosen = [(model, large.layers - 1, neuron) for model in large.names for neuron in range(min(100, large.width))]
    places = pl.DataFrame(chosen, {"model": pl.String, "layer": pl.Int32, "neuron": pl.Int32}, orient="row")
    sizes = (
        "mediated",
        "mediated_low",
        "mediated_high",
        "total_effect",
        "loss_change",
        "frequency_share",
        "null_fraction",
    )
    ablated = places.with_columns(pl.lit("entropy").alias("kind"), pl.lit(None, pl.String).alias("role"))
    ablated = ablated.with_columns(pl.Series(name, random.random(len(places))) for name in sizes)
    curve = pl.DataFrame({"edit": "fix", "value": np.arange(8.0)})
    curves = places.with_columns(pl.lit("entropy").alias("kind")).join(curve, how="cross")
    metrics = (pl.Series(name, random.random(len(curves))) for name in ("loss", "entropy", "norm_scale"))
    return {"ablations": ablated, "interventions": curves.with_columns(metrics)}


def histograms(large: Large, random: np.random.Generator) -> dict[str, np.ndarray]:
    edges = np.concatenate([-np.geomspace(8, 2**-6, BINS // 2), [0], np.geomspace(2**-6, 8, BINS // 2)]).astype("f4")
    return {
        f"{model}/{name}": values
        for model in large.names
        for name, values in (
            ("low", edges[:-1]),
            ("high", edges[1:]),
            ("counts", random.integers(0, 10_000, (BINS, large.units))),
        )
    }


def layers(large: Large) -> pl.DataFrame:
    asker, *others = large.names
    rows = [
        (asker, asker, layer, model, match_layer, 1 / large.layers)
        for layer in range(large.layers) for model in others for match_layer in range(large.layers)
    ]  # fmt: skip
    return pl.DataFrame(rows, ["asker", "model", "layer", "match_model", "match_layer", "fraction"], orient="row")


def write_store(large: Large, folder: Path) -> None:
    """The tables and the manifest of a study that nobody made."""
    random = np.random.default_rng(0)
    vocabulary = pl.DataFrame(
        {
            "token": np.arange(VOCABULARY, dtype=np.int32),
            "string": [f" word{token}" for token in range(VOCABULARY)],
            "count": np.ones(VOCABULARY, np.int64),
        }
    )
    whole = {
        "vocabulary": lambda: vocabulary,
        "layers": lambda: layers(large),
        "matches": lambda: matches(large, random),
        "counterparts": lambda: counterparts(large, random),
    }
    by_model = {"neurons": neurons, "examples": examples, "labels": labels, "tokens": tokens, "effects": effects}
    with StoreWriter(folder) as writer:
        hashes = {name: writer.write_table(name, make()) for name, make in whole.items()}
        for name, make in by_model.items():
            hashes[name] = writer.write_table(name, pl.concat(make(large, random)))
        hashes |= {name: writer.write_table(name, table) for name, table in candidates(large, random).items()}
        file = folder / "histograms.safetensors"
        save_file(histograms(large, random), file)
        hashes["histograms"] = sha256_of(file)
        writer.write_manifest(manifest(large, folder) | {"tables": hashes})


def manifest(large: Large, folder: Path) -> dict[str, object]:
    config = StudyConfig(models=tuple(large.names), out=str(folder), draws=20)
    models = [
        {
            "name": name, "sha256": f"{number:064}", "architecture": "GPT-2", "layers": large.layers,
            "d_mlp": large.width, "d_model": large.width // 4, "vocabulary": VOCABULARY,
        }
        for number, name in enumerate(large.names)
    ]  # fmt: skip
    text = {"fingerprint": "0" * 64, "rows": 100_000, "tokens": 51_200_000, "heldout_rows": 20_000}
    stages = {"stages": ["weights", "statistics", "labels", "universality", "roles"]}
    return {
        "complete": True,
        "config": config.stored() | stages,
        "models": models,
        "tokens": text,
        "environment": {"universal_neurons": "0.1.0"},
        "counted_tokens": 51_000_000,
        "search": {"search": "exact"},
        "timings": {},
    }


def counterparts(large: Large, random: np.random.Generator) -> pl.DataFrame:
    """Windows of the reference's units, with the activations of a match in every other model."""
    own = next(examples(large, random)).with_columns(asker="model")
    matched = np.maximum(random.normal(size=(len(own), large.models - 1, WINDOW)), 0).astype(np.float32)
    return own.with_columns(match_activations=pl.Series(matched).cast(pl.List(pl.List(pl.Float32))))


def export(store: Path, site: Path) -> tuple[float, float, int]:
    """Seconds that the command takes, those of its processor, and the peak of its resident memory in bytes."""
    started = time.perf_counter()
    program = "from universal_neurons.cli import main; main()"
    command = [sys.executable, "-c", program, "export", str(store), "--out", str(site)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak, used = 0, 0.0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # it may just have ended
            peak, times = max(peak, process.memory_info().rss), process.cpu_times()
            used = max(used, times.user + times.system)
        time.sleep(0.05)
    if process.wait():
        raise SystemExit("the export failed")
    return time.perf_counter() - started, used, peak


def size_of(folder: Path) -> tuple[int, int]:
    """Files and bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("layers", 12), ("width", 8192), ("models", 5), ("examples", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    large = Large(given.layers, given.width, given.models, given.examples)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        store, site = folder / "store", folder / "site"
        if not (store / "study.json").exists():
            write_store(large, store)
        seconds, used, peak = export(store, site)
        files, size = size_of(site)
        print(f"""## explorer

{large.models} models of {large.units:,} units, {large.examples} examples each, {size_of(store)[1] / 2**30:.1f} GiB of tables. {machine()}

| | |
|---|---|
| seconds, of which the processor's | {seconds:.0f}, {used:.0f} |
| peak resident memory | {peak / 2**30:.2f} GiB |
| site | {size / 2**30:.1f} GiB in {files:,} files |
| a file of 64 units | {size_of(site / "data" / "store" / "unit")[1] / (large.models * -(-large.units // 64)) / 2**10:.0f} KiB |""")
        if shutil.which("chromium"):
            print(rows(page_times(site)))


if __name__ == "__main__":
    main()
