"""Explanations of others', read from files: ours and Neuronpedia's lines; bad ones are named, and nothing is taken."""

import gzip
import json

import polars as pl
import pytest
from planted_study import DIGITS, QUOTES, Reader, planted_models, random_tokens

import universal_neurons as un
from universal_neurons.errors import ConfigError, ExplanationsError, MissingFileError
from universal_neurons.explanations import OWN, Reply, imported, read_explanations
from universal_neurons.explorer.neuronpedia import write_neuronpedia
from universal_neurons.progress import Reporter


@pytest.fixture(scope="module")
def inputs():
    return {"models": planted_models(), "tokens": random_tokens(200)}


@pytest.fixture(scope="module")
def study(inputs, tmp_path_factory):
    config = un.StudyConfig(out=str(tmp_path_factory.mktemp("imported") / "run"), stages=("statistics",))
    return un.run_study(config, **inputs, progress=False)


def lines(path, *values):
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
    return path


def neuronpedia(layer="0-mlp", index="0", description=DIGITS, model="one", **more):
    return {"modelId": model, "layer": layer, "index": index, "description": description} | more


def test_lines_of_ours_and_of_neuronpedia(study, tmp_path):
    path = lines(
        tmp_path / "mine.jsonl",
        {"unit": "L0.0", "sentence": "  Fires\non digits. "},
        "",
        {"unit": "two/L0.5", "sentence": DIGITS, "source": "me"},
        {"unit": "L0.0", "sentence": "Half a character \ud800 is one."},
        {"unit": "L0.0", "sentence": "Fires on digits."},
        neuronpedia(
            index=1, description=QUOTES, explanationModelName="gpt-4o-mini", typeName="oai", id="c1", scoreV1=0
        ),
        neuronpedia(layer="1", model="two", description="", explanationModelName=None),
        neuronpedia(layer="1", model="two", description="x", explanationModelName=None),
    )
    found, empty = read_explanations(path, study)
    assert empty == 1
    assert found.rows() == [
        ("one", 0, 0, "imported", DIGITS),
        ("two", 0, 5, "imported: me", DIGITS),
        ("one", 0, 0, "imported 2", "Half a character ? is one."),
        ("one", 0, 1, "imported: gpt-4o-mini", QUOTES),
        ("two", 1, 0, "imported", "x"),
    ]
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "batch-0.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read_explanations(packed, study)[0].equals(found)


def test_what_we_export_for_neuronpedia_is_read_back(study, tmp_path):
    """Of a study with label sentences, each of them of its own unit."""
    other = tmp_path / "labelled"
    config = un.StudyConfig(out=str(other), stages=("statistics", "labels"), labels=("tokens",))
    labelled = un.run_study(config, models=planted_models()[:1], tokens=random_tokens(120), progress=False)
    out = write_neuronpedia(labelled, tmp_path / "out")
    said = labelled.explanations
    for layer in (0, 1):
        found, _ = read_explanations(out / "one" / f"{layer}-mlp" / "explanations", labelled)
        both = found.join(said, on=["model", "layer", "neuron"], suffix="_said")
        assert len(both) == len(found) > 3
        assert (both["explanation"] == both["explanation_said"]).all()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"unit": "L0.99", "sentence": "x"}, "no such neuron"),
        ({"unit": "three/L0.1", "sentence": "x"}, "no such model"),
        ({"unit": "here", "sentence": "x"}, "not a neuron's name"),
        ({"unit": "L0.0"}, "no sentence"),
        ({"unit": "L0.0", "sentence": "x" * 10_001}, "10,001 characters"),
        ({"unit": 5, "sentence": "x"}, "no text"),
        ({"unit": "L0.0", "sentence": ["x"]}, "no text"),
        ({"unit": "L0.0", "sentence": "x", "source": 7}, "no text"),
        ({"sentence": "x"}, "neither a unit nor modelId"),
        (neuronpedia(model="gpt2-small"), "no such model here"),
        (neuronpedia(layer="0-res-jb"), "not of this study's units"),
        (neuronpedia(layer="x"), "not of this study's units"),
        (neuronpedia(layer="7-mlp"), "no unit '0' in layer 7"),
        (neuronpedia(index="24"), "no unit '24' in layer 0"),
        (neuronpedia(index="-1"), "no unit '-1'"),
        (neuronpedia(index="\u00b2"), "no unit"),
        ("not JSON", "JSONDecodeError"),
        ("[1, 2]", "no object"),
        ("[" * 100_000, "RecursionError"),
        ('{"unit": "L0.0", "sentence": "x"', "JSONDecodeError"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number_and_nothing_is_taken(study, tmp_path, bad, said):
    path = lines(tmp_path / "bad.jsonl", {"unit": "L0.1", "sentence": "good"}, bad)
    before = {file.name: file.read_bytes() for file in study.path.glob("*.parquet")}
    with pytest.raises(ExplanationsError, match="line 2 cannot be taken") as caught:
        un.explain(study, imported=path, reporter=Reporter(quiet=True))
    assert said in str(caught.value)
    assert {file.name: file.read_bytes() for file in study.path.glob("*.parquet")} == before
    assert un.Store(study.path).manifest == study.manifest


def test_files_that_are_none(study, tmp_path, monkeypatch):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(MissingFileError):
            read_explanations(path, study)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"unit": "L0.0", "sentence": "x"}\n' * 99)[:-9])
    (tmp_path / "none.jsonl.gz").write_bytes(b"no gzip")
    lines(tmp_path / "empty.jsonl")
    for name in ("cut.jsonl.gz", "none.jsonl.gz", "empty.jsonl"):
        with pytest.raises(ExplanationsError):
            read_explanations(tmp_path / name, study)
    monkeypatch.setattr(imported, "LINE_BYTES", 20)
    with pytest.raises(ExplanationsError, match="cannot be read"):
        read_explanations(lines(tmp_path / "long.jsonl", "{" + " " * 50 + "}"), study)


def test_imported_explanations_are_kept_and_scored_alike(study, inputs, tmp_path):
    """A study without labels: at first alone, then scored with controls."""
    path = lines(
        tmp_path / "mine.jsonl",
        {"unit": "L0.0", "sentence": DIGITS},
        {"unit": "L0.1", "sentence": DIGITS},
        {"unit": "two/L0.7", "sentence": QUOTES},
    )
    quiet = {"reporter": Reporter(quiet=True)}
    with pytest.raises(ConfigError, match="nothing to score"):
        un.explain(study, units="L0.0", scorer=Reader(), **inputs, **quiet)
    dumb = Reader()
    dumb.reply = lambda prompt: Reply(missing="nothing")
    silent = un.explain(study, units="L0.0", explainer=dumb, scorer=dumb, **inputs, **quiet)
    assert silent.explanations.is_empty()
    assert silent.scores.is_empty()
    study = un.Store(study.path)
    kept = un.explain(study, imported=path, **quiet)
    assert kept.explanations.select("model", "neuron", "source").rows() == [
        ("one", 0, "imported"), ("one", 1, "imported"), ("two", 7, "imported"),
    ]  # fmt: skip
    assert kept.scores.is_empty()
    assert not kept.has("scores")
    scored = un.explain(kept, imported=path, scorer=Reader(), windows=130, **inputs, **quiet)
    own = scored.scores.filter(use=OWN, method="detection")
    assert own.select("model", "neuron").rows() == [("one", 0), ("one", 1), ("two", 7)]
    assert (own["auprc"] >= 0.95).to_list() == [True, False, True]
    assert set(scored.scores["use"]) == {OWN, "empty"}, "no other says something else, and no counterparts are known"
    assert scored.explanation_sources["source"].to_list() == ["imported"] * 2
    assert len(pl.read_parquet(scored.path / "scores.parquet")) == len(scored.scores)
