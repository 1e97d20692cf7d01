"""One sentence per unit: phrases of every label, sentences by hand, whole studies, and stores without the table."""

import json
import math
import re
from html import unescape

import polars as pl
import pytest
from conftest import FEW_ROLES, alike_models, small_tokenizer
from test_correlation import some_tokens

from universal_neurons import StudyConfig, run_study
from universal_neurons.explanations import (
    explanations_of,
    explanations_table,
    fires_on,
    label_sentences,
    phrase_of,
    place_of,
    sentences_of,
)
from universal_neurons.explanations.phrases import SYNTAX, TOKENS
from universal_neurons.labels import FAMILIES, ROLES, built_in_labels
from universal_neurons.labels.meanings import FORMER
from universal_neurons.labels.token_tests import TOKEN_TESTS, WIDER_TESTS
from universal_neurons.storage import Store
from universal_neurons.study import study_roles

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\n" + "x" * 500


def test_every_built_in_label_has_words_and_none_shows_its_name():
    assert set(TOKENS) == {*TOKEN_TESTS, *WIDER_TESTS, "small_norm", *FORMER}
    named = {told.label for told in built_in_labels() if told.group == "syntax" and "‹" not in told.label}
    assert named <= set(SYNTAX)
    for group, table in (("tokens", TOKENS), ("syntax", SYNTAX)):
        for label in table:
            said = phrase_of(label, group)
            assert said.strip() == said
            assert label not in said
            assert not set("_=<") & set(said.replace("(+ - * / = < >)", ""))
            assert said[-1] not in ".;,"
    assert len(set(TOKENS.values())) == len(TOKENS)


@pytest.mark.parametrize(
    ("label", "group", "previous", "said"),
    [
        ("is_lt_31", "tokens", False, "on numbers up to 31"),
        ("starts_w_space", "tokens", True, "after tokens that begin with a space"),
        ("end_w_ing", "tokens", False, "on words that end in -ing"),
        (",", "unigrams", False, "on the comma"),
        ("the", "unigrams", False, "on “the”"),
        ("a", "unigrams", False, "on the letter “a”"),
        ("un (word start)", "unigrams", True, "after “un” where a longer word begins"),
        ("dep_nsubj", "syntax", False, "on subjects"),
        ("dep_oc", "syntax", False, "on words that are “oc” to their head"),
        ("ent_MISC", "syntax", False, "on named entities of the kind “MISC”"),
        ("Number=Dual", "syntax", False, "on words marked “Number=Dual”"),
        ("code", "subsets", False, "in text of the subset “code”"),
        ("topic goal match team", "topics", False, "on words of the topic “goal match team”"),
        ("colour", "own", False, "on tokens labelled “colour”"),
        ("position 1", "position", False, "at position 1"),
        ("position 4–7", "position", False, "at positions 4 to 7"),
        ("position < 64", "position", False, "before position 64"),
    ],
)
def test_labels_of_a_text_have_words_too(label, group, previous, said):
    assert place_of(label, group, previous) == said


def unit(family="token_class", label="is_lt_31", share=0.6, sign=1, **more):
    """A row of a neuron table."""
    known = {"model": "m", "layer": 0, "neuron": 0, "dead": False, "family": family, "label": label, "label_sign": sign}
    shares = {"variance_reduction": share, "variance_reduction_heldout": math.nan, "variance_reduction_null": 0.01}
    return known | shares | {"roles": [], "position_mi": 0.0} | more


def ranked(*labels):
    """Rows of the table `labels`: label, group, previous, share, sign."""
    names = ("label", "group", "previous", "variance_reduction", "sign")
    return pl.DataFrame([
        {"model": "m", "layer": 0, "neuron": 0, "rank": rank} | dict(zip(names, row)) for rank, row in enumerate(labels, 1)
    ])  # fmt: skip


def effect(**given):
    """A row of the table `effects`."""
    known = {"role": None, "class": "contains_digit", "class_group": "tokens", "class_sign": 1}
    lists = {"top_tokens": [0, 1, 2, 3], "bottom_tokens": [3, 2, 1, 0]}
    return pl.DataFrame(
        [{"model": "m", "layer": 0, "neuron": 0, "class_variance_reduction": 0.6} | known | lists | given]
    )


STRINGS = (" the", "\n", "<b>", "x")
NUMBERS, COMMA = ("is_lt_31", "tokens", False, 0.6, 1), (",", "unigrams", False, 0.6, 1)
AFTER = ("all_digits", "tokens", True, 0.3, 1)


@pytest.mark.parametrize(
    ("row", "labels", "effects", "said"),
    [
        (unit(), [NUMBERS], None, "Fires on numbers up to 31."),
        (unit(share=0.5), [NUMBERS], None, "Fires on numbers up to 31."),
        (unit(share=0.49), [NUMBERS], None, "Fires more on numbers up to 31."),
        (unit(share=0.19), [NUMBERS], None, "Fires somewhat more on numbers up to 31."),
        (unit(variance_reduction_heldout=0.3), [NUMBERS], None, "Fires more on numbers up to 31."),
        (unit(sign=-1), [NUMBERS], None, "Is silent on numbers up to 31."),
        (unit(sign=-1, share=0.3), [NUMBERS], None, "Fires less on numbers up to 31."),
        (unit("previous_token", "previous token: ,"), [(",", "unigrams", True, 0.6, 1)], None, "Fires after the comma."),
        (
            unit("unigram", ","), [COMMA, (";", "unigrams", False, 0.5, 1), AFTER], effect(),
            "Fires on the comma and, more weakly, after tokens of digits alone, raised ones too; raises tokens with a digit.",
        ),
        (unit("unigram", ","), [COMMA, (*AFTER[:3], 0.14, 1)], None, "Fires on the comma."),
        (unit("unigram", ",", variance_reduction_null=0.35), [COMMA, AFTER], None, "Fires on the comma."),
        (
            unit("unigram", ","), [COMMA, ("code", "subsets", False, 0.3, -1)], None,
            "Fires on the comma, less in text of the subset “code”.",
        ),
        (
            unit("unigram", ","), [COMMA, ("position", "position", False, 0.3, 1)], None,
            "Fires on the comma and, more weakly, by position in the text.",
        ),
        (unit("position", "position"), [("position", "position", False, 0.6, 1)], None, "Fires by position in the text."),
        (
            unit("position", "position"), [("position", "position", False, 0.6, 1), (*AFTER[:4], -1)], None,
            "Fires by position in the text, less after tokens of digits alone, raised ones too.",
        ),
        (unit("token_class", "position"), [("position", "own", False, 0.6, 1)], None, "Fires on tokens labelled “position”."),
        (
            unit("position", "comma"), [NUMBERS, AFTER], None, "Fires at some positions in the text more than at others.",
        ),
        (unit("bos"), [NUMBERS], None, "Fires most at the beginning of the text."),
        (
            unit("unexplained"), [NUMBERS, AFTER], effect(class_sign=-1, class_variance_reduction=0.1),
            "No label explains when it fires; tends slightly to lower tokens with a digit.",
        ),
        (unit(dead=True, family=None, label=None), [NUMBERS], effect(), "Dead: its activation never changes."),
        (
            unit(), [NUMBERS], effect(class_variance_reduction=0.01),
            "Fires on numbers up to 31; of all tokens raises “ the”, “⏎” and “<b>” most.",
        ),
        (
            unit(roles=["suppression", "entropy"]), [NUMBERS],
            effect(role="suppression", class_variance_reduction=math.nan, **{"class": None}),
            "Fires on numbers up to 31; of all tokens lowers “x”, “<b>” and “⏎” most; "
            "changes how certain the model is, through the final norm.",
        ),
        (
            unit(roles=["partition"]), [NUMBERS], effect(role="partition", class_variance_reduction=0.3),
            "Fires on numbers up to 31; tends to raise tokens with a digit and lower other tokens.",
        ),
        (unit(family=None, label=None), [NUMBERS], None, None),
    ],
)  # fmt: skip
def test_sentences_by_hand(row, labels, effects, said):
    neurons = pl.DataFrame(
        [row], schema_overrides={"roles": pl.List(pl.String), "family": pl.String, "label": pl.String}
    )
    assert label_sentences(neurons, ranked(*labels), effects, STRINGS.__getitem__) == [said]


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_names_are_legible_and_cut(family):
    names = {"previous_token": f"previous token: {HOSTILE}", "position": f"position {HOSTILE}"}
    row = unit(family, names.get(family, HOSTILE), group="own")
    neurons = pl.DataFrame([row | {"group": None}]).drop("group")
    said = label_sentences(
        neurons, ranked((HOSTILE, "own", False, 0.6, 1)), effect(**{"class": HOSTILE, "class_group": "own"})
    )
    for text in (said[0], fires_on(row), fires_on(row | {"group": None})):
        assert text.isprintable()
        assert len(text) < 200


def test_the_short_form_says_the_same_without_its_verb():
    assert fires_on(unit()) == "on numbers up to 31"
    assert fires_on(unit(share=0.1, sign=-1)) == "somewhat less on numbers up to 31"
    assert fires_on(unit(sign=-1)) == "not on numbers up to 31"
    assert fires_on(unit("previous_token", "previous token: pos_NOUN")) == "after nouns"
    assert fires_on(unit("previous_token", "previous token: the")) == "after “the”"
    assert fires_on(unit("context", "topic a b")) == "on words of the topic “a b”"
    assert fires_on(unit("context", "code")) == "in text of the subset “code”"
    assert fires_on(unit("token_class", "colour")) == "on tokens labelled “colour”"
    assert fires_on(unit("unexplained")) == "unexplained"
    assert fires_on(unit(None)) == "–"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A network and one like it, with labels, and roles that were added later."""
    models = alike_models(("one", "two"))
    for model in models:
        model.tokenizer = small_tokenizer()
    out = tmp_path_factory.mktemp("explained") / "run"
    stages = ("weights", "statistics", "labels")
    config = StudyConfig(out=str(out), stages=stages, labels=("tokens", "position"))
    tokens = some_tokens(60)
    first = run_study(config, models=models, tokens=tokens, progress=False)
    said = first.explanations
    return said, study_roles(first, FEW_ROLES, models=models, tokens=tokens)


def test_every_unit_of_a_run_has_its_sentence_and_roles_add_their_half(store):
    before, study = store
    after = study.table("explanations")
    assert study.explanations.equals(after)
    for table in (before, after):
        assert table.columns == ["model", "layer", "neuron", "source", "explanation"]
        assert table["source"].unique().to_list() == ["labels"]
        assert table.select("model", "layer", "neuron").equals(study.neurons.select("model", "layer", "neuron"))
    moved = {"raises", "raise", "lowers", "lower"}
    for short, long in zip(before["explanation"], after["explanation"]):
        assert long.startswith(short.removesuffix("."))
        assert not moved & set(short.split())
    living = after.filter(~pl.col("explanation").str.starts_with("Dead"))["explanation"]
    assert len(living)
    assert all(moved & set(text.split()) for text in living)
    assert sentences_of(study, study.neurons) == after["explanation"].to_list()
    for text in after["explanation"]:
        assert "_" not in re.sub("“[^”]*”", "", text)
    assert not set(ROLES) & set(" ".join(after["explanation"]).split())


def test_a_store_without_the_table_is_composed_as_it_is_read(store, tmp_path):
    _, study = store
    old = tmp_path / "old"
    old.mkdir()
    for file in study.path.iterdir():
        if file.is_file() and file.stem != "explanations":
            (old / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((old / "study.json").read_text())
    del manifest["tables"]["explanations"]
    (old / "study.json").write_text(json.dumps(manifest))
    unexplained = Store(old)
    assert not unexplained.has("explanations")
    assert unexplained.explanations.equals(study.explanations)
    some = study.neurons.sample(5, seed=1)
    assert sentences_of(unexplained, some) == sentences_of(study, some)


def test_a_study_without_labels_has_no_sentences(tmp_path):
    config = StudyConfig(out=str(tmp_path / "bare"), stages=("weights",))
    bare = run_study(config, models=alike_models(("one",)), progress=False)
    assert explanations_of(bare).is_empty()
    assert sentences_of(bare, bare.neurons) == [None] * len(bare.neurons)


def test_the_table_of_many_units_is_that_of_each(store):
    _, study = store
    neurons, labels, effects = study.neurons, study.labels, study.table("effects")
    model = neurons.filter(model="two")
    alone = [
        explanations_table(one, labels, effects, study.strings.__getitem__) for one in model.head(4).iter_slices(1)
    ]
    assert pl.concat(alone).equals(study.explanations.filter(model="two").head(4))


def test_terminal_and_notebook_say_the_sentence(store):
    _, study = store
    for row in study.explanations.sample(4, seed=2).iter_rows(named=True):
        neuron = study.neuron(f"{row['model']}/L{row['layer']}.{row['neuron']}")
        for shown in (repr(neuron), unescape(re.sub("<[^>]+>", "", neuron._repr_html_())), neuron.sentence):
            assert "".join(row["explanation"].split()) in "".join(shown.split())
