"""Pages in use: walked by keyboard alone, searched, filtered, brushed, saved."""

import csv
import io
import json

import pytest
from hand_site import COUNT, FAMILIES, excess, label

pytest_plugins = ["visits"]


def tab_to(page, selector: str, most: int = 80) -> None:
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(s) => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{most} tabs do not reach {selector}")


def test_keyboard_alone_goes_from_the_study_to_a_unit_its_counterpart_and_back(visitor):
    page = visitor.go("index.html")
    tab_to(page, ".table tbody a")
    assert page.evaluate("document.activeElement.textContent") == "L0.0"
    page.keyboard.press("Enter")
    page.wait_for_url("**/unit.html*")
    visitor.arrived()
    tab_to(page, "#matches a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/unit.html*u=1*L0.1")
    visitor.arrived()
    assert page.inner_text("h1").startswith("L0.1")
    page.locator("#matches a").wait_for()
    tab_to(page, "#matches a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/unit.html*u=0*L0.0")
    visitor.arrived()
    visitor.well()


def test_keyboard_walks_tokens_points_and_cells(visitor):
    page = visitor.go("unit.html?u=0/L0.0")
    tab_to(page, "#together .window")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "seed-1" in page.inner_text("#bubble")
    assert page.locator("#together .window").first.locator(".here").count() == 2
    page.keyboard.press("Escape")
    assert page.locator("#bubble").is_hidden()
    page = visitor.go("study.html")
    page.locator("canvas.over").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert "L1.37" in page.inner_text(".scatter .readout")  # the second from below by excess
    page.keyboard.press("Enter")
    page.wait_for_url("**/unit.html*L1.37")
    visitor.arrived()
    page = visitor.go("layers.html")
    tab_to(page, ".heat a")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".heat-box .readout").startswith("20 %")
    page.keyboard.press("Enter")
    page.wait_for_url("**/study.html*")
    visitor.arrived()
    assert "0 of 80" in page.inner_text(".count")  # layer 1 to layer 1 has all, 1 to 0 none
    visitor.well()


def test_search_finds_units_families_labels_and_tokens(visitor):
    page = visitor.go("families.html")
    box = page.get_by_role("searchbox")
    box.fill("L1.3")
    assert page.locator(".results a").first.inner_text().startswith("L1.3")
    box.fill("synt")
    page.locator(".results a", has_text="syntax").wait_for()
    box.fill("label 3")
    page.locator(".results a", has_text="more on label 3").wait_for()
    assert page.locator(".results a", has_text="label 3").count() == 2, "by its name and in words"
    box.fill("<img")
    page.locator(".results h2", has_text="Tokens").wait_for()
    labels = {label(number) for number in range(COUNT) if "<img" in label(number)}
    assert page.locator(".results a").count() == 2 * len(labels) + 6
    box.fill("nothing has this")
    page.locator(".results .empty").wait_for()
    box.fill("word1")
    page.locator(".results a", has_text="word1").first.wait_for()
    box.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/study.html*token=*")
    visitor.arrived()
    assert page.inner_text(".count").startswith("1 of 80")
    visitor.well()


def saved(page, link: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("link", name=link).first.click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        return file.read()


def test_filters_and_ranges_lead_to_the_table_s_csv(visitor):
    page = visitor.go("study.html")
    page.get_by_label("Family", exact=True).select_option("syntax")
    wanted = [n for n in range(COUNT) if FAMILIES[n % len(FAMILIES)] == "syntax"]
    assert page.inner_text(".count").startswith(f"{len(wanted)} of 80")
    rows = list(csv.DictReader(io.StringIO(saved(page, "Save as CSV"))))
    assert [row["unit"] for row in rows] == [f"L{n // 40}.{n % 40}" for n in wanted]
    assert [float(row["excess_corr"]) for row in rows] == pytest.approx([excess(0, n) for n in wanted])
    assert float(rows[0]["match_corr:1"]) == pytest.approx(excess(0, wanted[0]) + 0.08)
    assert float(rows[0]["kurt"]) == 3 + wanted[0] % 11
    page.get_by_label("vertical axis from").fill("0.5")
    page.get_by_label("vertical axis from").press("Enter")
    rows = list(csv.DictReader(io.StringIO(saved(page, "Save as CSV"))))
    assert [row["unit"] for row in rows] == [f"L{n // 40}.{n % 40}" for n in wanted if excess(0, n) >= 0.5]
    page.reload()
    visitor.arrived()
    assert page.inner_text(".count").startswith(f"{len(rows)} of 80")  # the address keeps it
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("checkbox", name="universal").check()
    assert page.inner_text(".count").startswith("34 of 80")
    visitor.well()


def test_sorting_and_paging(visitor):
    page = visitor.go("study.html")
    names = lambda: page.locator(".table tbody th").all_inner_texts()  # noqa: E731
    assert names()[0] == "L0.0"
    page.get_by_role("button", name="excess", exact=True).click()
    assert names()[0] == "L1.38"
    assert page.locator("th[aria-sort=ascending]").count() == 1
    for _ in range(3):
        page.get_by_role("button", name="Next").click()
    assert names()[-1] == "L1.39"  # the dead one: without a value it stays last
    page.get_by_role("button", name="fires", exact=True).click()
    first = min((label(number) for number in range(COUNT)), key=lambda text: text.encode("utf-16-be"))
    assert first in page.locator(".table tbody tr").first.text_content()


def test_a_brush_filters_the_table(visitor):
    page = visitor.go("study.html")
    box = page.locator("canvas.over").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 14)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 14 + (box["height"] - 52) / 2, steps=3)
    page.mouse.up()
    lowest = float(page.get_by_label("vertical axis from").input_value())
    assert 0.3 < lowest < 0.6
    kept = [n for n in range(COUNT - 1) if excess(0, n) >= lowest]
    assert page.inner_text(".count").startswith(f"{len(kept)} of 80")
    page.get_by_role("button", name="Clear the range").click()
    assert page.inner_text(".count").startswith("80 of 80")
    page.locator(".legend button", has_text="syntax").focus()
    page.keyboard.press("Enter")
    assert page.inner_text(".count").startswith("16 of 80")
    assert page.evaluate("document.activeElement.textContent") == "syntax"  # the focus stays
    visitor.well()


def test_a_unit_is_saved_as_json_with_its_tokens_spelt(visitor):
    page = visitor.go("unit.html?u=0/L0.3")
    data = json.loads(saved(page, "Save as JSON"))
    assert (data["layer"], data["neuron"]) == (0, 3)
    assert all(isinstance(token, str) for window in data["examples"] for token in window["tokens"])
    page.get_by_text("This unit as JSON").click()
    page.locator(".json pre", has_text='"layer"').wait_for()


def test_terms_explain_themselves_on_focus(visitor):
    page = visitor.go("study.html")
    page.locator(".facts .term").first.focus()
    assert page.inner_text("#bubble") == "A unit whose excess is above the threshold."
    page = visitor.go("unit.html?u=0/L0.3")
    page.get_by_role("button", name="Under one text").click()
    assert page.locator("#together .laned").count() == 48
    visitor.well()
