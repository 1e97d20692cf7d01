"""A diff in a site: what its page and its units' pages say is what its tables say, in a real Chromium, usable by all."""

import csv
import hashlib
import io
import json
import math
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from plain_site import column_of, data_of, same, says

from universal_neurons.diff import KINDS, Diff
from universal_neurons.errors import InputError
from universal_neurons.explanations import fires_on
from universal_neurons.explorer import open_results, page_of, write_site
from universal_neurons.explorer.data_files import read_statement
from universal_neurons.explorer.serving import StudyTexts
from universal_neurons.labels import explained
from universal_neurons.report import diff_sentences, upper_end
from universal_neurons.report.diff_summary import ranked

pytest_plugins = ["visits", "diffed", "explored"]

AXE = Path(__file__).parent / "axe/axe.min.js"
ID = "base-to-tuned"
DIFF, UNIT = f"diff.html?s={ID}", f"unit.html?s={ID}&u=0/"


@pytest.fixture(scope="module")
def site(shown_diff, study, tmp_path_factory) -> Path:
    """The diff beside an ordinary study."""
    return write_site([open_results(shown_diff.path), study], tmp_path_factory.mktemp("site") / "site").parent


def name_of(row) -> str:
    return f"L{row['layer']}.{row['neuron']}"


def cells_of(page, table: str) -> list[dict[str, str]]:
    heads = page.locator(f"{table} thead th").all_inner_texts()
    rows = page.locator(f"{table} tbody tr").all()
    return [dict(zip(heads, row.locator("th, td").all_inner_texts())) for row in rows]


def test_files_say_what_the_tables_say(site, shown_diff):
    changes = shown_diff.changes
    columns = data_of(site, f"{ID}/changes")["columns"]
    for name in ("kind", "place", "weights", "family_before"):
        assert column_of(columns[name]) == changes[name].fill_null("").to_list(), name
    for name in ("layer", "neuron"):
        assert column_of(columns[name]) == changes[name].to_list()
    for name in ("self_corr", "scale", "w_out_cos", "q_change", "firing_shift", "contribution"):
        finite = [value if value is not None and math.isfinite(value) else math.nan for value in changes[name]]
        assert column_of(columns[name]) == pytest.approx(finite, rel=1e-6, nan_ok=True), name
    moved = [65535 if layer < 0 else layer for layer in changes["moved_to_layer"]]
    assert column_of(columns["moved_to_layer"]) == moved
    shard = data_of(site, f"{ID}/unit/1/0")["units"]  # of the fine-tune's units too
    for unit, row in zip(shard, changes.rows(named=True)):
        change = unit["change"]
        for name in ("kind", "place", "self_corr", "self_corr_low", "p_scale", "q_scale", "p_least", "family_after"):
            assert same(change.get(name), row[name]), (name, name_of(row))
        assert [by for _, by in change.get("raised", [])] == pytest.approx(row["raised_by"] or [], rel=1e-4)
        if row["raised_tokens"]:
            strings = [shown_diff.study.strings[token] for token in row["raised_tokens"]]
            assert [string for string, _ in change["raised"]] == strings


def test_what_changed_most_is_in_the_order_of_the_upper_end(shown_diff):
    rows = shown_diff.changes.filter(pl.col("kind").is_in(["redirected", "shifted", "re-scaled", "re-tuned"]))
    ends = [(row["self_corr_high"], row["layer"], row["neuron"]) for row in rows.rows(named=True)]
    listed = ranked(shown_diff, "Changed most")
    assert listed.select("self_corr_high", "layer", "neuron").rows() == sorted(ends)


def test_gated_units_are_ordered_by_the_upper_end_of_the_size(shown_diff, monkeypatch):
    """Of a base whose units are gated: a ρ of −1 is as alike as one of 1."""
    ends = pl.DataFrame({"self_corr_low": [-0.99, 0.2, math.nan], "self_corr_high": [-0.98, 0.5, math.nan]})
    assert ends.select(upper_end(shown_diff)).to_series().to_list() == [-0.98, 0.5, None]
    monkeypatch.setattr(Diff, "study", SimpleNamespace(gated=["base"]))
    assert ends.select(upper_end(shown_diff)).to_series().to_list() == [0.99, 0.5, None]


def test_a_site_of_a_study_has_nothing_of_diffs(site, study, tmp_path):
    alone = write_site([study], tmp_path / "site").parent
    listed = data_of(alone, "site")["studies"][0]
    assert "diff" not in listed["pages"]
    files = {path.relative_to(alone / "data") for path in (alone / "data" / listed["id"]).rglob("*.js")}
    assert not {"diff.js", "changes.js"} & {path.name for path in files}
    for path in files:
        assert (alone / "data" / path).read_bytes() == (site / "data" / path).read_bytes()
    assert "change" not in data_of(alone, f"{listed['id']}/unit/0/0")["units"][0]


def test_the_page_of_a_diff_says_what_its_tables_say(visit, site, shown_diff):
    changes = shown_diff.changes
    visitor = visit(site)
    page = visitor.go(DIFF)
    said = page.locator(".lead p").all_text_contents()
    assert said == [f"{' → '.join(shown_diff.models)}: {len(changes)} units.", *diff_sentences(shown_diff)]
    told = {row["kind"]: row for row in cells_of(page, "#kinds .table")}
    second = shown_diff.table("changes_tuned_text")["kind"]
    assert list(told) == list(KINDS)
    for kind in KINDS:
        of_kind = changes.filter(pl.col("kind") == kind)
        assert told[kind]["units"] == str(len(of_kind))
        assert says(told[kind]["share"], 100 * len(of_kind) / len(changes))
        unusual = (of_kind["q_change"].fill_nan(None) <= 0.05).sum()
        assert told[kind]["q ≤ 0.05"] == ("" if kind == "unchanged" else str(unusual))
        assert told[kind]["on the second text"] == str((second == kind).sum())
    assert any(row["q ≤ 0.05"] not in ("", "0") for row in told.values())
    counts = [row.locator("td").all_inner_texts() for row in page.locator(".heat tr").all()[:-1]]
    for layer, row in enumerate(reversed(counts)):
        here = changes.filter(pl.col("layer") == layer)["kind"]
        assert [int(text.replace("·", "0")) for text in row] == [(here == kind).sum() for kind in KINDS]
    by_name = {name_of(row): row for row in changes.rows(named=True)}
    table = cells_of(page, "#units .table")
    assert len(table) == 25
    for row in table:
        unit = by_name[row["unit"]]
        assert row["kind"] == unit["kind"]
        shown = {"ρ with itself": "self_corr", "scale, times": "scale", "offset": "offset", "q": "q_change"}
        for title, column in shown.items():
            assert says(row[title], unit[column]), (row, column)
        low, _, high = row["95 % interval"].partition(" to ")
        assert says(low, unit["self_corr_low"])
        assert says(high or "–", unit["self_corr_high"])
        assert row["is now"].startswith(unit["place"] or "–")
        if unit["moved_to_layer"] >= 0:
            assert f"to L{unit['moved_to_layer']}.{unit['moved_to_neuron']}" in row["is now"]
        side = {name: unit[f"{name}_before"] for name in ("family", "label", "label_sign", "variance_reduction")}
        assert row["fires, before"] == (
            fires_on(side) if explained(side["family"], side["label"]) else side["family"] or "–"
        )
    for title, kinds in {
        "changed-most": None,
        "moved": ["moved", "copied"],
        "born": ["born"],
        "died": ["died"],
    }.items():
        wanted = ranked(shown_diff, "Changed most") if kinds is None else changes.filter(pl.col("kind").is_in(kinds))
        names = [row["unit"] for row in cells_of(page, f"#{title} .table")]
        assert names == [name_of(row) for row in wanted.head(10).rows(named=True)]
    page.locator("#kinds tbody .term", has_text="re-tuned").focus()
    assert page.inner_text("#bubble").startswith("Its |ρ| with itself is surely below")
    visitor.well()


def test_the_page_filters_and_saves(visit, site, shown_diff):
    changes = shown_diff.changes
    visitor = visit(site)
    page = visitor.go(DIFF)
    count = lambda: page.inner_text(".count").split(" ")[0]  # noqa: E731
    page.locator(".heat tr").first.locator("a").nth(5).click()  # the last layer's moved
    page.wait_for_url("**/diff.html*layer=1&kind=moved")
    page.locator(".count", has_text=re.compile("^4 of")).wait_for()  # a function is text, which the pages' policy bars
    page.get_by_role("button", name="Show all").click()
    page.locator(".legend button", has_text="died").click()
    assert count() == str((changes["kind"] == "died").sum())
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Is now").select_option("lost")
    assert count() == str((changes["place"] == "lost").sum())
    page.get_by_label("Layer", exact=True).select_option("0")
    assert count() == "0"
    page.get_by_role("button", name="Show all").click()
    page.get_by_label("q ≤ 0.05").check()
    assert count() == str((changes["q_change"].fill_nan(None) <= 0.05).sum())
    page.get_by_label("q ≤ 0.05").uncheck()
    box = page.locator("canvas.over").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 14)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 42, steps=3)
    page.mouse.up()
    most = float(page.get_by_label("horizontal axis to").input_value())
    kept = changes.filter(pl.col("self_corr").fill_nan(None) <= most)
    assert 0 < len(kept) < len(changes)
    assert count() == str(len(kept))
    with page.expect_download() as download:
        page.locator("#units").get_by_role("link", name="Save as CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    assert {row["unit"] for row in rows} == {name_of(row) for row in kept.rows(named=True)}
    known = {name_of(row): row for row in kept.rows(named=True)}
    for row in rows:
        assert float(row["w_out_ratio"]) == pytest.approx(known[row["unit"]]["w_out_ratio"], rel=1e-6)
        assert row["family_after"] == known[row["unit"]]["family_after"]
    visitor.well()


def test_units_say_what_training_changed_of_them(visit, site, shown_diff):
    visitor = visit(site)
    changes = shown_diff.changes.filter(pl.col("layer") == 1)
    for kind in ("moved", "re-tuned", "died"):
        row = random.Random(0).choice(changes.filter(pl.col("kind") == kind).rows(named=True))
        page = visitor.go(UNIT + name_of(row))
        told = page.locator("#change")
        assert told.locator(".hero a").inner_text() == kind
        assert "/diff.html" in page.evaluate("document.querySelector('#change .hero a').href")
        lines = {
            line[0]: line[1:]
            for line in (r.locator("th, td").all_inner_texts() for r in told.locator("tbody tr").all())
        }
        for title, name in {
            "ρ with itself": "self_corr",
            "mean shift": "mean_shift",
            "cosine of w_out": "w_out_cos",
        }.items():
            value = row[name]
            if value is None or math.isnan(value):
                assert title not in lines
                continue
            assert says(lines[title][0], value)
            if f"{name}_low" in row:
                low, _, high = lines[title][1].partition(" to ")
                assert says(low, row[f"{name}_low"])
                assert says(high, row[f"{name}_high"])
            assert says(lines[title][2], row[f"p_{name}"])
            assert says(lines[title][3], row[f"q_{name}"])
        for side, text in zip(("before", "after"), lines["fires at"]):
            assert says(text, 100 * row[f"firing_{side}"])
        if kind == "moved":
            other = f"L{row['moved_to_layer']}.{row['moved_to_neuron']}"
            assert f"moved to {other}" in told.inner_text()
            heads = page.locator("#examples .column .unit-name").all_inner_texts()
            assert heads == [name_of(row), name_of(row), other]  # itself before, after, and where it went
            tokens = told.locator(".bars .token").all_text_contents()
            assert len(tokens) == 10
    told.get_by_role("link", name="after", exact=True).click()
    page.wait_for_url("**/unit.html*u=1*")
    visitor.arrived()
    assert page.locator("#change").count() == 1
    told.get_by_role("link", name="all units").click()
    page.wait_for_url("**/diff.html*")
    visitor.arrived()
    visitor.well()


def test_a_diff_is_served_and_reads_texts_by_its_study(shown_diff):
    page = page_of([shown_diff], "data/base-to-tuned/diff.js")
    assert page is not None
    assert read_statement(page)[1]["kinds"] == list(KINDS)
    with pytest.raises(InputError, match="memory"):
        StudyTexts({ID: shown_diff})(ID, "a text")


def with_effects(diff, folder: Path) -> Diff:
    """The diff with tables of effects that were written by hand: two units on one text."""
    shutil.copytree(diff.path, folder)
    units = {"text": ["first", "first"], "rank": [1, 2], "layer": [1, 1], "neuron": [0, 24], "size": [2.0, 1.0]}
    sets = {"text": ["first", "first"], "units": ["changed", "others"], "count": [2, 2], "gain": [0.5, 0.5]}
    sets |= {"gain_low": [0.25, 0.25], "gain_high": [0.75, 0.75]}
    for number, name in enumerate(("ablated_before", "ablated_after", "patched", "share")):
        units |= {f"{name}{end}": [number + 0.25 + at, 0.5] for at, end in enumerate(("", "_low", "_high"))}
    for number, name in enumerate(("patched", "share", "given", "given_share")):
        sets |= {f"{name}{end}": [number + 0.75 + at, None] for at, end in enumerate(("", "_low", "_high"))}
    manifest = json.loads((folder / "diff.json").read_text())
    for name, columns in {"unit_effects": units, "joint_effects": sets}.items():
        pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")
        manifest["tables"][name] = hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest()
    (folder / "diff.json").write_text(json.dumps(manifest))
    return Diff(folder)


def test_effects_are_shown_where_there_are_some(visit, site, shown_diff, tmp_path):
    root = write_site([with_effects(shown_diff, tmp_path / ID)], tmp_path / "site").parent
    visitor = visit(root)
    page = visitor.go("index.html")  # of one diff its own page
    assert page.inner_text("h1") == "What training changed"
    changed, others = cells_of(page, "#carried .table:nth-of-type(1)")
    assert changed["patched"] == "0.75 1.75 to 2.75"
    assert changed["given, share of the gain"] == "3.75 4.75 to 5.75"
    assert (others["units"], others["share of the gain"]) == ("others of their layers", "–")
    first, second = cells_of(page, "#carried .table:nth-of-type(2)")
    assert (first["unit"], first["kind"], second["kind"]) == ("L1.0", "re-tuned", "redirected")
    assert first["ablated after"] == "1.25 2.25 to 3.25"
    page = visitor.go("unit.html?u=1/L1.0")
    page.locator("#change caption", has_text="By how much the loss rises").wait_for()
    assert "3.25 4.25 to 5.25" in page.inner_text("#change")
    assert visitor.go("unit.html?u=1/L1.1").locator("#change caption", has_text="By how much").count() == 0
    assert visit(site).go(DIFF).locator("#carried").count() == 0
    visitor.well()


def test_a_site_of_several_lists_a_diff_as_one(visit, site, shown_diff):
    visitor = visit(site)
    page = visitor.go("index.html")
    card = page.locator(".cards li").first
    assert card.locator("h2").text_content() == " → ".join(shown_diff.models)
    assert "diff" in card.inner_text()
    assert "diff.html" in card.locator("h2 a").get_attribute("href")
    assert "study.html" in page.locator(".cards li").nth(1).locator("h2 a").get_attribute("href")
    other = data_of(site, "site")["studies"][1]["id"]
    page = visitor.go(f"diff.html?s={other}")
    assert "This study is no diff" in page.inner_text(".empty")
    page = visitor.go(f"unit.html?s={other}&u=0/L0.1")
    assert page.locator("#change").count() == 0
    visitor.well()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_of_a_diff_serve_everybody(visit, site, shown_diff, scheme):
    visitor = visit(site, color_scheme=scheme)
    moved = shown_diff.changes.filter(pl.col("kind") == "moved").row(0, named=True)
    for address in (DIFF, UNIT + name_of(moved)):
        page = visitor.go(address)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run({preload: false}).then((found) => found.violations)")
        serious = [f for f in found if f["impact"] in ("serious", "critical")]
        assert not serious, (address, [(f["id"], [n["html"][:200] for n in f["nodes"]][:3]) for f in serious])
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
    visitor.well()
