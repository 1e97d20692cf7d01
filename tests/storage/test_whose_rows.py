"""Whose rows a table's are: `model` is the neuron's own model everywhere, `match_model` its match's; also in old stores."""

import polars as pl
import pytest
from plain_site import table_of, with_tables
from polars.testing import assert_frame_equal

from universal_neurons import Store
from universal_neurons.errors import InputError
from universal_neurons.explorer import write_dataset, write_site
from universal_neurons.explorer.unit_rows import UnitRows, pieces_of

PLACE = ["model", "layer", "neuron"]
MATCH = ["match_model", "match_layer", "match_neuron"]
MATCHED = ("matches", "functional", "layers", "correlations")


@pytest.fixture(scope="module")
def old(odd_store, tmp_path_factory):
    """The study as an earlier version wrote it: the match's model as `model`, the neuron's own as `asker` alone."""
    tables = {name: table_of(odd_store.path, name).drop("model") for name in (*MATCHED, "counterparts")}
    changed = {name: table.rename({"match_model": "model"}, strict=False) for name, table in tables.items()}
    return Store(with_tables(odd_store.path, tmp_path_factory.mktemp("old") / odd_store.path.name, changed=changed))


def by_place(neurons):
    return {tuple(row[name] for name in PLACE): row for row in neurons.iter_rows(named=True)}


@pytest.mark.parametrize(("name", "fewest"), [("matches", 250), ("functional", 1), ("counterparts", 250)])
def test_a_natural_join_gives_each_row_its_own_neuron(odd_store, name, fewest):
    table, neurons = odd_store.table(name), odd_store.neurons.select(*PLACE, "excess_corr", "kurt")
    assert {column for column in table.columns if column in odd_store.neurons.columns} <= {*PLACE, "roles"}
    assert len(table) >= fewest
    joined = table.join(neurons, on=PLACE, maintain_order="left")
    assert len(joined) == len(table)
    rows = by_place(odd_store.neurons)
    for row in joined.iter_rows(named=True):
        own = rows[row["asker"], row["layer"], row["neuron"]]
        assert row["model"] == row["asker"]
        assert (row["excess_corr"], row["kurt"]) == (own["excess_corr"], own["kurt"])


@pytest.mark.parametrize("name", ["matches", "functional"])
def test_the_match_is_a_neuron_of_another_model(odd_store, name):
    table, neurons = odd_store.table(name), odd_store.neurons.select(*PLACE, "w_out_norm")
    joined = table.join(neurons, left_on=MATCH, right_on=PLACE, maintain_order="left")
    assert len(joined) == len(table)
    rows = by_place(odd_store.neurons)
    for row in joined.iter_rows(named=True):
        assert row["match_model"] != row["model"]
        assert row["w_out_norm"] == rows[tuple(row[column] for column in MATCH)]["w_out_norm"]


def test_the_best_matches_of_a_neuron_are_named_with_what_they_fire_on(odd_store):
    found = {tuple(row[name] for name in PLACE): row for row in odd_store.matches.rows(named=True) if row["rank"] == 1}
    rows = by_place(odd_store.neurons)
    assert len(found) > 80
    for model, layer, neuron in [*found][::5]:
        (told,) = odd_store.neuron(f"{model}/L{layer}.{neuron}").counterparts.rows(named=True)
        assert told["neuron"] == f"{model}/L{layer}.{neuron}"
        match, there = found[model, layer, neuron], odd_store.neuron(told["counterpart"])
        assert (there.model, there.layer, there.neuron) == tuple(match[name] for name in MATCH)
        for column in ("corr", "corr_heldout", "corr_low", "corr_high", "mutual"):
            assert told[column] == match[column]
        own = rows[there.model, there.layer, there.neuron]
        explained = own["family"] not in ("unexplained", "bos")
        assert (told["family"], told["label"]) == (own["family"], own["label"] if explained else None)


def test_counterparts_of_one_are_rows_of_all(odd_store):
    every = odd_store.counterparts()
    assert len(every) == len(odd_store.matches.filter(rank=1))
    name = every["neuron"][7]
    assert_frame_equal(odd_store.counterparts(name), every.filter(neuron=name))
    with pytest.raises(InputError, match="no such neuron"):
        odd_store.counterparts("L9.0")


def test_tables_become_pandas_frames(odd_store):
    pytest.importorskip("pandas")
    for table in (odd_store.neurons, odd_store.matches, odd_store.counterparts(), odd_store.universal(threshold=-1.0)):
        frame = table.to_pandas()
        assert list(frame.columns) == table.columns
        assert len(frame) == len(table)
    frame, neurons = odd_store.matches.to_pandas(), odd_store.neurons.to_pandas()
    joined = frame.merge(neurons, on=PLACE)
    assert joined["asker"].eq(joined["model"]).all()
    assert len(joined) == len(frame)


@pytest.mark.parametrize("name", ["layers", "correlations"])
def test_tables_of_layers_and_models_name_both(odd_store, name):
    table = odd_store.table(name)
    one, other = odd_store.models
    assert table["model"].equals(table["asker"])
    assert set(table.select("model", "match_model").rows()) == {(one, other), (other, one)}


def test_a_store_of_an_earlier_version_is_read_by_the_names_of_now(old, odd_store):
    for name in (*MATCHED, "counterparts"):
        assert "match_model" not in pl.read_parquet_schema(old.path / f"{name}.parquet")
        assert_frame_equal(old.table(name), odd_store.table(name))
        assert_frame_equal(pl.concat(pieces_of(old, name)), odd_store.table(name))
    rows = [UnitRows(store, "matches", store.units, by="asker").take(store.models[0], 48) for store in (old, odd_store)]
    assert_frame_equal(*rows)
    assert not {"model", "asker"} & set(rows[0].columns)
    name = odd_store.universal(threshold=-1.0)["neuron"][0]
    assert_frame_equal(old.universal(threshold=-1.0), odd_store.universal(threshold=-1.0))
    for part in ("matches", "counterparts", "functional", "sentence"):
        mine, theirs = (getattr(store.neuron(name), part) for store in (old, odd_store))
        assert mine == theirs if part == "sentence" else mine.equals(theirs)


def test_what_is_made_of_an_old_store_is_what_is_made_of_a_new_one(old, odd_store, tmp_path):
    sites = [write_site([store], tmp_path / where, csv=True) for where, store in (("a", old), ("b", odd_store))]
    files = [{p.relative_to(page.parent): p for p in page.parent.rglob("*.*")} for page in sites]
    assert files[0].keys() == files[1].keys()
    assert all(path.read_bytes() == files[1][name].read_bytes() for name, path in files[0].items() if path.is_file())
    dataset = write_dataset(old, tmp_path / "dataset")
    for name in (*MATCHED, "counterparts"):
        assert pl.read_parquet(dataset / "data" / f"{name}.parquet").equals(odd_store.table(name))
        assert "`match_model`" in (dataset / "README.md").read_text()
