"""Windows drawn from held-out rows, against a loop over the models' own activations."""

import numpy as np
import pytest
import torch
from conftest import tiny_model
from test_correlation import CONTEXT, some_tokens

from universal_neurons.explanations import STRATA, draw_windows, require_apart, windows
from universal_neurons.features import NeuronSource
from universal_neurons.statistics import seed_of

WIDTH, DRAWN = 16, (5, 4, 3, 2)
UNITS = {"gpt2-0": (3, 40), "llama-0": (0, 47, 5)}
PER_ROW = -(-CONTEXT // WIDTH)


@pytest.fixture(scope="module")
def tokens():
    return some_tokens(300)


@pytest.fixture(scope="module")
def models():
    return [tiny_model("gpt2"), tiny_model("llama"), tiny_model("gpt2", 1, "not asked")]


def rows_of(tokens):
    chosen, stretches = tokens.split()
    return chosen, np.concatenate(stretches)


def draw(models, tokens, seed=0, dtype="float32", **how):
    how = {"gated": frozenset({"llama-0"}), "drawn": DRAWN, "width": WIDTH} | how
    return draw_windows([NeuronSource(m, dtype) for m in models], UNITS, tokens, *rows_of(tokens), seed=seed, **how)


@pytest.fixture(scope="module")
def drawn(models, tokens):
    return draw(models, tokens)


def sizes_of(model, unit, tokens):
    """What the unit does everywhere, NaN where it is not counted: |activation| of a gated model."""
    every = np.arange(len(tokens))
    values = model.activations(torch.from_numpy(tokens.ids(every)))[..., unit].double().numpy()
    return np.where(tokens.mask(every), np.abs(values) if model.name == "llama-0" else values, np.nan)


def plainly(sizes, tokens, seed):
    """By stratum the windows (row, start) with the smallest numbers, and how many there were; by loops."""
    chosen, heldout = rows_of(tokens)
    cuts = np.nanquantile(sizes[chosen], (0.97, 0.99, 0.999), method="higher")
    by_stratum = [[] for _ in STRATA]
    for row in heldout.tolist():
        numbers = np.random.default_rng(seed_of("window", seed, row)).random(PER_ROW)
        for place in range(PER_ROW):
            values = sizes[row, place * WIDTH : (place + 1) * WIDTH]
            if np.isfinite(values).any():
                stratum = int((np.nanmax(values) > cuts).sum())
                by_stratum[stratum].append((numbers[place], row, place * WIDTH))
    kept = [sorted(windows)[:most] for windows, most in zip(by_stratum, DRAWN)]
    return cuts[1], [(row, start) for windows in kept for _, row, start in windows], [len(w) for w in by_stratum]


def test_windows_against_loops_over_activations(models, tokens, drawn):
    assert {name: [(w.layer, w.neuron) for w in of_model] for name, of_model in drawn.items()} == {
        "gpt2-0": [(0, 3), (1, 16)],
        "llama-0": [(0, 0), (1, 23), (0, 5)],
    }
    for model in models[:2]:
        for unit, of_unit in zip(UNITS[model.name], drawn[model.name]):
            sizes = sizes_of(model, unit, tokens)
            threshold, places, counts = plainly(sizes, tokens, 0)
            assert of_unit.threshold == pytest.approx(threshold, rel=1e-5)
            assert list(zip(of_unit.row, of_unit.start)) == places
            assert of_unit.sizes.tolist() == counts
            assert of_unit.stratum.tolist() == np.repeat(range(4), np.minimum(counts, DRAWN)).tolist()
            for window, (row, start) in enumerate(places):
                inside = slice(start, min(start + WIDTH, tokens.lengths[row]))
                length = inside.stop - start
                assert of_unit.ids[window].tolist() == [*tokens.ids(np.array([row]))[0, inside]] + [-1] * (
                    WIDTH - length
                )
                assert np.allclose(of_unit.size[window, :length], sizes[row, inside], atol=1e-5, equal_nan=True)
                assert np.isnan(of_unit.size[window, length:]).all()
            assert (of_unit.fires.any(1) == (of_unit.stratum >= 2)).all()


def test_scored_text_is_held_out_and_never_evidence(tokens, drawn):
    chosen, heldout = rows_of(tokens)
    for of_unit in drawn["llama-0"]:
        assert np.isin(of_unit.row, heldout).all()
        require_apart(chosen, of_unit.row)
        with pytest.raises(AssertionError, match="evidence from held-out rows"):
            require_apart(np.append(chosen, of_unit.row[-1]), heldout)


def test_rows_that_choose_cannot_be_drawn_from(models, tokens):
    with pytest.raises(AssertionError, match="not held out"):
        draw_windows([NeuronSource(models[0])], UNITS, tokens, np.arange(10), np.arange(9, 20))


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in ("row", "start", "size")
    )


def test_the_seed_decides_alone(models, tokens, drawn, monkeypatch):
    (first, _), others = drawn["gpt2-0"], drawn["llama-0"]
    assert not same(first, draw(models[:1], tokens, seed=1)["gpt2-0"][0])
    monkeypatch.setattr(windows, "BATCH_TOKENS", 3 * CONTEXT)  # other batches, fewer models, rounded products
    again = draw(models[1:2], tokens)["llama-0"]
    assert [list(w.row) for w in again] == [list(w.row) for w in others]
    assert np.allclose(again[0].size, others[0].size, atol=1e-5, equal_nan=True)
    rounded = draw(models[:1], tokens, dtype="bfloat16")["gpt2-0"][0]
    assert list(rounded.row) == list(first.row)
    assert np.allclose(rounded.size, first.size, atol=1e-5, equal_nan=True)


def test_a_unit_that_is_mostly_silent_has_no_windows_near_firing(models, tokens):
    """Its 0.97 and 0.99 quantiles are one number: it fires wherever it is above."""
    source = NeuronSource(models[0])
    take = source._take

    def sparse(known, keep, values, as_is, layer, activation):
        fired = torch.zeros_like(activation)
        fired[::211] = 1
        take(known, keep, values, as_is, layer, fired)

    source._take = sparse
    (of_unit,) = draw_windows([source], {source.name: [3]}, tokens, *rows_of(tokens), drawn=DRAWN, width=WIDTH)[
        source.name
    ]
    assert of_unit.threshold == pytest.approx(0)
    assert of_unit.sizes[1] == 0
    assert of_unit.sizes[2:].sum() > 0


def test_no_units_no_windows(models, tokens):
    assert draw_windows([NeuronSource(models[0])], {}, tokens, *rows_of(tokens)) == {}


def test_strings_of_a_window(drawn):
    (window, *_) = drawn["gpt2-0"]
    strings = [f"<{token}>" for token in range(1024)]
    last = int(np.argmin((window.ids >= 0).sum(1)))
    length = int((window.ids[last] >= 0).sum())
    assert window.tokens(last, strings) == tuple(f"<{token}>" for token in window.ids[last, :length])
