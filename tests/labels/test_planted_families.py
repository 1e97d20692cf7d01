"""Planted truth: neurons that are wired to fire on something known, and what a whole study says they fire on."""

import re
import statistics

import numpy as np
import polars as pl
import pytest
import torch
from conftest import exit_code, small_tokenizer, tiny_network

from universal_neurons import Model, StudyConfig, TokenDataset, run_study
from universal_neurons.report.numbers import number
from universal_neurons.text import read_vocabulary

CONTEXT, ROWS, WIDTH, HEAD = 32, 400, 96, 32
CODE = slice(0, 24)  # where a token's random code stands in the residual stream
THE, LETTER, ING, COMMA, VERSE, BEFORE, EARLIER = range(24, 31)  # and its features, two of them copied by heads
PLACE = 64  # from here on one direction per position
FEATURES = {  # the tokens that have a feature
    THE: (" the", " The", "The", "the"), LETTER: (" b", "b", " B", "B"), ING: ("ing", "ving", " string", "ning"),
    COMMA: (",", "),", "(),"),
}  # fmt: skip
SCATTERED = (2, 5, 6, 11, 14, 15, 19, 22, 26, 29)
PLANTED = {  # neuron of layer 0: what it reads, then its family, label and sign
    3: ((THE,), "unigram", "the", 1),
    5: ((LETTER,), "alphabet", "b", 1),
    8: ((ING,), "token_class", "end_w_ing", 1),
    11: ((BEFORE,), "previous_token", "previous token: contains_comma", 1),
    13: (tuple(range(PLACE + 4, PLACE + 8)), "position", "position 4–7", 1),
    14: (tuple(PLACE + t for t in SCATTERED), "position", "position", 1),
    16: ((VERSE,), "context", "verse", 1),
    20: ((EARLIER,), "unexplained", None, 0),
}


SAID = {
    3: "on “the”", 5: "on the letter “b”", 8: "on words that end in -ing", 11: "after tokens with a comma",
    13: "at positions 4 to 7", 14: "by position in the text", 16: "in text of the subset “verse”",
    20: "No label explains when it fires",
}  # fmt: skip


def some_words(vocabulary):
    """Ids of ordinary tokens, some for prose and some for verse alone; none has a planted feature but the subset's."""
    taken = {string.strip().lower() for strings in FEATURES.values() for string in strings}
    good = [
        n for n, s in enumerate(vocabulary.strings)
        if s.strip().isalpha() and len(s.strip()) > 1 and s.strip().lower() not in taken and not s.endswith("ing")
    ]  # fmt: skip
    prose, verse = np.random.default_rng(0).permutation(good)[:240].reshape(2, -1)
    symbols = [[vocabulary.strings.index(s) for s in half] for half in (".?-:();", '!"/{}[=')]
    return np.stack([np.append(prose, symbols[0]), np.append(verse, symbols[1])])


def corpus(vocabulary, words):
    """Rows of independent tokens: a third of them have a feature, whatever the subset."""
    chooser = np.random.default_rng(1)
    featured = [[vocabulary.strings.index(s) for s in strings] for strings in FEATURES.values()]
    pieces = []
    for subset in chooser.integers(0, 2, ROWS):
        ids = chooser.choice(words[subset], CONTEXT - 1)
        which = chooser.random(CONTEXT - 1)
        for place, tokens in enumerate(featured):
            here = (which >= 0.08 * place) & (which < 0.08 * (place + 1))
            ids[here] = chooser.choice(tokens, here.sum())
        pieces.append((("prose", "verse")[subset], ids))
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0,))


def attend_back(block, head, distance, source, target):
    """A head that looks `distance` positions back and copies one direction of the stream there into another."""
    query, key, value = (slice(part * WIDTH + head * HEAD, part * WIDTH + (head + 1) * HEAD) for part in range(3))
    weight = block.attn.c_attn.weight
    for t in range(CONTEXT):
        weight[PLACE + t, key.start + t] = 4.0
        if t >= distance:
            weight[PLACE + t, query.start + t - distance] = 4.0
    weight[source, value.start] = 1.0
    block.attn.c_proj.weight[head * HEAD, target] = 2.0


@torch.no_grad()
def wired_model(vocabulary, words, name="wired"):
    network = tiny_network(
        "gpt2", n_embd=WIDTH, n_head=WIDTH // HEAD, n_positions=CONTEXT, resid_pdrop=0.0, tie_word_embeddings=False
    )
    generator = torch.Generator().manual_seed(0)
    network.transformer.wte.weight.zero_()
    network.transformer.wpe.weight.zero_()
    network.transformer.wte.weight[:, CODE] = torch.randn(1024, 24, generator=generator)
    for feature, strings in FEATURES.items():
        network.transformer.wte.weight[[vocabulary.strings.index(s) for s in strings], feature] = 4.0
    network.transformer.wte.weight[torch.from_numpy(words[1]), VERSE] = 4.0
    network.transformer.wpe.weight[:, PLACE:] = 4 * torch.eye(CONTEXT)
    for block in network.transformer.h:
        for norm in (block.ln_1, block.ln_2):
            norm.weight.fill_(1.0), norm.bias.zero_()
        for projection in (block.attn.c_attn, block.attn.c_proj):
            projection.weight.zero_(), projection.bias.zero_()
    first = network.transformer.h[0]
    attend_back(first, 0, 1, COMMA, BEFORE)
    attend_back(first, 1, 2, THE, EARLIER)
    for neuron, (reads, *_) in PLANTED.items():
        first.mlp.c_fc.weight[:, neuron] = 0
        first.mlp.c_fc.weight[list(reads), neuron] = 1.0
        first.mlp.c_fc.bias[neuron] = -2.5
    return Model(network, name, tokenizer=small_tokenizer())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    vocabulary = read_vocabulary(small_tokenizer(), 1024)
    words = some_words(vocabulary)
    config = StudyConfig(
        out=str(tmp_path_factory.mktemp("planted") / "run"), stages=("statistics", "labels"),
        labels=("tokens", "unigrams", "subsets", "position"), nlp=None,
    )  # fmt: skip
    return run_study(config, models=[wired_model(vocabulary, words)], tokens=corpus(vocabulary, words), progress=False)


@pytest.mark.parametrize("neuron", PLANTED)
def test_a_wired_neuron_is_found_to_be_what_it_is(study, neuron):
    _, family, label, sign = PLANTED[neuron]
    place = (pl.col("layer") == 0) & (pl.col("neuron") == neuron)
    (row,) = study.neurons.filter(place).to_dicts()
    (best,) = study.labels.filter(place & (pl.col("rank") == 1)).to_dicts()
    assert row["family"] == family
    said = study.explanations.filter(place)["explanation"].item()
    assert said.startswith("Fires " if label else "No label ")
    assert SAID[neuron] in said.partition(" and, ")[0]
    if label is not None:
        assert row["label"] == label
        assert row["variance_reduction"] > 0.35
        assert row["variance_reduction_heldout"] > 0.35
        assert row["variance_reduction_null"] < 0.05
        assert best["sign"] == sign
        assert best["previous"] == (family == "previous_token")


def test_how_strong_families_are_is_counted_as_in_plain_python(study, capsys):
    place = ["model", "layer", "neuron"]
    second = study.labels.filter(rank=2).select(*place, second="variance_reduction")
    neurons = study.neurons.join(second, on=place, how="left", maintain_order="left")
    assert neurons["variance_reduction_second"].fill_nan(None).equals(neurons["second"])
    found = study.families
    assert set(found["family"]) == set(neurons["family"].drop_nulls()) > {"unigram", "token_class"}
    for row in found.iter_rows(named=True):
        mine = [
            one
            for one in neurons.filter(family=row["family"]).iter_rows(named=True)
            if row["family"] not in ("bos", "unexplained")
            and (row["family"] != "position" or one["label"].startswith("position"))
        ]
        if not mine:
            assert row["variance_reduction_median"] is row["above_half"] is row["tied"] is row["nearly_tied"] is None
            continue
        best = [one["variance_reduction"] for one in mine]
        assert row["variance_reduction_median"] == pytest.approx(statistics.median(best))
        assert row["above_half"] == sum(share > 0.5 for share in best)
        shares = [one["second"] / one["variance_reduction"] for one in mine]
        assert (row["tied"], row["nearly_tied"]) == (sum(s > 0.99999 for s in shares), sum(s >= 0.9 for s in shares))
    assert exit_code("show", study.path) == 0
    told = capsys.readouterr().out.partition("How much the best labels of")[2]
    for family, median in found.drop_nulls("above_half").select("family", "variance_reduction_median").iter_rows():
        assert re.search(rf"{family.replace('_', ' ')} .*{re.escape(number(median))}", told)
