"""What pages say is what the tables say: numbers read off every kind of page, against the parquet files of a study."""

import math
import random
import re

import polars as pl
import pytest
from hand_site import STATIC
from plain_site import says

from universal_neurons.explorer import write_site

pytest_plugins = ["visits"]


@pytest.fixture(scope="module")
def exported(odd_store, tmp_path_factory):
    return write_site([odd_store], tmp_path_factory.mktemp("true") / "site", static=STATIC).parent


def table(store, name: str) -> pl.DataFrame:
    return pl.read_parquet(store.path / f"{name}.parquet")


def test_the_table_of_all_units(visit, exported, odd_store):
    neurons = {f"L{row['layer']}.{row['neuron']}": row for row in _of(odd_store, "neurons", 0)}
    best = table(odd_store, "matches").filter((pl.col("asker") == odd_store.models[0]) & (pl.col("rank") == 1))
    matches = {f"L{row['layer']}.{row['neuron']}": row for row in best.iter_rows(named=True)}
    page = visit(exported).go("study.html")
    heads = page.locator(".table thead th button").all_inner_texts()
    told = 0
    for row in page.locator(".table tbody tr").all():
        cells = dict(zip(heads, row.locator("th, td").all_inner_texts()))
        unit = neurons[cells["unit"]]
        assert says(cells["excess"], unit["excess_corr"])
        assert says(cells["variance explained"], unit["variance_reduction"])
        assert says(cells["share active"], unit["sparsity"])
        low, _, high = cells["95 % interval"].partition(" to ")
        assert says(low, unit["excess_low"])
        assert says(high or "–", unit["excess_high"])
        low = math.nan if unit["excess_low"] is None else unit["excess_low"]
        mark = " !" if low <= odd_store.config.threshold or unit["carried_by_few"] else ""
        assert cells["universal"] == ("dead" if unit["dead"] else f"yes{mark}" if unit["is_universal"] else "no")
        corr, _, name = cells[heads[-1]].partition(" ")
        match = matches.get(cells["unit"])
        if match:
            assert says(corr, match["corr"])
            assert name == f"L{match['match_layer']}.{match['match_neuron']}"
        told += 7
    assert told >= 150


def _of(store, name: str, model: int, by: str = "model") -> list[dict]:
    return table(store, name).filter(pl.col(by) == store.models[model]).rows(named=True)


def test_units(visit, exported, odd_store):
    visitor = visit(exported)
    neurons, labels = _of(odd_store, "neurons", 0), _of(odd_store, "labels", 0)
    matches, examples = _of(odd_store, "matches", 0, "asker"), _of(odd_store, "examples", 0)
    alive = [row for row in neurons if row["excess_corr"] is not None and not math.isnan(row["excess_corr"])]
    for row in random.Random(0).sample(alive, 4):
        here = lambda each, row=row: (each["layer"], each["neuron"]) == (row["layer"], row["neuron"])  # noqa: E731
        page = visitor.go(f"unit.html?u=0/L{row['layer']}.{row['neuron']}")
        assert says(page.inner_text(".hero strong"), row["excess_corr"])
        best, less = re.search(r"best ρ (\S+) less (\S+) of the baseline", page.inner_text(".hero")).groups()
        assert says(best, row["mean_corr"])
        assert says(less, row["mean_baseline"])
        assert says(re.search(r"its matches (\S+) \(", page.inner_text(".hero"))[1], row["excess_heldout"])
        (said,) = [each["explanation"] for each in _of(odd_store, "explanations", 0) if here(each)]
        assert page.text_content(".unit-head .explanation") == said
        (match,) = [each for each in matches if here(each) and each["rank"] == 1]
        told = page.locator("#matches tbody tr").first.locator("td").all_inner_texts()
        assert told[0] == f"L{match['match_layer']}.{match['match_neuron']}"
        assert says(told[1], match["corr"])
        low, _, high = told[2].partition(" to ")
        assert says(low, match["corr_low"])
        assert says(high, match["corr_high"])
        own = sorted((each for each in labels if here(each)), key=lambda each: each["rank"])
        shown = page.locator("#labels .number").all_inner_texts()
        assert len(shown) == len(own)
        assert all(says(text, each["variance_reduction"]) for text, each in zip(shown, own))
        numbers = dict(
            zip(page.locator("#numbers dt").all_inner_texts(), page.locator("#numbers dd").all_inner_texts())
        )
        for title, name in {"skew": "skew", "kurtosis": "kurt", "variance": "var", "w out norm": "w_out_norm"}.items():
            assert says(numbers[title], row[name]), name
        assert says(numbers["share active"], 100 * row["sparsity"])
        _check_colours(page, [each for each in examples if here(each)])
    visitor.well()


def _check_colours(page, examples: list[dict]) -> None:
    """Every token of the unit's highest examples: its colour's size is its share of the unit's largest activation."""
    sizes = [abs(value) for each in examples for value in each["activations"] if not math.isnan(value)]
    top = sorted((each for each in examples if each["band"] == "top"), key=lambda each: each["rank"])
    windows = page.locator("#examples .column").first.locator(".window")
    assert windows.count() == len(top)
    read = "(row) => [...row.querySelectorAll('.tok')].map((e) => [e.style.getPropertyValue('--share'), e.className])"
    for place, each in enumerate(top):
        tokens = windows.nth(place).evaluate(read)
        assert len(tokens) == len(each["activations"])
        for at, ((share, kind), value) in enumerate(zip(tokens, each["activations"])):
            if math.isnan(value):
                assert "uncounted" in kind
            else:
                assert float(share) == pytest.approx(abs(value) / max(sizes), abs=6e-4)
                assert ("minus" if value < 0 else "plus") in kind
            assert ("own" in kind) == (at == each["position"] - each["start"])


def test_layers_families_subsets_and_models(visit, exported, odd_store):
    visitor = visit(exported)
    page = visitor.go("layers.html")
    shares = {(row["layer"], row["match_layer"]): row["fraction"] for row in _of(odd_store, "layers", 0, "asker")}
    rows = page.locator(".heat").first.locator("tr").all()[:-1]
    for layer, row in enumerate(reversed(rows)):
        for other, text in enumerate(row.locator("td").all_inner_texts()):
            assert says(text.replace("·", "0"), 100 * shares.get((layer, other), 0))
    page = visitor.go("families.html")
    told = page.locator("#table tbody tr").all()
    count = table(odd_store, "neurons").group_by("model", "family").len()
    assert len(told) == len(count)
    sizes = sorted(count["len"].to_list())
    assert sorted(int(row.locator("td").nth(1).inner_text()) for row in told) == sizes
    page = visitor.go("subsets.html")
    universal = table(odd_store, "subsets").group_by("subset", "model").agg(pl.col("is_universal").sum(), pl.len())
    told = [row.locator("td").all_inner_texts() for row in page.locator("#table tbody tr").all()]
    assert sorted((int(each[1]), int(each[2])) for each in told) == sorted(
        universal.select("len", "is_universal").rows()
    )
    page = visitor.go("models.html")
    dead = table(odd_store, "neurons").group_by("model", maintain_order=True).agg(pl.len(), pl.col("dead").sum())
    told = [row.locator("td").all_inner_texts() for row in page.locator(".table tbody tr").all()]
    assert [(int(each[2]), int(each[3])) for each in told] == dead.select("len", "dead").rows()
    visitor.well()
