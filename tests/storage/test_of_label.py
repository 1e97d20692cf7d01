"""Which neurons follow a label: the answer is that of the tables, read apart."""

import numpy as np
import polars as pl
import pytest
from conftest import exit_code, tiny_model
from described import require_described
from test_correlation import captured, some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.errors import ConfigError, InputError
from universal_neurons.labels.token_tests import TOKEN_TESTS
from universal_neurons.progress import Reporter

SAME = "is_neutral_pronoun"


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def store(tmp_path_factory, told):
    """Two models; labels of one's own alone, of which one never holds, and a part of two names is the same."""

    class Listening(Reporter):
        def note(self, text):
            told.append(text)

    tokens = some_tokens(300)
    labels = {
        "Colour": lambda token: len(token) == 3,
        "colours of": lambda token: len(token) == 4,
        "never": lambda token: False,
    }
    config = StudyConfig(
        out=str(tmp_path_factory.mktemp("labels") / "run"), draws=2, stages=("labels", "universality"),
        labels=(),
    )  # fmt: skip
    models = [tiny_model("gpt2", seed) for seed in (0, 1)]
    return run_study(config, models=models, tokens=tokens, labels=labels, reporter=Listening(quiet=True))


def read(store, name):
    return pl.read_parquet(store.path / f"{name}.parquet")


def test_the_neurons_of_a_label_are_those_of_the_table_of_labels(store):
    assert set(read(store, "labels")["group"]) == {"own"}
    both = read(store, "labels").filter(pl.col("label") == "Colour")
    wanted = both.filter(~pl.col("previous"))
    found = store.best_for("cOLOUR")
    assert set(found["label"]) == {"Colour"}
    assert len(found) == len(wanted) > 0
    assert found["variance_reduction"].is_sorted(descending=True)
    neurons = read(store, "neurons")
    for row in found.head(30).iter_rows(named=True):
        this = (
            (pl.col("model") == row["model"]) & (pl.col("layer") == row["layer"]) & (pl.col("neuron") == row["neuron"])
        )
        of_label = wanted.filter(this)
        assert of_label.select("rank", "sign", "variance_reduction").row(0) == (
            row["rank"], row["sign"], row["variance_reduction"]
        )  # fmt: skip
        whole = neurons.filter(this).row(0, named=True)
        assert [row[name] for name in ("family", "is_universal")] == [whole["family"], whole["is_universal"]]
    one = store.best_for("colour", model="gpt2-1")
    assert set(one["model"]) == {"gpt2-1"}
    assert len(one) == len(wanted.filter(pl.col("model") == "gpt2-1"))
    previous = store.best_for("previous token: colour")
    assert set(previous["label"]) == {"previous token: Colour"}
    assert len(previous) == len(both.filter("previous"))


def test_where_no_label_is_called_so_all_that_contain_it_are_taken(store):
    found = store.best_for("olour")
    wanted = read(store, "labels").filter(pl.col("label").is_in(["Colour", "colours of"]))
    assert len(found) == len(wanted)
    assert set(store.best_for("colours of")["label"]) == {"colours of"}


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A model, and a study of it in which a label of one's own is the same as a built-in one."""
    model = tiny_model("gpt2", 0)
    out = str(tmp_path_factory.mktemp("beside") / "run")
    config = StudyConfig(out=out, stages=("labels",), labels=("tokens",))
    labels = {"mine": TOKEN_TESTS[SAME]}
    return model, run_study(config, models=[model], tokens=some_tokens(300), labels=labels, progress=False)


def test_an_own_label_comes_before_the_same_built_in_one_and_is_kept_of_every_neuron(beside):
    model, store = beside
    tokens = some_tokens(300)
    chosen, _ = tokens.split()
    mask = tokens.mask(np.arange(len(tokens)))
    of_chosen = np.isin(np.nonzero(mask)[0], chosen)
    holds = np.array([TOKEN_TESTS[SAME](string) for string in store.strings])[tokens.ids(np.arange(len(tokens)))[mask]]
    squares = [np.corrcoef(x, holds[of_chosen])[0, 1] ** 2 for x in captured(model, tokens)[of_chosen].T]
    found = store.best_for("mine")
    assert set(found["label"]) == {"mine"}
    assert len(found) == len(squares) == 48
    assert found["rank"].max() > 5
    require_described(store.table("own_labels"), "own_labels")
    ordered = found.sort("layer", "neuron")
    np.testing.assert_allclose(ordered["variance_reduction"], squares, atol=1e-6)
    kept = read(store, "labels")
    place = ["layer", "neuron"]
    same = kept.filter((pl.col("label") == SAME) & ~pl.col("previous")).join(found, on=place)
    assert len(same) > 3
    assert (same["rank_right"] < same["rank"]).all()
    np.testing.assert_allclose(same["variance_reduction"], same["variance_reduction_right"], rtol=1e-9)
    mine = kept.filter((pl.col("label") == "mine") & ~pl.col("previous")).join(found, on=place)
    assert (mine["rank"] == mine["rank_right"]).all()
    assert len(mine) == (found["rank"] <= 5).sum()
    assert len(store.best_for(SAME)) == len(same)


def test_no_labels_at_all_are_refused(tmp_path):
    config = StudyConfig(out=str(tmp_path / "run"), stages=("labels",), labels=())
    with pytest.raises(ConfigError, match="no labels to look for"):
        run_study(config, models=[tiny_model("gpt2")], tokens=some_tokens(30), progress=False)
    assert not (tmp_path / "run").exists()


def test_what_explains_nothing_is_said_by_name(store):
    with pytest.raises(InputError, match="no label 'hue'"):
        store.best_for("hue")
    with pytest.raises(InputError, match=r"never \(at 0 positions\)"):
        store.best_for("never")
    with pytest.raises(InputError, match="no such model"):
        store.best_for("colour", model="gpt2-9")
    with pytest.raises(InputError, match="no label ' '"):
        store.best_for(" ")


def test_labels_that_hold_nowhere_are_warned_of_at_the_end(store, told):
    warnings = [text for text in told if text.startswith("warning: label")]
    assert warnings == ["warning: label never: at no position of this text; no neuron can be explained by it"]
    assert told.index(warnings[0]) == len(told) - 2


def test_how_often_each_label_holds(store):
    tokens, strings = some_tokens(300), store.strings
    chosen, _ = tokens.split()
    ids, mask = tokens.ids(chosen), tokens.mask(chosen)
    counts = read(store, "label_counts")

    def count(name, previous):
        row = counts.filter((pl.col("label") == name) & (pl.col("previous") == previous))
        return row["count"].item()

    for name, holds in {"Colour": lambda s: len(s) == 3, "colours of": lambda s: len(s) == 4}.items():
        this, before = 0, 0
        for row, counted in zip(ids.tolist(), mask.tolist()):
            for place in range(len(row)):
                if not counted[place]:
                    continue
                this += holds(strings[row[place]]) and row[place] != 0
                before += place > 0 and holds(strings[row[place - 1]]) and row[place - 1] != 0
        assert (count(name, False), count(name, True)) == (this, before)


def test_the_command(store, capsys):
    assert exit_code("show", store.path, "--label", "colour") == 0
    printed = capsys.readouterr().out
    best = store.best_for("colour").row(0, named=True)
    assert f"{best['model']}/L{best['layer']}.{best['neuron']}" in printed
    this = (pl.col("label") == "Colour") & ~pl.col("previous")
    explained = read(store, "labels").filter(this & (pl.col("variance_reduction") > 0.05))
    assert f"{len(explained)} of {len(store.best_for('colour'))} above 0.05" in printed
    assert exit_code("show", store.path, "--label", "olour", "--model", "gpt2-0") == 0
    printed = capsys.readouterr().out
    assert "Labels called olour" in printed
    assert "gpt2-1/" not in printed
    for wrong in (("--label", "x", "--anchors"), ("--model", "gpt2-0"), ("L0.1", "--label", "x"), ("--label", "hue")):
        assert exit_code("show", store.path, *wrong) == 2
        assert "wanted:" in capsys.readouterr().err
