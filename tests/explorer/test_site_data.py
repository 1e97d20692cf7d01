"""What the data files of a site say is what the tables of its studies say, whatever names and texts are in them."""

import math
import random
from collections import Counter

import numpy as np
import polars as pl
import pytest
from conftest import ODD, ODD_NAMES
from plain_site import by_unit, column_of, data_of, numbers_of, paths_of, same, table_of, with_tables, write_static
from safetensors.numpy import load_file

from universal_neurons import Store
from universal_neurons.explanations import fires_on
from universal_neurons.explorer import write_site
from universal_neurons.roles import together_sentences

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--",
    "\u2028\u2029",
    "\ud800",
    "\\u003c",
    '"); alert("',
    "\0",
    "=1+1",
    " ",
]


def with_counterparts(store):
    """Windows of held-out text as a study keeps them: the examples, with made-up activations of the matches."""
    examples = table_of(store, "examples").filter(pl.col("band") == "top").rename({"model": "asker"})
    others = len(ODD_NAMES) - 1
    windows = [
        [
            [float(np.float32(math.sin(row + place + other))) if row % 5 else math.nan for place in range(length)]
            for other in range(others)
        ]
        for row, length in zip(examples["row"], examples["tokens"].list.len())
    ]
    kind = pl.List(pl.List(pl.Float32))
    return examples.with_columns(pl.Series("match_activations", windows, dtype=kind))


def made_up(store):
    """Tables that so small a text has no answer for."""
    places = table_of(store, "neurons").select("model", "layer", "neuron")
    tokens = places.join(pl.DataFrame({"rank": pl.Series([1, 2, 3], dtype=pl.Int32)}), how="cross")
    numbers = np.arange(len(tokens))
    tokens = tokens.with_columns(
        token=pl.Series((numbers * 7) % 1024, dtype=pl.Int32),
        mean_activation=pl.Series(np.sin(numbers)),
        count=pl.Series(numbers),
    )
    some = places.gather_every(5).join(pl.DataFrame({"position": pl.Series(range(1, 6), dtype=pl.Int32)}), how="cross")
    numbers = np.arange(len(some))
    means = pl.Series(np.where(numbers % 7, np.cos(numbers), np.nan))
    return {
        "tokens": tokens,
        "positions": some.with_columns(count=pl.lit(9), mean_activation=means, firing=pl.Series(numbers / 3)),
    }


@pytest.fixture(scope="module")
def store(odd_store, tmp_path_factory):
    """A study with hostile names, tokens, labels and subsets, and with every table."""
    strings = table_of(odd_store.path, "vocabulary")
    texts = [
        HOSTILE[token % len(HOSTILE)] if token % 3 == 0 else text
        for token, text in zip(*strings.select("token", "string"))
    ]
    texts = [text if "\ud800" not in text else "\ufffd" for text in texts]  # which no parquet file holds
    labels, neurons = table_of(odd_store.path, "labels"), table_of(odd_store.path, "neurons")
    some = (pl.col("neuron") % 2 == 0) & pl.col("label").is_not_null()
    changed = {
        "neurons": neurons.with_columns(family=pl.when(some).then(pl.lit("syntax")).otherwise("family")),
        "vocabulary": strings.with_columns(pl.Series("string", texts)),
        "labels": labels.with_columns(label=pl.col("label") + HOSTILE[0]),
        "counterparts": with_counterparts(odd_store.path),
    } | made_up(odd_store.path)
    folder = with_tables(
        odd_store.path,
        tmp_path_factory.mktemp("explorer") / f"<b>{ODD.replace('/', '')[:20]}".replace("\0", ""),
        changed=changed,
    )
    return Store(folder)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    return write_static(tmp_path_factory.mktemp("static") / "static")


@pytest.fixture(scope="module")
def site(store, static, tmp_path_factory):
    page = write_site([store], tmp_path_factory.mktemp("site") / "site", csv=True, static=static)
    assert page.name == "index.html"
    return page.parent


@pytest.fixture(scope="module")
def identity(site):
    (listed,) = data_of(site, "site")["studies"]
    return listed["id"]


def neurons_of(store):
    """The neuron table as pages have it: the best label of a neuron stands there where it explains the neuron."""
    by_label = ["syntax", "token_class", "unigram", "alphabet", "previous_token", "context"]
    of_position = (pl.col("family") == "position") & pl.col("label").str.contains("^position")
    keeps = pl.col("family").is_in(by_label) | of_position
    return table_of(store.path, "neurons").with_columns(label=pl.when(keeps).then("label"))


def units_of(site, identity, store):
    """Every unit's content, by its place; tokens as strings."""
    found = {}
    for number, model in enumerate(store.models):
        shards = sorted(path for path in paths_of(site) if path.startswith(f"{identity}/unit/{number}/"))
        for path in shards:
            shard = data_of(site, path)
            assert shard["first"] == 64 * int(path.rpartition("/")[2])
            for unit in shard["units"]:
                for window in [*unit.get("examples", []), *unit.get("counterparts", [])]:
                    window["tokens"] = [shard["strings"][place] for place in window["tokens"]]
                found[model, unit["layer"], unit["neuron"]] = unit
    return found


RENAMED = {
    "matches": {"rank": "rank", "layer": "match_layer", "neuron": "match_neuron", "corr": "corr", "heldout": "corr_heldout", "low": "corr_low",
                "high": "corr_high", "mutual": "mutual", "certified": "certified", "ranks": "corr_ranks", "within": "corr_within_tokens",
                "stretches": "stretches", "variance_ratio": "variance_ratio", "without_sinks": "corr_without_sinks"},
    "tokens": {"mean": "mean_activation", "count": "count"},
    "examples": {"band": "band", "rank": "rank", "row": "row", "activation": "activation", "activations": "activations"},
    "labels": {name: name for name in ("rank", "label", "group", "previous", "variance_reduction", "sign")},
    "effects": {name: name for name in ("role", "class", "class_group", "class_sign", "orientation", "tokens_left_out", "class_variance_reduction")},
    "interventions": {name: name for name in ("kind", "edit", "value", "tokens", "loss", "entropy", "rank", "norm_scale")},
    "ablations": {name: name for name in ("kind", "tokens", "loss_change", "mediated", "mediated_low", "frequency_share", "role")},
    "attention": {name: name for name in ("head_layer", "head", "score", "z", "pearson_activation_bos", "role")},
    "one_to_one": {name: name for name in ("match_layer", "match_neuron", "rank", "corr", "cost")},
    "functional": {name: name for name in ("match_layer", "match_neuron", "corr", "effect_corr", "loss_corr", "same_roles")},
}  # fmt: skip
RENAMED["counterparts"] = RENAMED["examples"]
ASKED = ("matches", "one_to_one", "counterparts", "functional")


def claims_of_parts(units, store):
    """Key, what a unit's page says and what the row says, of every row of the tables of units."""
    strings = dict(table_of(store.path, "vocabulary").select("token", "string").iter_rows())
    for key, names in RENAMED.items():
        rows_of = by_unit(table_of(store.path, key), "asker" if key in ASKED else "model")
        for place, unit in units.items():
            rows, told = rows_of.get(place, []), unit.get(key, [])
            told = [told] if isinstance(told, dict) else told
            assert len(told) == len(rows), (key, place)
            for record, row in zip(told, rows):
                for name, column in names.items():
                    yield key, told_of(record, name), row.get(column)
                if key in ASKED and key != "counterparts":
                    other = record["model" if key == "matches" else "match_model"]
                    yield f"{key} model", store.models[other], row["match_model"]
                if "position" in row and "at" in record:
                    yield f"{key} at", record["at"], row["position"] - row["start"]
                    yield f"{key} strings", record["tokens"], [strings[token] for token in row["tokens"]]
                if key == "tokens":
                    yield "token strings", record["string"], strings[row["token"]]
                if key == "effects":
                    for side in ("top", "bottom"):
                        yield (
                            f"effects {side}",
                            [text for text, _ in record[side]],
                            [strings[t] for t in row[f"{side}_tokens"]],
                        )
                        yield f"effects {side} values", [value for _, value in record[side]], row[f"{side}_effects"]
                if key == "counterparts":
                    other = next(number for number, name in enumerate(store.models) if name != place[0])
                    (expected,) = row["match_activations"]
                    told_there = record["others"].get(str(other))
                    yield "others", told_there, None if all(map(math.isnan, expected)) else expected


def told_of(record, name):
    return record.get(name)


def claims_of_units(units, store):
    neurons = {key: rows[0] for key, rows in by_unit(neurons_of(store)).items()}
    assert units.keys() == neurons.keys()
    positions = by_unit(table_of(store.path, "positions"))
    for place, unit in units.items():
        row = neurons[place]
        asked = {name: value for name, value in row.items() if value is not None} if row else {}
        assert unit["columns"].keys() == asked.keys() - {"model", "layer", "neuron"}
        for name, value in unit["columns"].items():
            yield "columns", value, row[name]
        for row in positions.get(place, []):
            told = unit["positions"]
            index = told["position"].index(row["position"])
            yield "positions", told["mean"][index], row["mean_activation"]
            yield "positions", told["firing"][index], row["firing"]
        nearest = {record["kind"]: record for record in unit.get("neighbours", [])}
        if "correlated" in nearest:
            yield "neighbours", nearest["correlated"]["neuron"], neurons[place]["layer_corr_neuron"]
            yield "neighbours", nearest["correlated"]["value"], neurons[place]["layer_corr_max"]


def holds(told, expected) -> bool:
    if isinstance(expected, list):
        return isinstance(told, list) and len(told) == len(expected) and all(map(same, told, expected))
    return same(told, expected) or (told is None and expected is None)


def test_what_pages_of_units_say_is_what_the_tables_say(site, identity, store):
    units = units_of(site, identity, store)
    kinds = Counter()
    for kind, told, expected in [*claims_of_parts(units, store), *claims_of_units(units, store)]:
        assert holds(told, expected), (kind, told, expected)
        kinds[kind] += 1
    assert kinds.keys() >= RENAMED.keys() | {
        "columns",
        "positions",
        "neighbours",
        "others",
        "effects top",
        "token strings",
    }
    assert sum(kinds.values()) > 10_000


FLAG = {None: 255, False: 0, True: 1}


def test_the_columns_of_all_units(site, identity, store):
    matches = {
        (*place, row["match_model"]): row
        for place, rows in by_unit(table_of(store.path, "matches"), "asker").items()
        for row in rows
        if row["rank"] == 1
    }
    seen = Counter()
    for number, model in enumerate(store.models):
        data = data_of(site, f"{identity}/units/{number}")
        rows = neurons_of(store).filter(pl.col("model") == model).to_dicts()
        columns = {name: column_of(column) for name, column in data["columns"].items()}
        assert {len(column) for column in columns.values()} == {len(rows)} == {data["count"]}
        for name, column in columns.items():
            for value, row in zip(column, rows):
                seen[name.partition(":")[0]] += 1
                if ":" in name:
                    kind, other = name.split(":")
                    match = matches.get((model, row["layer"], row["neuron"], store.models[int(other)]))
                    none = {"match_layer": 65535, "match_neuron": 2**32 - 1, "match_corr": math.nan}[kind]
                    expected = none if match is None else match[kind.replace("match_corr", "corr")]
                elif name == "fires":
                    expected = None if row["family"] is None else fires_on(row)
                elif name == "roles":
                    expected = ",".join(row["roles"] or [])
                else:
                    expected = row[name]
                if data["columns"][name]["type"] == "u8":
                    assert value == FLAG[expected]
                elif data["columns"][name]["type"] == "f32":
                    np.testing.assert_equal(np.float32(value), np.float32(math.nan if expected is None else expected))
                else:
                    assert value == ("" if expected is None else expected)
    wanted = "layer neuron dead is_universal mutual_all excess_corr excess_low mean_corr q_value sparsity kurt family label fires roles"
    assert 0 < sum(row["label"] is None for row in rows) < len(rows)
    assert seen.keys() >= {*wanted.split(), "match_layer", "match_neuron", "match_corr"}


def test_every_unit_has_its_sentence(site, identity, store):
    said = {(row["model"], row["layer"], row["neuron"]): row for row in table_of(store.path, "explanations").to_dicts()}
    units = units_of(site, identity, store)
    assert {place: unit["explanations"] for place, unit in units.items()} == {
        place: [{"text": row["explanation"]}] for place, row in said.items()
    }


def test_histograms_keep_every_count(site, identity, store):
    stored = load_file(store.path / "histograms.safetensors")
    for (model, layer, neuron), unit in units_of(site, identity, store).items():
        low, high = stored[f"{model}/low"], stored[f"{model}/high"]
        counts = stored[f"{model}/counts"][:, store.units[model].number_of(layer, neuron)]
        told = unit["histogram"]
        assert sum(told["counts"]) == counts.sum()
        assert len(told["counts"]) <= max(100 + 2 * 64, 1)
        for begin, end, count in zip(told["low"], told["high"], told["counts"]):
            inside = (low >= begin - abs(begin) * 1e-4 - 1e-12) & (high <= end + abs(end) * 1e-4 + 1e-12)
            assert count == counts[inside].sum()


def test_search_finds_the_units_of_a_token(site, identity, store):
    strings = dict(table_of(store.path, "vocabulary").select("token", "string").iter_rows())
    for number, model in enumerate(store.models):
        expected = {}
        size = store.units[model].width
        tokens = table_of(store.path, "tokens").filter(pl.col("model") == model)
        pairs = [(row["token"], row) for row in tokens.iter_rows(named=True)]
        examples = table_of(store.path, "examples").filter((pl.col("model") == model) & (pl.col("band") == "top"))
        pairs += [(row["tokens"][row["position"] - row["start"]], row) for row in examples.iter_rows(named=True)]
        for token, row in pairs:
            expected.setdefault(strings[token], set()).add(size * row["layer"] + row["neuron"])
        data = data_of(site, f"{identity}/search/{number}")
        starts, units = numbers_of(data["starts"], "u32"), numbers_of(data["units"], "u32")
        assert data["tokens"] == sorted(expected)
        assert starts[-1] == len(units)
        for place, token in enumerate(data["tokens"]):
            assert units[starts[place] : starts[place + 1]] == sorted(expected[token])


def test_small_tables_are_whole_with_models_as_numbers(site, identity, store):
    told = data_of(site, f"{identity}/tables")
    names = {name: number for number, name in enumerate(store.models)}
    whole = {
        "thresholds",
        "layers",
        "interventions",
        "ablations",
        "heads",
        "functional",
        "convergence",
        "anchors",
        "costs",
        "unembeddings",
        "consistency",
        "similarity",
    }
    assert told.keys() >= whole | {"families", "subsets", "effects_counts"}
    chooser = random.Random(0)
    for name in whole:
        table, columns = table_of(store.path, name), told[name]["columns"]
        assert list(columns) == table.columns
        for column in table.columns:
            for place in chooser.sample(range(len(table)), min(20, len(table))):
                value = table[column][place]
                value = value.to_list() if isinstance(value, pl.Series) else value
                expected = names[value] if column in ("asker", "model", "match_model") else value
                assert holds(columns[column][place], expected), (name, column, place)


def test_counts_of_units(site, identity, store):
    told = data_of(site, f"{identity}/tables")
    neurons = table_of(store.path, "neurons")
    families = told["families"]["columns"]
    assert sum(families["neurons"]) == len(neurons)
    for model, family, count, universal, mean in zip(
        *(families[n] for n in ("model", "family", "neurons", "universal", "excess_mean"))
    ):
        rows = [
            row
            for row in neurons.iter_rows(named=True)
            if row["model"] == store.models[model] and row["family"] == family
        ]
        finite = [
            row["excess_corr"] for row in rows if row["excess_corr"] is not None and math.isfinite(row["excess_corr"])
        ]
        assert (count, universal) == (len(rows), sum(row["is_universal"] for row in rows))
        assert holds(mean, float(np.mean(finite)) if finite else None)
    subsets, table = told["subsets"]["columns"], table_of(store.path, "subsets")
    for subset, model, count, median in zip(*(subsets[n] for n in ("subset", "model", "neurons", "excess_median"))):
        rows = table.filter((pl.col("subset") == subset) & (pl.col("model") == store.models[model]))[
            "excess_corr"
        ].to_numpy()
        assert count == len(rows)
        assert median == pytest.approx(np.median(rows[np.isfinite(rows)]), rel=6e-5)
    assert len(set(zip(subsets["subset"], subsets["model"]))) == table.select("subset", "model").n_unique()


def test_the_study_in_words(site, identity, store):
    told = data_of(site, f"{identity}/study")
    neurons = table_of(store.path, "neurons")
    assert [model["name"] for model in told["models"]] == list(ODD_NAMES)
    assert told["name"] == store.path.name
    assert told["subsets"] == store.manifest["tokens"]["subsets"]
    for model in told["models"]:
        rows = neurons.filter(pl.col("model") == model["name"])
        assert (model["units"], model["dead"], model["universal"]) == (
            len(rows),
            rows["dead"].sum(),
            rows["is_universal"].sum(),
        )
        assert model["asks"]
    assert ODD_NAMES[0] in told["opening"][0]
    assert told["together"] == together_sentences(store)
    assert "others of equal contribution" in told["together"][0]
    assert "second best match" in told["together"][1]
    terms = data_of(site, "site")["terms"]
    assert {fact["term"] for fact in told["facts"]} <= {*terms, None}
    assert {"dynamics", "text", "explanations"} <= told["absent"].keys()
    assert not {"roles", "families", "subsets", "counterparts", "pairs"} & told["absent"].keys()
    assert all(isinstance(text, str) for text in told["settings"].values())


def test_the_csv_has_a_row_for_every_unit(site, identity, store):
    table = pl.read_csv(site / "csv" / f"{identity}-units.csv", infer_schema_length=None)
    neurons = table_of(store.path, "neurons")
    assert table["model"].to_list() == neurons["model"].to_list()
    assert table["excess_corr"].cast(pl.Float64).equals(neurons["excess_corr"])
    best = by_unit(table_of(store.path, "matches").filter(pl.col("rank") == 1), "asker")
    for row in table.iter_rows(named=True):
        assert row["name"] == f"L{row['layer']}.{row['neuron']}"
        matches = {match["match_model"]: match for match in best.get((row["model"], row["layer"], row["neuron"]), [])}
        for other in store.models:
            match = matches.get(other)
            place = None if match is None else f"L{match['match_layer']}.{match['match_neuron']}"
            assert row[f"match {other}"] == place
            assert row[f"match {other} corr"] == (None if match is None else match["corr"])
