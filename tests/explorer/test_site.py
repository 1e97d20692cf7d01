"""A site as a folder: where it may be written, that it is whole, which studies it shows; the words of its pages."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import exit_code
from plain_site import data_of, paths_of, table_of, with_tables, write_static

from universal_neurons import Store
from universal_neurons.dynamics import Dynamics
from universal_neurons.errors import InputError, MissingFileError, StoreConflictError
from universal_neurons.explorer import TERMS, open_results, require_site, unit_rows, write_site
from universal_neurons.explorer import site as site_module
from universal_neurons.explorer.absent import absent
from universal_neurons.explorer.data_files import read_statement, statement, text_column
from universal_neurons.explorer.histograms import bars
from universal_neurons.explorer.studies import identities, shown_studies
from universal_neurons.explorer.terms import terms_of

OLD = (
    "explanations", "thresholds", "anchors", "cliques", "clique_levels", "null", "positions", "tokens", "similarity",
    "consistency", "consistency_levels", "one_to_one",
)  # fmt: skip
OF_ROLES = (
    "effects", "ensembles", "interventions", "ablations", "heads", "attention", "functional", "functional_gains", "costs",
    "class_histograms", "head_scores", "attention_samples", "unembeddings", "spectrum",
    "preconditions",
)  # fmt: skip


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    return write_static(tmp_path_factory.mktemp("static") / "static")


@pytest.fixture(scope="module")
def small(odd_store, tmp_path_factory):
    """The neuron table alone, as a study of weights has it."""
    keep = {"neurons"}
    without = [path.stem for path in odd_store.path.glob("*.parquet") if path.stem not in keep]
    config = {"models": odd_store.manifest["config"]["models"], "stages": ["weights"]}
    folder = with_tables(
        odd_store.path,
        tmp_path_factory.mktemp("small") / "small",
        [*without, "histograms"],
        manifest={"config": config},
    )
    return Store(folder)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pages_are_rendered_and_everything_else_is_copied(small, static, tmp_path):
    site = write_site([small], tmp_path / "new" / "site", static=static).parent
    assert (site / "index.html").read_text().startswith("<title>study: 1")  # of one study, its own page
    assert (site / "unit.html").read_text().startswith("<title>unit: 1")
    assert "&lt;i&gt;" in (site / "index.html").read_text()
    assert {path.name for path in (site / "static").rglob("*")} == {"app.js", "vendor", "plot.js"}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["site"]


def test_a_served_site_has_the_page_of_texts(small, static, tmp_path):
    for served in (False, True):
        site = write_site([small], tmp_path / "site", served=served, static=static).parent
        told = data_of(site, "site")
        assert told["served"] == served
        assert ("text" in told["studies"][0]["pages"]) == served
        assert ("text" in data_of(site, "small/study")["absent"]) == (not served)


def test_the_same_studies_give_the_same_bytes(small, static, tmp_path):
    first, second = (write_site([small], tmp_path / name, static=static).parent for name in ("a", "b"))
    assert contents(first) == contents(second)


def test_several_studies_have_a_list_and_names_of_their_own(small, odd_store, static, tmp_path):
    other = Store(with_tables(small.path, tmp_path / "SMALL"))
    site = write_site([small, other, small], tmp_path / "site", static=static).parent
    listed = data_of(site, "site")["studies"]
    assert (site / "index.html").read_text().startswith("<title>index: 3")
    assert len({study["id"] for study in listed}) == 3
    for study in listed:
        assert re.fullmatch("[a-z0-9-]{1,40}", study["id"])
        assert data_of(site, f"{study['id']}/study")["id"] == study["id"]
    assert len({study["name"] for study in listed}) == 2  # one folder twice has one path


def test_identities_are_plain_and_each_its_own():
    names = ["Run 1", "run-1", "run/1", "", "🧠", "x" * 99, "x" * 98 + "y", "../..", "-a-", "con\0\n"]
    made = identities(names)
    assert len(set(made)) == len(names)
    assert all(re.fullmatch("[a-z0-9-]{1,40}", name) for name in made)
    assert made[:3] == ["run-1", "run-1-2", "run-1-3"]


def test_a_site_is_replaced_whole(small, static, tmp_path):
    site = write_site([small], tmp_path / "site", csv=True, static=static).parent
    (site / "data" / "small" / "unit" / "0" / "99.js").write_text("left over")
    before = contents(write_site([small], tmp_path / "other", static=static).parent)
    assert write_site([small], site, static=static).parent == site
    assert contents(site) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "site"]


@pytest.mark.parametrize("what", ["notes.txt", "pages", "a link", "a file", "a store", "forged"])
def test_a_folder_with_anything_else_is_refused_and_left_alone(what, small, static, tmp_path):
    target = tmp_path / "site"
    if what == "a file":
        target.write_text("mine")
    elif what == "a store":
        shutil.copytree(small.path, target)
    elif what == "notes.txt":
        write_site([small], target, static=static)
        (target / what).write_text("mine")
    elif what == "pages":
        (target / "pages").mkdir(parents=True)
    elif what == "forged":
        (target / "data").mkdir(parents=True)
        (target / "data" / "site.js").write_text('un.add("site",{"entries":3});')
    else:
        target.mkdir()
        (target / "data").symlink_to(small.path)
    before = contents(tmp_path)
    with pytest.raises(StoreConflictError, match="site"):
        write_site([small], target, static=static)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_what_a_killed_writer_left_is_swept(small, static, tmp_path):
    for name in (".site.partial", ".site.old"):
        (tmp_path / name / "data").mkdir(parents=True)
    (tmp_path / ".site.lock").touch()
    write_site([small], tmp_path / "site", static=static)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_failure_leaves_the_old_site(small, static, tmp_path, monkeypatch):
    site = write_site([small], tmp_path / "site", static=static).parent
    before = contents(site)

    def fails(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(site_module, "write_unit_files", fails)
    with pytest.raises(RuntimeError):
        write_site([small], site, static=static)
    assert contents(site) == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_move_that_fails_brings_the_old_site_back(small, static, tmp_path, monkeypatch):
    site = write_site([small], tmp_path / "site", static=static).parent
    before, rename = contents(site), Path.rename

    def fails(self, target):
        if self.name == ".site.partial":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no"):
        write_site([small], site, static=static)
    assert contents(site) == before


def test_no_study_and_no_site_are_named(tmp_path):
    with pytest.raises(InputError, match="no study"):
        write_site([], tmp_path / "site")
    with pytest.raises(MissingFileError, match="no site"):
        require_site(tmp_path)


def test_a_store_of_an_earlier_version_says_what_it_lacks(odd_store, static, tmp_path):
    neurons = table_of(odd_store.path, "neurons")
    since = [name for name in neurons.columns if "standardised" in name or "normalised" in name]
    neurons = neurons.drop(*since, "mutual_all", "carried_by_few", "roles", "null_fraction")
    matches = table_of(odd_store.path, "matches").drop(
        "corr_ranks", "corr_within_tokens", "stretches", "variance_ratio", "corr_without_sinks", "certified"
    )
    changed = {"neurons": neurons, "matches": matches}
    old = with_tables(
        odd_store.path, tmp_path / "old", (*OLD, *OF_ROLES, "examples", "counterparts", "histograms"), changed
    )
    site = write_site([Store(old)], tmp_path / "site", csv=True, static=static).parent
    told = data_of(site, "old/study")
    assert told["absent"].keys() >= {
        "thresholds",
        "anchors",
        "cliques",
        "null",
        "roles",
        "examples",
        "tokens",
        "counterparts",
    }
    assert told["absent"]["roles"] == "This study had no stage roles: uneurons roles RUN adds them."
    assert not told["absent"].keys() & {"universality", "families", "layers", "pairs"}
    (listed,) = data_of(site, "site")["studies"]
    assert listed["pages"] == ["study", "unit", "families", "layers", "models", "subsets"]
    assert data_of(site, "old/tables").keys() == {"layers", "convergence", "correlations", "families", "subsets"}
    unit = data_of(site, "old/unit/0/0")["units"][0]
    assert unit.keys() <= {"layer", "neuron", "columns", "matches", "labels", "neighbours", "explanations"}
    whole = odd_store.explanations["explanation"][0].removesuffix(".")
    assert whole.startswith(unit["explanations"][0]["text"].removesuffix(".")), "without what roles add"
    assert unit["matches"][0].keys() <= {"model", "rank", "layer", "neuron", "corr", "heldout", "low", "high", "mutual"}
    assert not {"roles", "excess_standardised"} & data_of(site, "old/units/0")["columns"].keys()


def test_tokens_are_numbers_where_there_is_no_vocabulary(odd_store, static, tmp_path):
    folder = with_tables(odd_store.path, tmp_path / "bare", ("vocabulary", *OF_ROLES))
    site = write_site([Store(folder)], tmp_path / "site", static=static).parent
    assert "vocabulary" in data_of(site, "bare/study")["absent"]
    shard = data_of(site, "bare/unit/0/0")
    first = table_of(folder, "examples").filter(pl.col("model") == odd_store.models[0]).row(0, named=True)
    told = shard["units"][first["neuron"]]["examples"][0]
    assert [shard["strings"][place] for place in told["tokens"]] == [str(token) for token in first["tokens"]]
    assert data_of(site, "bare/search/0")["tokens"][0].isdigit()


def test_weights_alone(small, static, tmp_path):
    site = write_site([small], tmp_path / "site", csv=True, static=static).parent
    told = data_of(site, "small/study")
    assert told["absent"].keys() >= {"universality", "families", "layers", "roles", "subsets"}
    assert told["facts"] == []
    assert not any(model["asks"] for model in told["models"])
    assert data_of(site, "small/tables") == {}
    assert not [path for path in paths_of(site) if "search" in path]


def test_the_nearest_is_named_where_no_unit_has_a_role(odd_store, static, tmp_path):
    site = write_site([odd_store], tmp_path / "site", static=static).parent
    (listed,) = data_of(site, "site")["studies"]
    told = data_of(site, f"{listed['id']}/study")["absent"]
    holders = (
        table_of(odd_store.path, "neurons").filter(pl.col("model") == odd_store.models[0])["roles"].explode().to_list()
    )
    for role in ("prediction", "suppression", "entropy"):
        assert (f"role:{role}" in told) == (role not in holders)
        if role not in holders:
            assert re.search(r"has the role \w+.*; the nearest: L\d\.\d+", told[f"role:{role}"])


@pytest.mark.parametrize("universal", [0, 7])
def test_why_a_unit_is_not_compared_by_what_it_does_is_said_in_the_study_s_numbers(odd_store, tmp_path, universal):
    neurons, reference = table_of(odd_store.path, "neurons"), odd_store.models[0]
    of_reference = (neurons["model"] == reference).to_numpy()
    flags = of_reference & (np.cumsum(of_reference) <= universal)
    changed = {"neurons": neurons.with_columns(is_universal=pl.Series(flags))}
    (study,) = shown_studies([Store(with_tables(odd_store.path, tmp_path / "some", changed=changed))])
    told = absent(study, study.summary())
    compared = len(set(table_of(odd_store.path, "functional").select("layer", "neuron").iter_rows()))
    best = f"the {compared} of highest excess"
    if universal:
        assert told["functional"] == f"Only universal units are compared by what they do: {best}, of 7."
        assert told["functional:universal"] == (
            f"Of the 7 universal units {best} are compared by what they do; this one is not among them."
        )
    else:
        assert told["functional"].startswith(f"No unit is universal: {best} are compared")
        assert "functional:universal" not in told
    assert f"of {study.models[0]}, the reference" in told["functional:elsewhere"]


def test_rows_that_are_in_no_order_are_refused(odd_store, static, tmp_path):
    labels = table_of(odd_store.path, "labels").reverse()
    changed = with_tables(odd_store.path, tmp_path / "changed", changed={"labels": labels})
    with pytest.raises(StoreConflictError, match=r"labels\.parquet: not in the order"):
        write_site([Store(changed)], tmp_path / "site", static=static)
    assert not (tmp_path / "site").exists()


def test_rows_are_given_once_and_in_order_however_the_file_is_cut(odd_store, tmp_path, monkeypatch):
    labels = table_of(odd_store.path, "labels")
    turned = pl.concat([labels.filter(pl.col("model") == model) for model in reversed(odd_store.models)])
    folder = with_tables(odd_store.path, tmp_path / "cut")
    turned.write_parquet(folder / "labels.parquet", row_group_size=37)
    monkeypatch.setattr(unit_rows, "BATCH_ROWS", 11)
    rows = unit_rows.UnitRows(Store(folder, verify=False), "labels", odd_store.units)
    for model in odd_store.models:
        stops = [1, 1, 2, 9, 30, 48]
        taken = [rows.take(model, stop) for stop in stops]
        for start, stop, part in zip([0, *stops], stops, taken):
            number = 24 * pl.col("layer") + pl.col("neuron")
            expected = labels.filter((pl.col("model") == model) & (number >= start) & (number < stop))
            if part is None:
                assert expected.is_empty()
            else:
                assert part.drop("unit").equals(expected.drop("model"))
                assert part["unit"].equals(expected.select(number.cast(pl.Int64).alias("unit"))["unit"])


def test_an_altered_table_is_refused(odd_store, static, tmp_path):
    changed = with_tables(odd_store.path, tmp_path / "changed")
    table_of(changed, "labels").head(5).write_parquet(changed / "labels.parquet")
    with pytest.raises(StoreConflictError, match="not the file that was written"):
        write_site([Store(changed)], tmp_path / "site", static=static)


@pytest.fixture(scope="module")
def dynamics(odd_store, tmp_path_factory):
    """A folder of training dynamics, written by hand: two seeds at two checkpoints, of which the last has a study."""
    folder = tmp_path_factory.mktemp("dynamics") / "trained"
    seeds, places = ["first <seed>", "second"], table_of(odd_store.path, "neurons").select("model", "layer", "neuron")
    renamed = places.with_columns(pl.col("model").replace_strict(dict(zip(odd_store.models, seeds))))
    course = [
        renamed.with_row_index("number").select(
            pl.lit(name).alias("checkpoint"), pl.lit(step, pl.Int64).alias("step"), "model", "layer", "neuron",
            (pl.col("number") / 100 + step).alias("excess_corr"), (pl.col("number") % 2 == 0).alias("is_universal"),
            pl.when(pl.col("number") % 3 > 0).then(pl.col("number") / 97).otherwise(float("nan")).alias("self_corr"),
        )
        for name, step in (("10", 10), ("20", 20))
    ]  # fmt: skip
    reference = renamed.filter(pl.col("model") == seeds[0])
    tables = {
        "neurons": pl.concat(course),
        "checkpoints": pl.DataFrame({"checkpoint": ["10", "20"], "step": [10, 20], "asker": seeds[0], "universal": [3, 4], "persistence": [None, 0.5]}),
        "emergence": reference.with_columns(emergence=pl.lit("20"), emergence_step=pl.lit(20)),
        "families": pl.DataFrame({"checkpoint": ["20"], "step": [20], "model": seeds[1], "family": "unigram", "neurons": [7]}),
    }  # fmt: skip
    (folder / "steps").mkdir(parents=True)
    with_tables(odd_store.path, folder / "steps" / "20", OF_ROLES)
    hashes = {}
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
        hashes[name] = hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest()
    manifest = {
        "complete": True, "config": {"models": seeds}, "seeds": seeds, "tokens": odd_store.manifest["tokens"], "tables": hashes,
        "checkpoints": [{"name": str(step), "step": step, "sha256": [], "tables": {}} for step in (10, 20)],
        "environment": odd_store.manifest["environment"],
    }  # fmt: skip
    (folder / "dynamics.json").write_text(json.dumps(manifest))
    return open_results(folder)


def test_training_dynamics_are_the_last_study_with_the_course_of_every_unit(dynamics, static, tmp_path):
    assert isinstance(dynamics, Dynamics)
    site = write_site([dynamics], tmp_path / "site", csv=True, static=static).parent
    (listed,) = data_of(site, "site")["studies"]
    assert listed["models"] == dynamics.seeds
    assert "dynamics" in listed["pages"]
    assert [model["name"] for model in data_of(site, "trained/study")["models"]] == dynamics.seeds
    told = data_of(site, "trained/tables")["dynamics"]
    assert told["checkpoints"]["columns"]["asker"] == [0, 0]
    assert told["families"]["columns"]["model"] == [1]
    assert told["emergence"]["columns"]["neurons"] == [48]
    rows = table_of(dynamics.path, "neurons")
    for number, seed in enumerate(dynamics.seeds):
        for unit in data_of(site, f"trained/unit/{number}/0")["units"]:
            of_unit = rows.filter(
                (pl.col("model") == seed) & (pl.col("layer") == unit["layer"]) & (pl.col("neuron") == unit["neuron"])
            )
            assert [point["step"] for point in unit["course"]] == [10, 20]
            for point, row in zip(unit["course"], of_unit.iter_rows(named=True)):
                assert point["excess"] == pytest.approx(row["excess_corr"], rel=1e-4)
                assert point["universal"] == row["is_universal"]
                assert point.get("self", float("nan")) == pytest.approx(row["self_corr"], rel=1e-4, nan_ok=True)
    assert "first <seed>,L0.0" in (site / "csv" / "trained-units.csv").read_text()


def test_the_command(small, static, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(site_module, "STATIC", static)
    assert exit_code("export", small.path, "--out", tmp_path / "site", "--csv") == 0
    assert f"site: {(tmp_path / 'site' / 'index.html').resolve()}" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "site" / "csv" / "small-units.csv").exists()
    assert exit_code("export", small.path, "--out", small.path) == 2
    assert exit_code("export", tmp_path, "--out", tmp_path / "other") == 2
    assert exit_code("export", small.path) == 2
    assert not (tmp_path / "other").exists()


def test_terms_are_of_what_the_units_are():
    assert terms_of([{}, {}]) == TERMS
    of_latents = terms_of([{"features": "dictionaries"}] * 2)
    assert of_latents["match"].startswith("A match is the latent of another model")
    assert of_latents["unit"] == "A unit is one latent of a model, written L3.17: layer 3, latent 17."
    assert of_latents["mean"] == "The mean of the value over all positions."
    assert terms_of([{"features": "dictionaries"}, {}])["reference"].startswith(
        "The reference is the model whose units"
    )


def test_every_term_stands_in_the_docs():
    docs = (Path(__file__).parents[2] / "docs/explorer.md").read_text(encoding="utf-8")
    words = docs.partition("\n## Words\n")[2]
    for name, sentence in TERMS.items():
        assert f"| `{name}` | {sentence} |" in words
        assert sentence[0].isupper() or sentence.startswith("1 ")
        assert sentence.endswith(".")
    assert words.count("\n| `") == len(TERMS)


def test_statements_are_ascii_without_markup():
    hostile = {"<a>": "</script>\u2028\ud800\x00\\\"'", "é": ["<!--", 1e-300]}
    content = statement("a/b", hostile)
    assert content.isascii()
    assert b"<" not in content
    assert read_statement(content) == ("a/b", hostile)
    with pytest.raises(ValueError):
        statement("a", float("nan"))
    for wrong in (b"", b"alert(1)", b"un.add();", b'un.add("a");', "un.add('é',1);".encode()):
        with pytest.raises(ValueError):
            read_statement(wrong)


@pytest.mark.parametrize(("count", "kind"), [(3, "u8"), (256, "u8"), (257, "u16"), (65_537, "u32")])
def test_texts_are_counted_with_the_least_bytes(count, kind):
    texts = [f"text {number}" for number in range(count)]
    made = text_column([*texts, *texts[:2]])
    assert made["index"] == kind
    assert len(made["values"]) == count


def test_bars_hold_all_counts_and_are_as_fine_as_can_be_seen():
    import numpy as np

    random = np.random.default_rng(0)
    edges = np.unique(np.concatenate([-np.geomspace(1e-3, 90, 130), np.geomspace(1e-3, 90, 130)]))
    values = np.concatenate([random.normal(size=100_000), [80.0]])
    counts = np.histogram(values, edges)[0]
    told = bars(edges[:-1].astype("f4"), edges[1:].astype("f4"), counts)
    assert sum(told["counts"]) == counts.sum()
    widths = np.subtract(told["high"], told["low"])
    inner = np.abs(told["low"]) < 2
    assert len(told["counts"]) < len(counts) / 2
    assert widths[inner].max() < 0.4
    assert bars(edges[:-1], edges[1:], np.zeros_like(counts)) is None
