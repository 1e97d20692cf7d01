"""Roles as part of a study, and of a finished one; the command; what the report and `show` say."""

import hashlib
import json
from html import unescape

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import FEW_ROLES, save_tiny, tiny_model
from matplotlib.text import Text

import universal_neurons as un
from universal_neurons.cli import main
from universal_neurons.errors import ConfigError, MissingFileError, StoreConflictError
from universal_neurons.explorer.absent import absent
from universal_neurons.explorer.studies import shown_studies
from universal_neurons.labels import ROLES
from universal_neurons.report import roles_view, study_figures, write_report
from universal_neurons.report.figures import kinds
from universal_neurons.report.figures.roles import ROLE_KINDS
from universal_neurons.roles import (
    best_pairs,
    cannot_be_shown,
    frequency_line,
    neuron_lines,
    role_rows,
    together_sentences,
    unembedding_lines,
    unmet_lines,
)
from universal_neurons.roles.overview import left_out
from universal_neurons.terminal import plain

STAGES = ("weights", "statistics", "universality", "roles")


def study(out, models, text, **more):
    config = un.StudyConfig(
        models=tuple(map(str, models)),
        data=str(text),
        out=str(out),
        draws=2,
        **{"stages": STAGES, "roles": FEW_ROLES} | more,
    )
    return un.run_study(config, progress=False)


def hashes(store):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.path.glob("*.parquet")}


@pytest.fixture(scope="module")
def finished(folders, text_file, tmp_path_factory):
    return study(tmp_path_factory.mktemp("roles") / "r", folders, text_file)


def test_every_neuron_has_a_list_of_roles_from_the_tables(finished):
    neurons = finished.neurons
    assert neurons["roles"].null_count() == 0
    assert set(neurons["roles"].explode().drop_nulls()) <= set(ROLES)
    said = pl.concat(
        finished.table(name).filter(pl.col("role").is_not_null()).select("model", "layer", "neuron", "role")
        for name in ("effects", "ablations", "attention")
    ).unique()
    listed = neurons.select("model", "layer", "neuron", role="roles").explode("role").drop_nulls()
    assert said.sort(said.columns).equals(listed.sort(listed.columns))
    assert neurons["null_fraction"].is_between(0, 1).all()


def test_all_that_was_asked_for_is_tried(finished):
    swept = finished.table("interventions")
    assert set(swept["model"]) == set(finished.models)
    assert set(swept.filter(pl.col("edit") == "fix")["value"]) == set(FEW_ROLES.values)
    assert set(swept["edit"]) == {"none", "fix", "zero", "relu", "threshold", "multiply"}
    counted = swept["tokens"].unique().to_list()
    assert len(counted) == 1
    assert 256 < counted[0] < 512
    tried = finished.table("ablations")
    assert (tried.filter(pl.col("kind") == "control").group_by("model").len()["len"] == FEW_ROLES.controls).all()
    functional = finished.table("functional")
    assert set(functional["match_model"]) == set(finished.models[1:])
    assert functional.select("layer", "neuron").unique().height <= FEW_ROLES.ablated
    sets = finished.table("costs")["set"].to_list()
    assert sets[1:] == ["equal contribution", "largest others", *["random"] * 10]
    seconds = finished.matches.filter(rank=2)
    place = ["model", "layer", "neuron", "match_model"]
    second = functional.join(seconds, on=place, suffix="_known")
    assert len(second) == len(functional)
    for of, known in (("layer", "match_layer_known"), ("neuron", "match_neuron_known"), ("corr", "corr_known")):
        assert second[f"second_{of}"].equals(second[known])
    assert not (functional["second_neuron"] == functional["match_neuron"]).all()
    assert set(finished.table("functional_gains")["control"]) == {"second best match", "random"}


def test_what_universal_neurons_do_together_is_said_against_their_controls(finished):
    worth, alike = together_sentences(finished)
    costs = finished.table("costs")
    assert f"are worth {costs['loss_change'][0]:.2f} nats together" in worth
    assert worth.index("equal contribution") < worth.index("the largest others") < worth.index("random others")
    for column in ("contributed_ratio", "contributed_ratio_worst"):
        assert f"{costs[column][1]:.2f}" in worth
    assert alike.index("second best") < alike.index("random")
    printed = " ".join(plain(roles_view(finished), 110).split())
    assert worth in printed
    assert alike in printed


def test_a_finished_study_gets_the_same_roles_later(finished, folders, text_file, tmp_path):
    plain = study(tmp_path / "later", folders, text_file, stages=STAGES[:-1])
    assert not plain.has("effects")
    assert plain.neurons["roles"].null_count() == len(plain.neurons)
    later = un.study_roles(plain.path)
    assert hashes(later) == hashes(finished)
    assert later.manifest["tables"] == finished.manifest["tables"]
    assert "roles" in later.config.stages


def test_given_frequencies_are_kept_with_the_study_and_no_others_taken_up(folders, text_file, tmp_path):
    """`uneurons roles` may take others; nothing but what is of token frequency changes."""
    file, stages = tmp_path / "counts.csv", ("weights", "statistics", "roles")
    of_words = np.random.default_rng(0).zipf(1.3, 1024).clip(max=10**6)
    pl.DataFrame({"token": np.arange(1024), "count": of_words}).write_csv(file)
    given = FEW_ROLES.model_copy(update={"frequencies": str(file)})
    out = tmp_path / "given"
    store = study(out, folders[:1], text_file, stages=stages, roles=given)
    told = {"of": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "tokens": int(of_words.sum())}
    assert store.manifest["frequencies"] == told
    assert store.config.roles.frequencies == str(file)
    assert f"{told['tokens']:,} tokens, counted in {file}" in frequency_line(store)
    pl.DataFrame({"token": [1], "count": [5]}).write_csv(file)
    with pytest.raises(StoreConflictError, match="frequencies"):
        study(out, folders[:1], text_file, stages=stages, roles=given)
    with pytest.raises(MissingFileError, match="cannot be read"):
        un.study_roles(out, FEW_ROLES.model_copy(update={"frequencies": "none.csv"}))
    before = {name: store.table(name) for name in ("effects", "heads", "ablations")}
    cosines = before["ablations"].select("neuron", "frequency_cos")
    own = un.study_roles(out, FEW_ROLES)
    assert "frequencies" not in own.manifest
    assert "frequencies" not in json.loads((out / "study.json").read_text())["config"]["roles"]
    assert "study's own text" in frequency_line(own)
    assert all(own.table(name).equals(before[name]) for name in ("effects", "heads"))
    other = own.table("ablations").select("neuron", "frequency_cos").join(cosines, "neuron")
    assert (other["frequency_cos"] - other["frequency_cos_right"]).abs().min() > 1e-6
    assert un.study_roles(out, given).manifest["frequencies"]["tokens"] == 5


def test_other_thresholds_from_a_file(folders, text_file, few_roles, tmp_path, monkeypatch, capsys):
    store = study(tmp_path / "again", folders[:1], text_file, stages=("weights", "statistics", "roles"))
    before = store.table("effects")
    strict = yaml.safe_load(few_roles.read_text())["roles"] | {"kurtosis": 1e9, "partition_variance": 1e9}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"roles": strict}))
    drawn = []
    monkeypatch.setattr("universal_neurons.report.pages.write_report", lambda store: drawn.append(store) or store.path)
    main(["roles", str(store.path), "-c", str(file)])
    assert "What the neurons do" in capsys.readouterr().out
    (after,) = drawn
    assert after.table("effects")["role"].null_count() == len(before)
    assert after.config.roles.kurtosis == 1e9


def test_the_report_and_show_say_what_neurons_do(finished, svg_only, capsys):
    page = write_report(finished).read_text()
    written = " ".join(unescape(page).split())
    assert all(sentence in written for sentence in together_sentences(finished))
    drawn = {path.stem for path in (finished.path / "figures").iterdir()}
    wanted = {"effects", "roles-by-layer", "entropy", "total-direct", "attention", "functional", "costs"}
    assert {f"role-{name}" for name in wanted} <= drawn
    assert "What the neurons do" in page
    for role, counts, text in role_rows(finished):
        assert len(counts) == len(finished.models)
        unmet = cannot_be_shown(finished, finished.models[0], role.replace(" ", "_"))
        assert counts[0] or not text or text.startswith(f"{unmet or 'none'}; nearest L"), role
    told = finished.table("preconditions").filter(~pl.col("met"))
    assert set(told["role"]) >= {"prediction", "suppression"}  # of width 16, with 1 024 tokens
    for line in unembedding_lines(finished):
        assert line.replace("'", "&#39;") in page
    for line in unmet_lines(finished, list(finished.models[1:])):
        assert line.replace("'", "&#39;") in page
    tried = finished.table("ablations").filter(pl.col("model") == finished.models[0]).row(0, named=True)
    main(["show", str(finished.path), f"L{tried['layer']}.{tried['neuron']}"])
    said = " ".join(capsys.readouterr().out.split())
    assert "through the final norm" in said
    assert "most raised" in said
    effects = finished.table("effects")
    vocabulary = finished.table("vocabulary").filter(pl.col("count") < 5)
    assert effects["tokens_left_out"].min() > 0
    assert not set(effects["top_tokens"].explode()) & set(vocabulary["token"])
    assert left_out(effects.row(0, named=True)) in said


def test_tokens_left_out_are_counted_where_lists_are_printed():
    assert left_out({"tokens_left_out": 1234}).startswith("(left out: 1,234 tokens that occur fewer than 5 times in")
    assert "too few occur 5 times in the study's text" in left_out({"tokens_left_out": 0})
    for older in ({}, {"tokens_left_out": None}):
        assert "also such as hardly occur in the study's text; `uneurons roles`" in left_out(older)


def named(store, role, figures):
    """What the table, the explorer's empty states and the figures call the neuron of a role."""
    count, text = next((counts[0], text) for name, counts, text in role_rows(store) if name == role.replace("_", " "))
    found = {"table": text.rpartition("nearest ")[2].split(" ")[0].rstrip(":")}
    if not count:
        study_shown = next(shown_studies([store]))
        empty = absent(study_shown, study_shown.summary())[f"role:{role}"]
        found["explorer"] = empty.partition("the nearest: ")[2].split(" ")[0].rstrip(":")
    drawn = {name: [t.get_text() for t in shown.figure.findobj(Text)] for name, shown in figures.items()}
    if role in ("prediction", "suppression", "partition"):
        title = next(text for text in drawn["role-effects"] if f"{role}\n" in text)
        found["figure"] = title.partition(":")[0].rpartition("/")[2]
    elif role == "entropy":
        title = next(text for text in drawn["role-entropy"] if "through the norm" in text)
        found["figure"] = title.partition(": ")[2].partition(":")[0]
    elif role.startswith("attention"):
        kind = role.removeprefix("attention_")
        titles = [text for name in ("role-attention", "role-attention-more") for text in drawn[name]]
        found["figure"] = next(text for text in titles if f"\n{kind}, z" in text).split(" ")[0]
    return count, found


def test_table_figures_and_explorer_name_the_same_neuron(finished, monkeypatch):
    monkeypatch.setattr(kinds, "STUDY_KINDS", ROLE_KINDS)
    reference = finished.models[0]
    neurons, effects, tried = (
        finished.table(name).filter(model=reference) for name in ("neurons", "effects", "ablations")
    )
    kurtosis = neurons["vocab_kurt"].to_numpy()
    sides = {"prediction": neurons["vocab_skew"].to_numpy() > 0, "suppression": neurons["vocab_skew"].to_numpy() < 0}
    drawn = study_figures(finished)
    for role in ROLES:
        count, found = named(finished, role, drawn)
        assert len(set(found.values())) == 1, (role, found)
        if count:
            continue
        if role in sides and effects["role"].null_count() == len(effects):
            signs = effects["class_sign"].fill_null(0).to_numpy()
            right = sides[role] & (signs == (1 if role == "prediction" else -1))
            place = int(np.where(right if right.any() else sides[role], kurtosis, -np.inf).argmax())
            row = neurons.row(place, named=True)
        elif role in ("entropy", "token_frequency"):
            kind, measure = ("entropy", "mediated") if role == "entropy" else ("frequency", "frequency_share")
            rows = [row for row in tried.to_dicts() if row["kind"] == kind]
            row = max(rows, key=lambda row: row[measure])
        else:
            continue
        assert found["table"] == f"L{row['layer']}.{row['neuron']}", role


def test_pairs_of_both_signs_come_before_more_of_one():
    pairs = pl.DataFrame(
        {"z": [9.0, 8.0, 7.0, -3.0, -4.0], "role": ["attention_deactivation"] * 2 + [None] * 3, "neuron": range(5)}
    )
    assert best_pairs(pairs)["neuron"].to_list() == [0, 4, 1, 2, 3]


def test_roles_need_weights_and_statistics(folders, text_file, tmp_path):
    with pytest.raises(ConfigError, match="weights and statistics"):
        study(tmp_path / "r", folders, text_file, stages=("statistics", "roles"))
    store = study(tmp_path / "u", folders[:2], text_file, stages=("universality",))
    with pytest.raises(ConfigError, match="weights and statistics"):
        un.study_roles(store)


def test_a_study_whose_text_has_changed_is_refused(folders, text_file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text())
    store = study(tmp_path / "r", folders[:2], text)
    before = hashes(store)
    text.write_text(text_file.read_text()[100:])
    with pytest.raises(StoreConflictError, match="text has changed"):
        un.study_roles(store)
    assert hashes(store) == before


def test_other_models_in_the_place_of_the_studys_are_refused(folders, text_file, tmp_path):
    store = study(tmp_path / "r", folders[:1], text_file, stages=("weights", "statistics", "roles"))
    before = hashes(store)
    other = un.load_model(str(folders[1]))
    other.name = "m0"
    with pytest.raises(StoreConflictError, match="models have changed"):
        un.study_roles(store, models=[other])
    assert hashes(store) == before


def test_tables_of_roles_that_are_no_longer_found_go(folders, text_file, tmp_path):
    stages = ("weights", "statistics", "roles")
    store = study(tmp_path / "r", folders[:1], text_file, stages=stages)
    (store.path / "ensembles.parquet").write_bytes((store.path / "effects.parquet").read_bytes())
    manifest = store.manifest | {"tables": store.manifest["tables"] | {"ensembles": "0" * 64}}
    (store.path / "study.json").write_text(json.dumps(manifest))
    again = un.study_roles(store)
    there = {path.stem for path in again.path.glob("*.parquet")}
    assert there == set(again.manifest["tables"]) - {"histograms"}
    assert again.manifest["tables"].get("ensembles") != "0" * 64


@pytest.mark.parametrize(
    ("sizes", "baseline"), [({}, "permutation"), ({"n_inner": 1}, "rotation")], ids=["all universal", "one neuron"]
)
def test_a_study_with_no_other_neurons_to_compare_with_finishes(text_file, tmp_path, sizes, baseline):
    copies = [tiny_model(seed=0, name=name, **sizes) for name in ("one", "copy")]
    config = un.StudyConfig(
        data=str(text_file), out=str(tmp_path / "r"), draws=2, roles=FEW_ROLES, stages=STAGES, baseline=baseline
    )
    store = un.run_study(config, models=copies, progress=False)
    reference = store.neurons.filter(model="one")
    assert reference["is_universal"].all() == (baseline == "permutation")
    assert store.table("costs")["set"].unique().to_list() == [
        "universal" if baseline == "permutation" else "top 1 % by excess"
    ]
    assert "role-costs" in study_figures(store)


def test_a_neuron_that_never_changes_is_said_to_have_no_number(finished, monkeypatch):
    row = finished.table("attention").row(0, named=True)
    silent = row | {"pearson_activation_bos": None, "delta_bos": None}
    table = un.Store.table

    def some(self, name):
        return table(self, name) if name != "attention" else pl.DataFrame([silent], schema=table(self, name).schema)

    monkeypatch.setattr(un.Store, "table", some)
    assert any("r –" in text for _, _, text in role_rows(finished))
    lines = neuron_lines(finished, row["model"], row["layer"], row["neuron"], None)
    assert any("positions –" in line for line in lines)


def test_values_are_some_and_each_once():
    for values in ((), (1.0, 1.0), (float("nan"),)):
        with pytest.raises(ValueError, match=r"each once|a finite number"):
            un.RoleSettings(values=values)


def test_a_file_without_the_section_is_refused(finished, tmp_path, capsys):
    file = tmp_path / "other.yaml"
    file.write_text("seed: 3")
    with pytest.raises(SystemExit):
        main(["roles", str(finished.path), "-c", str(file)])
    assert "no section" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "bert"])
def test_other_families_and_one_model_alone(family, text_file, tmp_path):
    stages = ("weights", "statistics", "labels", "roles")
    model = save_tiny(tmp_path / family, family)
    store = study(tmp_path / "r", [model], text_file, stages=stages, labels=("tokens",))
    assert store.has("effects") == (family != "bert")
    assert not store.has("functional")
    assert store.neurons["roles"].null_count() == 0
    assert any(name.startswith("role-") for name in study_figures(store)) or family == "bert"
