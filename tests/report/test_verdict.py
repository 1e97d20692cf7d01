"""What is said of one neuron: planted rows and tables against the sentences, small studies against direct reads."""

import math
import re
from html import unescape

import numpy as np
import polars as pl
import pytest
from conftest import FEW_ROLES, alike_models, exit_code
from sentences import bare_numbers
from test_correlation import some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.errors import InputError
from universal_neurons.labels import (
    FAMILIES,
    ROLES,
    SAID_OF_FAMILIES,
    SAID_OF_ROLES,
    explained,
    explaining_label,
)
from universal_neurons.report import neuron_view, write_report
from universal_neurons.report.facts import asker_lines, facts
from universal_neurons.report.numbers import number
from universal_neurons.report.summary import (
    basis_test,
    basis_tests,
    neurons_view,
    shown_neurons,
    study_view,
    unsure_marks,
)
from universal_neurons.report.verdict import alike_of, label_level, main_numbers, universality, verdict, what_says_so
from universal_neurons.terminal import plain


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A network and two that are like it, every model asked about, with labels, examples and roles."""
    models = alike_models(("one", "two", "seed[3]"))
    settings = {
        "draws": 3,
        "top_k": 2,
        "labels": ("tokens", "position"),
        "roles": FEW_ROLES,
        "pairs": "all",
        "threshold": 0.3,
    }
    out = tmp_path_factory.mktemp("verdict") / "run"
    return run_study(StudyConfig(out=str(out), **settings), models=models, tokens=some_tokens(120), progress=False)


def row(**given):
    return {"excess_corr": 0.7, "excess_low": 0.6, "excess_high": 0.8} | given


@pytest.mark.parametrize(
    ("given", "beginning", "words"),
    [
        ({}, "Universal on this text and on text that did not choose it", "0.60 to 0.80"),
        ({"excess_low": 0.5}, "Universal on this text only", "reaches below 0.5"),
        ({"excess_low": 0.1, "excess_high": 0.3}, "Universal on this text only", "lies below 0.5"),
        (
            {"excess_low": math.nan, "excess_high": math.nan},
            "Universal on the text that chose its matches",
            "not asked",
        ),
        ({"excess_low": None, "excess_high": None}, "Universal on the text that chose its matches", "not asked"),
        ({"excess_corr": 0.5}, "Not universal: 0.50 better matched than by chance", "0.60 to 0.80"),
        ({"excess_corr": 0.48, "excess_standardised": 0.5}, "Not universal: 0.48", "0.60 to 0.80"),
        (
            {"excess_corr": 0.48, "excess_standardised": 0.53},
            "Universal only with every neuron brought to variance 1 (0.53, above 0.5), not as the paper counts (0.48)",
            "0.60 to 0.80",
        ),
        ({"excess_corr": math.nan}, "Not known", ""),
    ],
)
def test_whether_it_is_universal(given, beginning, words):
    said = universality(row(**given), 0.5)
    assert said.startswith(beginning)
    assert words in said


def acting(effects, losses, effects_second=0.0, losses_second=0.0, second_corr=0.4):
    """Two models' rows of the table of what counterparts do; random neurons are never alike."""
    second = {"effect_corr_second": [effects_second] * 2, "loss_corr_second": [losses_second] * 2}
    random = {"effect_corr_random": [0.01] * 2, "loss_corr_random": [0.02] * 2}
    known = {"second_corr": pl.Series([second_corr] * 2, dtype=pl.Float64)}
    return pl.DataFrame({"effect_corr": effects, "loss_corr": losses} | second | random | known)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            acting((0.6, 0.8), (0.7, 0.9)),
            "its counterparts do the same (ρ of effects 0.70, second best 0.00; of loss changes 0.80, second best 0.00)",
        ),
        (acting((0.6, 0.8), (0.7, 0.9), 0.55), "do partly the same (ρ of effects 0.70, second best 0.55"),
        (
            acting((0.6, 0.8), (0.7, 0.9), 0.55, 0.75),
            "are not seen to do the same (ρ of effects 0.70, second best 0.55",
        ),
        (
            acting((0.1, 0.2), (0.3, 0.5)),
            "are not seen to do the same (ρ of effects 0.15, second best 0.00; of loss changes 0.40",
        ),
        (acting((math.nan, 0.8), (math.nan, math.nan)), "do the same (ρ of effects 0.80, second best 0.00)"),
        (acting((math.nan, math.nan), (math.nan, math.nan)), "what its counterparts do is not known"),
        (
            acting((0.6, 0.8), (0.7, 0.9), second_corr=None),
            "(ρ of effects 0.70, random 0.01; of loss changes 0.80, random",
        ),
        (
            acting((0.6, 0.8), (0.7, 0.9)).select("^(effect|loss)_corr(_random)?$"),
            "do the same (ρ of effects 0.70, random 0.01; of loss changes 0.80, random 0.02)",
        ),
    ],
)
def test_what_its_counterparts_do(rows, said):
    found = alike_of(rows)
    assert found.models == 2
    assert said in found.sentence
    assert alike_of(rows.clear()) is None


@pytest.mark.parametrize(
    ("family", "label", "sign", "said"),
    [
        ("unigram", "the", 1, "The label the (unigram) explains 62% of its variance."),
        ("unigram", "the", -1, "The label the (unigram) explains 62% of its variance."),
        ("previous_token", "the\x1b", 1, "The label the␛ (previous token) explains 62% of its variance."),
        ("position", "comma", 1, "Firing and position share 0.40 nats of information."),
        ("bos", None, None, "No label explains when else it fires."),
    ],
)
def test_what_says_what_it_fires_on(store, family, label, sign, said):
    given = {"family": family, "label": label, "label_sign": sign, "variance_reduction": 0.62, "position_mi": 0.4}
    assert what_says_so(store, given) == said


def test_the_nearest_label_of_a_neuron_that_none_explains_is_not_what_it_fires_on(store, capsys):
    """A label explains a neuron by `judged` > the highest of three levels, here taken by NumPy from the table."""
    seen = 0
    for model in store.models:
        rows = store.neurons.filter((pl.col("model") == model) & ~pl.col("dead"))
        nulls = np.quantile(rows["variance_reduction_null"].to_numpy(), 0.99)
        for found in rows.iter_rows(named=True):
            heldout, chosen = found["variance_reduction_heldout"], found["variance_reduction"]
            judged = chosen if math.isnan(heldout) else heldout
            level = max(0.05, nulls, found["variance_reduction_null"])
            assert label_level(store, found) == pytest.approx(level)
            assert explained(found["family"], found["label"]) == (judged > level)
            if found["family"] != "unexplained":
                continue
            seen += 1
            said = verdict(store, found)[-1]
            assert re.match(r"No label explains when it fires; .+\. The nearest, ", said)
            assert f"explains {number(judged)} of its variance" in said
            assert said.endswith(f"only above {number(level)} counts.")
    assert seen >= 3
    model, layer, neuron = store.neurons.filter(family="unexplained").select("model", "layer", "neuron").row(0)
    for more in ((), ("--all",)):
        assert exit_code("show", store.path, f"{model}/L{layer}.{neuron}", *more) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "The nearest labels: none explains enough" in printed
        assert "What it fires on: the best" not in printed
        assert ("label (nearest)" if more else "share of its variance that the nearest label") in printed


def test_a_label_is_what_a_neuron_fires_on_where_its_family_rests_on_it():
    families = [*FAMILIES, "position", None, "syntax"]
    labels = [*["comma"] * len(FAMILIES), "position 0–7", "comma", None]
    table = pl.DataFrame({"family": families, "label": labels})
    kept = table.select(explaining_label())["label"].to_list()
    by_label = {"unigram", "alphabet", "previous_token", "syntax", "context", "token_class"}
    assert kept == [*("comma" if name in by_label else None for name in FAMILIES), "position 0–7", None, None]
    assert [explained(*row) for row in table.iter_rows()] == [label is not None for label in kept]


def test_words_are_explained_where_they_are_printed(store, svg_only):
    printed = " ".join(plain(study_view(store), 400).split())
    page = " ".join(unescape(write_report(store).read_text()).split())
    counts = facts(store, "one").standardised
    said = f"the 95 % interval of {counts.surely} is wholly above 0.3, of {counts.possibly} it reaches above"
    nearly = "nearly all are, so this does not say that they are universal"
    for text in (printed, page):
        assert said in text
        assert nearly in text
        assert "lower on text that did not choose the matches" in text
        assert "partition: raises some tokens and lowers others" in text
        assert "token class: a class of tokens" in text
        for name, meaning in [*SAID_OF_FAMILIES.items(), *SAID_OF_ROLES.items()]:
            assert f"{name.replace('_', ' ')}: {meaning}" in text
        for word in ("surely", "possibly", "asker"):
            assert word not in text.lower()
    assert [*SAID_OF_FAMILIES] == [*FAMILIES]
    assert [*SAID_OF_ROLES] == [*ROLES]
    assert "privileged" not in printed


def test_the_verdict_comes_first_and_the_ten_numbers_are_those_of_the_tables(store, capsys):
    acts = store.table("functional").filter((pl.col("asker") == "one") & pl.col("loss_corr").is_finite())
    place = acts.row(0, named=True)
    layer, neuron = place["layer"], place["neuron"]
    of_it = (pl.col("layer") == layer) & (pl.col("neuron") == neuron)
    found = store.neurons.filter((pl.col("model") == "one") & of_it).row(0, named=True)
    median = acts.filter(of_it)["effect_corr"].median()
    assert exit_code("show", store.path, f"L{layer}.{neuron}") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"{'U' if found['is_universal'] else 'Not u'}niversal")
    assert "counterparts" in printed.split("Matches")[0]
    assert "excess_corr" not in printed
    numbers = dict(main_numbers(store, found))
    assert 8 <= len(numbers) <= 10
    assert numbers["ρ with its counterparts, mean over models"].startswith(f"{found['mean_corr']:.2f}")
    effects = next(value for label, value in numbers.items() if "logits" in label)
    assert effects.startswith(f"{median:.2f}")
    assert exit_code("show", store.path, f"L{layer}.{neuron}", "--all") == 0
    everything = capsys.readouterr().out
    assert "excess_corr" in everything
    assert not bare_numbers(everything)
    assert f"{found['excess_corr']:.4f}" in everything


def test_of_every_neuron_something_is_said(store):
    for found in store.neurons.iter_rows(named=True):
        said = verdict(store, found)
        assert said
        assert all(sentence.endswith(".") for sentence in said)
        assert ("rest on little text" in said[0]) == (found["carried_by_few"] is True)
    threshold = found["excess_corr"] + 0.01
    scaled = found["excess_standardised"] > threshold
    assert verdict(store, found, threshold)[0].startswith("Universal only with" if scaled else "Not universal")
    assert "seed[3]/L0.3" in plain(neuron_view(store, "seed[3]/L0.3"), 100)


def test_the_summary_says_how_many_intervals_reach_below_the_threshold(store):
    asked = store.neurons.filter((pl.col("model") == "one") & pl.col("is_universal"))
    unsure = sum(low <= store.config.threshold for low in asked["excess_low"])
    assert len(asked) > 3
    assert facts(store, "one").paper.unsure == unsure
    line = dict(asker_lines(store, "one"))["as the paper counts (excess > 0.3)"]
    assert f"{unsure} of the {len(asked)} have an interval that reaches below 0.3" in line


def test_universal_neurons_that_are_not_sure_are_marked(store):
    at = store.config.threshold
    asked = pl.DataFrame(
        {
            "excess_corr": [at + 0.2] * 4 + [at - 0.1],
            "excess_low": [at + 0.1, at, at + 0.1, np.nan, at - 0.2],
            "carried_by_few": [False, False, True, None, True],
        }
    )
    marks, line = unsure_marks(store, asked)
    assert marks == ["", "!", "!", "", ""]
    assert line.endswith("or the matches rest on little text (2 of the 5 here).")
    assert f"not wholly above {at:g}" in line
    assert unsure_marks(store, asked.drop("carried_by_few"))[0] == ["", "!", "", "", ""]
    assert unsure_marks(store, asked[[0, 3, 4]].drop("carried_by_few")) == ([""] * 3, "")
    shown, _ = shown_neurons(store, "one")
    marks, line = unsure_marks(store, shown)
    assert "!" in marks
    table, line_below = neurons_view(store, "one").renderables
    column = next(column for column in table.columns if str(column.header) == "!")
    assert [str(cell) for cell in column.cells] == marks
    assert line in " ".join(str(line_below).split())


def test_q_that_is_the_same_for_all_is_said_once(store):
    same, apart = pl.DataFrame({"q_value": [0.0, 0.1]}), pl.DataFrame({"q_value": [0.0, 0.5]})
    assert basis_tests(store, same) == (["≤ 0.33"] * 2, "; basis q ≤ 0.33 for each")
    assert basis_tests(store, apart) == (["≤ 0.33", "0.50"], "")
    shown, _ = shown_neurons(store, "one")
    table = neurons_view(store, "one").renderables[0]
    headings = [str(column.header) for column in table.columns]
    assert len(shown) > 1
    alike = len({basis_test(q, 3) for q in shown["q_value"]}) == 1
    assert ("basis q" in headings, "basis q" in str(table.title)) == (not alike, alike)


def test_all_is_of_a_neuron_of_a_study(store, capsys):
    assert exit_code("show", store.path, "--all") == 2
    assert "wanted: a neuron" in " ".join(capsys.readouterr().err.split())


def test_universal_neurons_stand_with_their_counterparts(store):
    for asker in (None, "seed[3]"):
        table = store.universal(asker)
        asked = asker or "one"
        rows = store.neurons.filter((pl.col("model") == asked) & (pl.col("excess_corr") > 0.3))
        assert len(table) == len(rows) > 3
        assert table["excess_corr"].to_list() == sorted(rows["excess_corr"], reverse=True)
        others = [name for name in ("one", "two", "seed[3]") if name != asked]
        for found in table.iter_rows(named=True):
            neuron = store.neuron(found["neuron"])
            assert found["neuron"].startswith(f"{asked}/L")
            assert neuron.model == asked
            assert neuron.sentence == found["sentence"]
            for column in ("excess_low", "excess_high", "family"):
                assert neuron.row[column] == found[column]
            assert found["label"] == (
                neuron.row["label"] if f"The label {neuron.row['label']} (" in neuron.sentence else None
            )
            best = store.matches.filter(
                (pl.col("asker") == asked) & (pl.col("layer") == neuron.layer) & (pl.col("neuron") == neuron.neuron),
                pl.col("rank") == 1,
            )
            assert len(best) == 2
            for other in others:
                match = best.filter(pl.col("match_model") == other).row(0, named=True)
                assert found[f"match_{other}"] == f"{other}/L{match['match_layer']}.{match['match_neuron']}"
                assert found[f"corr_{other}"] == match["corr"]
                assert store.neuron(found[f"match_{other}"]).model == other


def test_universal_by_another_threshold(store):
    highest = store.neurons.filter(model="one")["excess_corr"].max()
    none = store.universal(threshold=highest)
    assert len(none) == 0
    assert none.schema == store.universal().schema
    at = sorted(store.neurons.filter(model="one")["excess_corr"].drop_nans())[-10]
    found = store.universal(threshold=at)
    assert len(found) == 9
    assert found["sentence"].str.starts_with("Universal").all()
    with pytest.raises(InputError, match="nothing is known of matches of nobody"):
        store.universal("nobody")


def test_universal_by_the_other_excess(store):
    level = store.config.threshold
    neurons = store.neurons.filter(pl.col("model") == "one", pl.col("excess_standardised").fill_nan(None) > level)
    found = store.universal(by="standardised")
    assert found["excess_standardised"].to_list() == sorted(neurons["excess_standardised"], reverse=True)
    assert set(found.join(store.counterparts(), on="neuron")["neuron"]) == set(found["neuron"])
    with pytest.raises(InputError, match=r"no excess of this kind[^$]*paper, standardised"):
        store.universal(by="scale")


def test_a_neuron_has_its_part_of_every_table(store):
    neuron = store.neuron("two/L1.5")
    assert (neuron.name, store.neuron("L1.5").name) == ("two/L1.5", "one/L1.5")
    for name in ("matches", "labels", "examples", "counterparts", "effects"):
        part = getattr(neuron, {"counterparts": "side_by_side"}.get(name, name))
        direct = pl.read_parquet(store.path / f"{name}.parquet").filter(model="two", layer=1, neuron=5)
        assert len(part) > 0
        assert part.equals(direct)
    assert neuron.row == pl.read_parquet(store.path / "neurons.parquet").filter(model="two", layer=1, neuron=5).row(
        0, named=True
    )
    assert len(store.neuron("L1.5").functional) in (0, 2)
    for wrong in ("L9.9", "L1.24", "nobody/L0.0", "seven"):
        with pytest.raises(InputError, match=wrong):
            store.neuron(wrong)


def test_a_neuron_in_a_notebook(store):
    neuron = store.neuron("seed[3]/L0.3")
    page = neuron._repr_html_()
    assert page.startswith("<pre")
    text = unescape(re.sub(r"<[^>]*>", "", page))
    for words in ("seed[3]/L0.3", "Matches", "Highest activations"):
        assert words in text
        assert words in repr(neuron)
    assert "background-color" in page
    assert "\x1b" not in page + repr(neuron)
    assert "<script" not in page
    assert " ".join(repr(neuron).split()).startswith(neuron.sentence[:40])
