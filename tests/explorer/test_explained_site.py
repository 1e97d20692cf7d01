"""What a site says of explanations and their scores is what the tables say: data files, CSV, and the study's page."""

import polars as pl
import pytest
from hand_scores import AUTHOR, COUNT, SAID, SCORER, own_score, there_score, with_hand_scores
from hand_site import STATIC
from plain_site import column_of, data_of, says, table_of

from universal_neurons import Store
from universal_neurons.explorer import write_site

pytest_plugins = ["visits"]
PLACE = ["model", "layer", "neuron"]


@pytest.fixture(scope="module")
def scored(odd_store, tmp_path_factory):
    return Store(with_hand_scores(odd_store.path, tmp_path_factory.mktemp("explained") / "s"))


@pytest.fixture(scope="module")
def site(scored, tmp_path_factory):
    return write_site([scored], tmp_path_factory.mktemp("site") / "site", csv=True, static=STATIC).parent


@pytest.fixture(scope="module")
def places(scored):
    neurons = table_of(scored.path, "neurons")
    return neurons.filter(pl.col("model") == scored.models[0], ~pl.col("dead")).head(COUNT).select(PLACE).rows()


def test_a_unit_has_every_explanation_and_every_score(site, scored, places):
    scores, seen = table_of(scored.path, "scores"), 0
    for path in sorted((site / "data/s/unit/0").glob("*.js")):
        for unit in data_of(site, f"s/unit/0/{path.stem}")["units"]:
            place = (scored.models[0], unit["layer"], unit["neuron"])
            said = scored.explanations.filter(**dict(zip(PLACE, place)))
            assert [each["text"] for each in unit["explanations"]] == said["explanation"].to_list()
            if place not in places:
                assert "scores" not in unit
                continue
            name = f"{place[0]}/L{place[1]}.{place[2]}"
            own = (pl.col("model") == place[0]) & (pl.col("layer") == place[1]) & (pl.col("neuron") == place[2])
            away = pl.col("use").is_in(["counterpart", "random"])
            wanted = scores.filter((own & ~away) | (away & (pl.col("explanation") == name))).rows(named=True)
            assert len(unit["scores"]) == len(wanted)
            for told, row in zip(unit["scores"], wanted):
                assert [told[key] for key in ("use", "method", "scorer")] == [row["use"], row["method"], SCORER]
                assert told.get("by", "labels") == row["source"]
                assert told.get("score") == (row["auprc"] and pytest.approx(row["auprc"], rel=1e-4))
                assert told["n_windows"] == row["n_windows"]
                at = (told.get("model"), told.get("layer"), told.get("neuron"))
                elsewhere = row["use"] in ("counterpart", "random")
                model = scored.models.index(row["model"])
                assert at == ((model, row["layer"], row["neuron"]) if elsewhere else (None, None, None))
                seen += 1
    assert seen > 7 * COUNT


def test_columns_csv_and_tables_have_the_best(site, scored, places):
    columns = data_of(site, "s/units/0")["columns"]
    told = dict(
        zip(
            zip(column_of(columns["layer"]), column_of(columns["neuron"])),
            zip(column_of(columns["explanation"]), column_of(columns["explanation_score"])),
        )
    )
    rows = pl.read_csv(site / "csv/s-units.csv", infer_schema_length=None).filter(model=scored.models[0])
    in_csv = {(row["layer"], row["neuron"]): row for row in rows.rows(named=True)}
    for number, (_, *place) in enumerate(places):
        assert told[tuple(place)] == (f"{SAID}{number}", pytest.approx(own_score(number), rel=1e-6))
        row = in_csv[tuple(place)]
        assert (row["explanation"], row["explanation_source"]) == (f"{SAID}{number}", AUTHOR)
        assert row["explanation_score"] == pytest.approx(own_score(number))
    others = [place for place in told if (scored.models[0], *place) not in places]
    assert all(told[place][0] == "" and told[place][1] != told[place][1] for place in others)
    assert "explanation" not in data_of(site, "s/units/1")["columns"]
    tables = data_of(site, "s/tables")
    listed = tables["explanations"]["columns"]
    assert len(listed["source"]) == 2 * COUNT, "label sentences that nobody scored are not listed"
    by_author = [at for at, source in enumerate(listed["source"]) if source == AUTHOR]
    assert [listed["on_counterparts"][at] for at in by_author] == pytest.approx(
        [there_score(n) for n in range(COUNT)], rel=1e-4
    )
    assert set(tables["explanation_sources"]["columns"]["source"]) == {AUTHOR, "labels"}
    assert "explanations" not in data_of(site, "s/study")["absent"]
    assert "explanations" in data_of(site, "site")["studies"][0]["pages"]


def test_the_study_s_page_sorts_filters_and_finds(visit, site, places):
    visitor = visit(site)
    page = visitor.go("study.html")
    heads = page.locator("#units .table thead th button")
    heads.filter(has_text="explanation's score").click()
    at = heads.all_inner_texts().index("explanation's score")
    cells = [row.locator("th, td").nth(at).inner_text() for row in page.locator("#units .table tbody tr").all()]
    assert all(says(cell, own_score(number)) for number, cell in enumerate(cells[:COUNT]))
    assert len(cells) > COUNT
    assert cells[COUNT] == "–"
    page.get_by_label("explanation scored").check()
    assert page.locator("#units .table tbody tr").count() == COUNT
    page.get_by_label("Label or explanation has").fill("🧠 3")
    assert page.locator("#units .table tbody tr").count() == 1
    page.fill("#search", "🧠 17")
    page.wait_for_selector("#results li")
    assert f"{SAID}17" in page.text_content("#results")
    page.locator("#results a").first.click()
    page.wait_for_url("**/unit.html*")
    visitor.arrived()
    _, layer, neuron = places[17]
    assert page.inner_text(".unit-name").startswith(f"L{layer}.{neuron}")
    assert f"{SAID}17" in page.text_content(".unit-head .explanation")
    assert page.locator("#explanations .scores a").count() > 1
    visitor.well()
