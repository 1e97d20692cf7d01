"""`explain` from end to end: a study of planted units, language models that read rules, their faults, tables on disk."""

import gzip
import hashlib
import json
import re

import polars as pl
import pytest
from planted_study import DIGITS, PLACES, QUOTES, Reader, planted_models, random_tokens

import universal_neurons as un
from universal_neurons.cli import main
from universal_neurons.errors import BackendError, ConfigError, InputError, MissingFileError
from universal_neurons.explanations import ANOTHER, COUNTERPART, EMPTY, OWN, RANDOM, SCHEMA, Reply, best_of, evidence
from universal_neurons.explorer import unit_parts
from universal_neurons.explorer.neuronpedia import write_neuronpedia
from universal_neurons.explorer.unit_rows import UnitRows
from universal_neurons.progress import Reporter
from universal_neurons.study import explained_batches as batches

UNITS = ("L0.0", "one/L0.1")
SETTINGS = {"units": UNITS, "windows": 130}


@pytest.fixture(scope="module")
def inputs():
    return {"models": planted_models(), "tokens": random_tokens()}


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A study with label sentences, whose best matches are planted."""
    config = un.StudyConfig(
        out=str(tmp_path_factory.mktemp("explaining") / "run"), stages=("statistics", "labels", "universality"),
        labels=("tokens",), draws=2,
    )  # fmt: skip
    return un.run_study(config, **inputs, progress=False)


def copy_of(study, folder):
    folder.mkdir()
    for file in study.path.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return un.Store(folder)


@pytest.fixture(scope="module")
def explained(finished, inputs, tmp_path_factory):
    """The study explained and scored by one who reads rules."""
    study = copy_of(finished, tmp_path_factory.mktemp("explained") / "run")
    reader = Reader()
    made = un.explain(study, explainer=reader, scorer=reader, **SETTINGS, **inputs, reporter=Reporter(quiet=True))
    return made, reader


def hashes(study):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in study.path.glob("*.parquet")}


def test_the_planted_units_are_explained_and_their_counterparts_are_where_they_were_planted(explained):
    study, _ = explained
    written = study.explanations.filter(source="reader")
    assert written.select("model", "layer", "neuron", "explanation").rows() == [
        ("one", 0, 0, DIGITS), ("one", 0, 1, QUOTES),
    ]  # fmt: skip
    matches = study.matches.filter(pl.col("rank") == 1, pl.col("layer") == 0, pl.col("neuron") < 2)
    assert matches["match_neuron"].to_list() == list(PLACES["two"])
    assert len(study.explanations) == len(study.neurons) + 2
    assert study.manifest["language_models"] == {"explainers": {"reader": "reader"}, "scorers": {"reader": "reader"}}


def test_true_sentences_score_and_carry_over_to_counterparts_and_nothing_else_does(explained):
    study, _ = explained
    scores = study.scores.filter((pl.col("source") == "reader") | (pl.col("use") == EMPTY))
    assert scores.schema == pl.Schema(SCHEMA)
    assert set(scores["method"]) == {"detection", "fuzzing"}
    for use, count in ((OWN, 4), (ANOTHER, 4), (EMPTY, 4), (COUNTERPART, 4), (RANDOM, 4)):
        assert len(scores.filter(use=use)) == count, use
    true = scores.filter(pl.col("use").is_in([OWN, COUNTERPART]))
    assert (true["auprc"] >= 0.95).all()
    assert (true["balanced_accuracy"] >= 0.95).all()
    assert true["missing"].sum() == 0
    there = scores.filter(use=COUNTERPART)
    assert set(there.select("model", "layer", "neuron", "explanation").rows()) == {
        ("two", 0, 5, "one/L0.0"), ("two", 0, 7, "one/L0.1"),
    }  # fmt: skip
    wrong = scores.filter(~pl.col("use").is_in([OWN, COUNTERPART])).drop_nulls("auprc")
    assert len(wrong) >= 8
    assert (wrong["balanced_accuracy_low"] <= 0.5).all()
    assert (wrong["auprc_low"] <= wrong["base_rate"] + 1e-9).all()


def test_the_summary_of_sources_and_the_best_of_each_unit(explained):
    study, _ = explained
    sources = study.explanation_sources
    row = sources.filter(source="reader", method="detection").row(0, named=True)
    assert row["units"] == 2
    assert row["carried"] == pytest.approx(1, abs=0.05)
    assert row["random"] < 0.6 < 0.95 < row["score"]
    assert row["another"] < 0.7
    assert set(sources["source"]) == {"labels", "reader"}, "label sentences are scored beside it"
    best = study.best_explanations
    assert len(best) == len(study.neurons)
    assert best.filter(model="one", layer=0, neuron=0)["explanation"].to_list() == [DIGITS]
    places = study.explanations.select("model", "layer", "neuron").unique(maintain_order=True)
    assert places.equals(study.neurons.select("model", "layer", "neuron")), "in the order of the neurons"
    assert best.equals(best_of(study.explanations, study.scores))


def test_no_window_that_is_scored_is_in_what_is_shown(explained, inputs, monkeypatch):
    """By their rows: those of the windows drawn, and those of the examples in the explainer's prompts."""
    study, seen = explained[0], {}

    def kept(module, name, rows_of):
        plain = getattr(module, name)

        def wrapped(*args, **kwargs):
            result = plain(*args, **kwargs)
            seen.setdefault(name, set()).update(rows_of(args, result))
            return result

        monkeypatch.setattr(module, name, wrapped)

    kept(batches, "draw_windows", lambda _, found: {r for units in found.values() for u in units for r in u.row})
    kept(evidence, "require_apart", lambda args, _: set(args[0].tolist()))
    given = {"explainer": Reader(), "scorer": Reader(), "estimate": True, "reporter": Reporter(quiet=True)}
    un.explain(study, **given, **SETTINGS, **inputs)
    assert len(seen["draw_windows"]) > 50
    assert len(seen["require_apart"]) > 5
    assert not seen["draw_windows"] & seen["require_apart"]


def test_a_repeated_run_asks_nothing_and_ends_with_the_same_bytes(explained, inputs):
    study, _ = explained
    before, again = hashes(study), Reader()
    said = un.explain(study, explainer=again, scorer=again, **SETTINGS, **inputs, reporter=Reporter(quiet=True))
    assert not again.prompts
    assert hashes(said) == before


def test_what_it_takes_is_said_before_and_nothing_is_asked(finished, inputs, tmp_path, capfd):
    study, reader = copy_of(finished, tmp_path / "run"), Reader()
    before = hashes(study)
    given = {"explainer": reader, "scorer": reader, "prices": (1.0, 2.0), "estimate": True}
    un.explain(study, **given, **SETTINGS, **inputs)
    said = capfd.readouterr().err
    assert "explaining by reader: questions 2 (answered before 0)" in said
    assert "scoring by reader: questions " in said
    assert said.count("cost about") == 2
    assert not reader.prompts
    assert hashes(study) == before
    un.explain(study, **given | {"estimate": False}, **SETTINGS, **inputs)
    asked = int(said.partition("scoring by reader: questions ")[2].partition(" ")[0].replace(",", ""))
    assert 0.8 * asked <= len(reader.prompts) - 2 <= asked
    said = capfd.readouterr().err
    assert said.count("reader: answered") == 2
    assert "cost" in said


class Failing(Reader):
    """Stops answering after so many replies, as a server that is cut off."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def replies(self, prompts):
        for place, reply in super().replies(prompts):
            if not self.left:
                raise BackendError("reader: the server does not answer")
            self.left -= 1
            yield place, reply


def test_one_that_is_cut_off_is_asked_only_for_the_rest(finished, inputs, explained, tmp_path):
    study, failing, reader = copy_of(finished, tmp_path / "run"), Failing(300), Reader()
    before = hashes(study)
    given = SETTINGS | inputs | {"reporter": Reporter(quiet=True)}
    with pytest.raises(BackendError):
        un.explain(study, explainer=failing, scorer=failing, **given)
    assert hashes(study) == before
    assert un.Store(study.path).manifest["complete"]
    un.explain(study, explainer=reader, scorer=reader, **given)
    whole = {(p.system, p.user) for p in explained[1].prompts}
    assert len({(p.system, p.user) for p in reader.prompts}) == len(whole) - 300
    assert hashes(study) == hashes(explained[0])


def test_missing_answers_are_no_scores_and_lose_nothing(finished, inputs, tmp_path):
    """One that answers nonsense to most: counted, no score; no explanation where none came."""

    class Nonsense(Reader):
        def reply(self, prompt):
            if prompt.user.startswith("<text"):
                return Reply(text="Fires on \ud800halves.") if "1" in prompt.user[:200] else Reply(missing="nothing")
            return super().reply(prompt) if len(self.prompts) % 30 == 3 else Reply(text="hm", missing="another text")

    study, reader = copy_of(finished, tmp_path / "run"), Nonsense()
    made = un.explain(
        study, explainer=reader, scorer=reader, transfer=False, **SETTINGS, **inputs, reporter=Reporter(quiet=True)
    )
    assert made.scores["auprc"].null_count() == len(made.scores)
    assert (made.scores["missing"] > 0.9 * made.scores["n_windows"]).all()
    assert made.explanations.filter(source="labels").equals(finished.explanations)
    assert set(made.explanations.filter(source="reader")["explanation"]) <= {"Fires on ?halves."}


def test_scores_go_with_what_is_not_said_any_more_and_stay_otherwise(explained, inputs, tmp_path):
    study = copy_of(explained[0], tmp_path / "run")
    other = Reader(identity="another of that name", rules={QUOTES: r"\d", DIGITS: "[\"']"})
    given = inputs | {"reporter": Reporter(quiet=True), "units": "L0.0"}
    made = un.explain(study, explainer=other, **given)
    assert made.explanations.filter(source="reader")["explanation"].to_list() == [QUOTES, QUOTES]
    left = made.scores.filter(source="reader")
    assert set(left["explanation"]) == {"one/L0.1"}, "of the other unit, whose sentence is the same"
    assert len(made.scores.filter(source="labels")) == len(explained[0].scores.filter(source="labels"))
    made = un.explain(made, scorer=other, windows=130, transfer=False, **given)
    assert made.scores.filter(pl.col("model") == "two").is_empty(), "another model by this name: all scores are new"
    assert set(made.scores.filter(source="reader", use=OWN)["neuron"]) == {0}


def test_a_study_that_is_made_anew_keeps_what_others_said(explained, inputs, tmp_path):
    study = copy_of(explained[0], tmp_path / "run")
    before = hashes(study)
    (study.path / "tokens.parquet").unlink()
    config = study.config.model_copy(update={"out": str(study.path)})
    again = un.run_study(config, models=inputs["models"], tokens=inputs["tokens"], progress=False)
    assert hashes(again) == before
    assert again.scores.equals(study.scores)


def test_simulation_asks_for_every_token(finished, inputs, tmp_path):
    study, reader = copy_of(finished, tmp_path / "run"), Reader()
    given = {"units": "L0.0", "windows": 65, "transfer": False, "kinds": ("simulation",)}
    made = un.explain(study, explainer=reader, scorer=reader, **given, **inputs, reporter=Reporter(quiet=True))
    (row,) = made.scores.filter(source="reader", use=OWN).rows(named=True)
    assert row["method"] == "simulation"
    assert row["rho"] is None or row["rho"] > 0.95
    assert made.best_explanations.filter(model="one", neuron=0, layer=0)["score"].to_list() == [row["rho"]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nobody explains or scores"),
        ({"imported": "x", "windows": 260}, "units without an explainer or a scorer"),
        ({"explainer": Reader(), "kinds": "fuzzing", "windows": 260}, "kinds without a scorer"),
        ({"explainer": Reader()}, "windows without a scorer"),
        ({"explainer": Reader(), "transfer": False, "windows": 260}, "transfer without a scorer"),
        ({"scorer": Reader(), "windows": 10}, "too few windows"),
        ({"scorer": Reader(), "kinds": ("detecting",)}, "unknown kind"),
        ({"scorer": Reader(), "kinds": ()}, "no kind of question"),
        ({"scorer": Reader(), "units": ("all", "L0.1")}, "a word for several"),
        ({"scorer": Reader(), "units": "L9.1"}, "no such neuron"),
        ({"scorer": Reader("labels")}, "by the name that other explanations have"),
        ({"scorer": Reader(), "prompt": "nowhere.yaml"}, "nowhere.yaml"),
        ({"scorer": Reader(), "tokens": None}, "was in memory"),
        ({"scorer": Reader(), "units": "universal"}, "a universal unit"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_name(explained, inputs, given, said, tmp_path):
    before = hashes(explained[0])
    with pytest.raises(InputError, match=said):
        un.explain(explained[0], **SETTINGS | inputs | {"reporter": Reporter(quiet=True)} | given)
    assert hashes(explained[0]) == before


def test_studies_that_cannot_be_tried_on_text_say_why(inputs, tmp_path):
    weights = un.StudyConfig(out=str(tmp_path / "weights"), stages=("weights",))
    bare = un.run_study(weights, models=inputs["models"], progress=False)
    with pytest.raises(ConfigError, match="weights alone has no text"):
        un.explain(bare, units="L0.0", scorer=Reader(), models=inputs["models"])
    manifest = json.loads((bare.path / "study.json").read_text())
    manifest["models"][0]["sketch"] = {}
    manifest["tokens"] = {"fingerprint": "f", "rows": 1, "tokens": 1, "heldout_rows": 1}
    (bare.path / "study.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="a sketch holds sums"):
        un.explain(bare.path, units="L0.0", scorer=Reader())
    with pytest.raises(MissingFileError):
        un.explain(tmp_path / "nowhere", scorer=Reader())


def test_show_and_the_summary_say_explanations_with_their_scores(explained, capsys):
    study, _ = explained
    main(["show", str(study.path), "L0.0"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"{DIGITS} (reader; detection by reader " in said
    assert "(labels; detection by reader " in said
    for command in (["show", str(study.path)], ["explain", str(study.path)]):
        main(command)
        said = " ".join(capsys.readouterr().out.split())
        assert "What explanations are worth on held-out text" in said
        assert re.search(
            r"reader, detection by reader: counterparts carry (0\.99|1\.00) .* of the score above chance", said
        )
    assert DIGITS in said
    assert "--scorer MODEL" in said


def test_pages_and_exports_take_the_best_first_and_say_who_said_it(explained, tmp_path):
    study, _ = explained
    out = write_neuronpedia(study, tmp_path / "out")
    lines = [
        json.loads(line)
        for line in gzip.decompress(
            (out / "one" / "0-mlp" / "explanations" / "batch-0.jsonl.gz").read_bytes()
        ).splitlines()
    ]
    first = [line for line in lines if line["index"] == "0"]
    assert (first[0]["description"], first[0]["notes"]) == (DIGITS, "by reader")
    assert len({line["id"] for line in lines}) == len(lines)
    (part,) = (part for part in unit_parts.PARTS if part.key == "explanations")
    rows = UnitRows(study, "explanations", study.units).take("one", 3)
    shown = part.of_units(rows, 0, 3, unit_parts.Context(study.models, study.strings, 0))
    assert [each[0] for each in shown[:2]] == [{"text": DIGITS, "by": "reader"}, {"text": QUOTES, "by": "reader"}]
    assert [each.keys() for each in shown[2]] == [{"text"}]


class Parrot(Reader):
    """Says the same of every unit, and knows every text that it was shown as evidence by heart."""

    def __init__(self):
        super().__init__()
        self.heard = ""

    def explained(self, examples):
        self.heard += re.sub("<.*?>", "", examples)
        return "By heart."

    def reply(self, prompt):
        if "By heart." in prompt.user:
            return self.by_heart(re.search("<text>(.*)</text>", prompt.user)[1].replace("<<", "").replace(">>", ""))
        return super().reply(prompt)

    def by_heart(self, text):
        return Reply((0.0, -10.0) if text in self.heard else (-10.0, 0.0))


def test_one_that_memorises_its_evidence_is_at_chance_on_new_text(finished, inputs, tmp_path):
    study, parrot = copy_of(finished, tmp_path / "run"), Parrot()
    un.explain(
        study, explainer=parrot, scorer=parrot, transfer=False, **SETTINGS, **inputs, reporter=Reporter(quiet=True)
    )
    own = un.Store(study.path).scores.filter(source="reader", use=OWN)
    assert len(own) == 4
    assert own["balanced_accuracy"].to_list() == pytest.approx([0.5] * 4)
    assert own["auprc"].to_list() == pytest.approx(own["base_rate"].to_list())
