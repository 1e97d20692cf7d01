"""Every kind of page, from disk in a real Chromium: drawn without complaint, strangers' strings as typed, usable by all."""

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from axe.fetch import SCRIPT_SHA256
from hand_site import COUNT, HOSTILE, MODELS, STATIC, activation, excess, label, write_hand_site

pytest_plugins = ["visits"]

AXE = Path(__file__).parent / "axe/axe.min.js"
KINDS = {
    "study.html": "Two seeds",
    "unit.html?u=0/L0.1": "L0.1",
    "unit.html?u=1/L0.2": "L0.2",
    "families.html": "Families",
    "roles.html": "Roles",
    "layers.html": "Layers",
    "models.html": "Models",
    "subsets.html": "Subsets",
    "dynamics.html": "Dynamics",
    "diff.html": "Diff",
    "explanations.html": "Explanations",
    "text.html": "Your text",
    "index.html": "Two seeds",
}
POLICY = {
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self' data:",
    "connect-src": "'self'", "base-uri": "'none'", "form-action": "'self'",
}  # fmt: skip


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    return write_hand_site(tmp_path_factory.mktemp("several"), studies=2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_page_is_drawn_without_complaint_and_serves_everybody(visit, small_site, scheme):
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == SCRIPT_SHA256
    visitor = visit(small_site, color_scheme=scheme, viewport={"width": 1200, "height": 800})
    for address, title in KINDS.items():
        page = visitor.go(address)
        assert title in page.inner_text("h1"), address
        assert visitor.arrived() == "yes", address
        visitor.well()
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run({preload: false}).then((found) => found.violations)")
        serious = [f for f in found if f["impact"] in ("serious", "critical")]
        assert not serious, (address, [(f["id"], [n["html"][:200] for n in f["nodes"]][:3]) for f in serious])


def test_narrow_screens_need_no_sideways_scrolling(visit, small_site):
    visitor = visit(small_site, viewport={"width": 390, "height": 844})
    for address in KINDS:
        page = visitor.go(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
        wide = page.evaluate(
            "[...document.querySelectorAll('main > *')].filter((e) => e.getBoundingClientRect().right > 391).map((e) => e.className)"
        )
        assert not wide, address
    visitor.well()


def test_templates_hold_no_inline_script_or_style_and_a_strict_policy(small_site):
    for file in small_site.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
        assert dict(rule.strip().split(" ", 1) for rule in policy.split(";")) == POLICY
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=|javascript:", text)
        assert all(re.fullmatch(r"static/[a-z-]+\.js", source) for source in re.findall(r'<script src="([^"]*)"', text))


def test_scripts_make_no_markup_of_strings():
    for file in STATIC.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|cssText|srcdoc", text
        ), file
        assert len(text.splitlines()) <= 400, file


def test_hostile_strings_are_shown_as_typed(visitor):
    page = visitor.go("study.html")
    for at in range(1, 25, 4):
        row = page.locator(f'.table tbody tr:has(th a:text-is("L0.{at}"))')
        assert f"more on {label(at)}" in row.text_content()
    assert HOSTILE[0] in page.text_content(".lead")
    assert HOSTILE[1] in page.text_content(".facts")
    page = visitor.go("unit.html?u=0/L0.2")
    shown = page.locator("#tokens .token").all_text_contents()
    assert len(HOSTILE) == 100
    assert set(HOSTILE) <= set(shown)
    page = visitor.go("unit.html?u=0/L0.17")
    assert any(text in page.text_content("#together") for text in HOSTILE)
    assert f"Fires on {HOSTILE[17]}" in page.text_content(".unit-head .explanation")
    assert f"Fires on {HOSTILE[17]}" in page.text_content("#explanations")
    assert f"By {HOSTILE[1]}" in page.text_content("#explanations")
    assert HOSTILE[0] in page.text_content("#explanations .asked")
    assert HOSTILE[0] in page.text_content("#effects")
    assert MODELS[1] in page.text_content("#matches")
    page = visitor.go("models.html")
    assert MODELS[1] in page.text_content(".table")
    assert HOSTILE[1] in page.text_content("#settings")
    page = visitor.go("subsets.html")
    assert set(HOSTILE) <= set(page.locator(".bars .said").all_text_contents())
    assert HOSTILE[3] in visitor.go("explanations.html").text_content("#page")
    visitor.well()


@pytest.mark.parametrize("hostile", HOSTILE[:6])
def test_hostile_addresses_are_refused_in_words(visitor, hostile):
    for address in (f"unit.html?u={quote(hostile)}", f"study.html?s={quote(hostile)}"):
        page = visitor.go(address)
        assert page.inner_text("h1") == "This page cannot be shown"
    visitor.go(f"study.html#label={quote(hostile)}&family={quote(hostile)}&x={quote(hostile)}&m={quote(hostile)}")
    visitor.well()


def test_several_studies_are_listed_and_chosen(visit, several):
    visitor = visit(several)
    page = visitor.go("index.html")
    assert page.locator(".cards a").all_inner_texts() == ["Two seeds", HOSTILE[1]]
    page.locator(".cards a").nth(1).click()
    page.wait_for_url("**/study.html?s=two*")
    visitor.arrived()
    assert page.inner_text("h1") == HOSTILE[1]
    page.get_by_label("Study").select_option("one")
    page.wait_for_url("**/study.html?s=one*")
    visitor.well()


def test_explanations_with_scores(visit, several):
    visitor = visit(several)
    page = visitor.go("explanations.html?s=two")
    for shown in (HOSTILE[2], HOSTILE[1]):
        assert shown in page.text_content("#units tbody")
    told = page.inner_text("#sources tbody").replace("\t", " ")
    assert all(text in told for text in ("0.65", "0.50 to 0.75", "0.88", "0.80 to 0.95", "–"))
    assert page.get_attribute("#units tbody th a", "href").endswith("u=1%2FL1.3")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({preload: false}).then((found) => found.violations)")
    assert not [f["id"] for f in found if f["impact"] in ("serious", "critical")]
    page.fill("#search", HOSTILE[2][-9:])
    page.wait_for_selector("#results li")
    assert HOSTILE[2] in page.text_content("#results")
    assert "L1.3 of" in page.text_content("#results")
    page = visitor.go("unit.html?s=one&u=0/L0.3")
    rows = [row.replace("\t", " ").split("\n") for row in page.locator("#explanations .scores tr").all_inner_texts()]
    flat = [" ".join(row) for row in rows]
    assert [row.partition(" ")[0] for row in flat[1:]] == [
        "detection",
        "this",
        "counterpart",
        "random",
        "this",
        "simulation",
        "this",
    ]
    assert "0.70" in flat[2]
    assert "0.60 to 0.80" in flat[2]
    assert "256" in flat[2]
    assert "L1.4" in flat[3]
    assert "too few answers" in flat[-1]
    assert page.locator("#explanations .empty").inner_text() == "Nobody has scored this sentence."
    visitor.well()


def test_a_unit_s_page_says_what_its_file_says(visitor):
    page = visitor.go("unit.html?u=seed-1/L1.3")
    value = excess(0, 43)
    assert page.inner_text(".hero strong") == f"{value:.2f}"
    assert f"{value - 0.07:.2f} to {value + 0.08:.2f}" in page.inner_text(".hero")
    assert page.locator(".window").count() == 4 + 2 * 2  # shared ones, and of either model those of one band
    assert page.locator("#together .window").first.locator(".text").count() == 2
    assert "No token" not in page.inner_text("#tokens")
    assert page.get_by_role("link", name="next →").get_attribute("href").endswith("L1.4")
    visitor.well()


def test_tokens_are_coloured_by_their_share_and_say_their_values(visitor):
    page = visitor.go("unit.html?u=0/L0.2")
    values = [[activation(model, 2, window, at) for window in range(4) for at in range(12)] for model in range(2)]
    values[0] = [0 if place % 12 == 0 else value for place, value in enumerate(values[0])]
    most = [max(map(abs, each)) for each in values]
    texts = page.locator("#together .window .text")
    for window in range(4):
        for model in range(2):
            spans = texts.nth(2 * window + model).locator(".tok")
            for at in (1, 6, 11):
                value = values[model][12 * window + at]
                shown = spans.nth(at).evaluate("(e) => [e.style.getPropertyValue('--share'), e.className]")
                assert float(shown[0]) == pytest.approx(abs(value) / most[model], abs=6e-4)
                assert ("minus" if value < 0 else "plus") in shown[1]
    texts.first.locator(".tok").nth(3).hover()
    told = page.inner_text("#bubble")
    assert all(f"{values[model][3]:.2f}".replace("-", "−") in told for model in range(2))
    texts.first.locator(".tok").nth(0).hover()
    assert "not counted" in page.inner_text("#bubble")


def test_a_unit_that_was_not_asked_about_names_those_that_have_it_for_a_match(visitor):
    page = visitor.go("unit.html?u=1/L0.4")
    page.locator("#matches li a").wait_for()
    assert "1 unit of seed-1" in page.inner_text("#matches")
    assert page.inner_text("#matches li").startswith(f"L0.3 ρ {excess(0, 3) + 0.08:.2f}")
    visitor.well()


def test_layers_as_wholes_and_units_one_to_one(visitor):
    page = visitor.go("layers.html")
    cell = page.locator("#wholes .heat a").first
    assert cell.inner_text() == "80"
    cell.focus()
    said = page.inner_text("#wholes .readout")
    assert "CKA 0.80, by chance 0.13, calibrated 0.80 (0.70 to 0.90)" in said
    assert cell.get_attribute("aria-label") == said
    assert "chance" not in said.partition("calibrated")[2]
    for measure, text, words in (("cca", "~", "not distinguishable from chance"), ("r2_to_match", "~", "not defined")):
        page.select_option("#wholes select", measure)
        cell = page.locator("#wholes .heat a").first
        assert cell.inner_text() == text
        assert words in cell.get_attribute("aria-label")
    row = page.inner_text("#one-to-one tbody tr")
    for told in ("76 of 80", "75 %", "65 % to 83 %", "0.56 by chance 0.23", "41 by chance 12", "0.38 by chance 0.25"):
        assert told in row
    page = visitor.go("unit.html?u=0/L0.3")
    assert "one to one" in page.inner_text("#matches thead")
    assert "L1.4 0.41" in page.inner_text("#matches tbody")
    visitor.well()


def test_what_is_not_there_says_why(visitor):
    page = visitor.go(f"unit.html?u=0/L1.{COUNT // 2 - 1}")
    assert "dead" in page.inner_text(".tags")
    assert "A dead unit has no counterparts" in page.inner_text("#matches")
    page = visitor.go("unit.html?u=0/L1.38")
    assert "Nobody has written explanations" in page.inner_text("#explanations")
    assert not page.query_selector(".untried"), "all was tried"
    page = visitor.go("unit.html?u=1/L1.38")
    assert page.inner_text(".untried summary") == "Not tried for this unit: same function"
    page.click(".untried summary")
    assert "Only units of the reference" in page.inner_text(".untried dd")
    assert not page.query_selector("#functional")
    page = visitor.go("unit.html?u=0/L9.1")
    assert "L9.1" in page.inner_text(".notice")
    (visitor.root / "data/one/unit/1/1.js").rename(visitor.root / "data/one/unit/1/gone.js")
    page = visitor.go("unit.html?u=1/L1.39")
    assert "data/one/unit/1/1.js cannot be read" in page.inner_text(".notice")
    (visitor.root / "data/one/unit/1/gone.js").rename(visitor.root / "data/one/unit/1/1.js")
