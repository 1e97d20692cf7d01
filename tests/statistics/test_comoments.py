"""Co-moments in panels, compensated and tile by tile, and the precision of their inputs, against float64 NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from universal_neurons.errors import MergeError
from universal_neurons.statistics import Batch, Block, CoMoments, Key, LayerMoments, comoments, products, round_to
from universal_neurons.statistics.comoments import add_compensated, tile_of
from universal_neurons.statistics.products import product_precision
from universal_neurons.units import Units

pytestmark = pytest.mark.usefixtures("by_onednn")

TOKENS, N_LEFT, N_RIGHT = 900, 23, 11
GENERATOR = torch.Generator().manual_seed(1)
LEFT = torch.randn(TOKENS, N_LEFT, generator=GENERATOR).exp()
RIGHT = LEFT[:, :N_RIGHT] * 0.3 + torch.randn(TOKENS, N_RIGHT, generator=GENERATOR).exp()
TIGHT = {"rtol": 2e-6, "atol": 2e-3}
BITS = {"tf32": 11, "bfloat16": 8}  # of a mantissa, the leading one included


def feed(moments, parts=7, start=0, stop=TOKENS):
    """Every part is a shard of two batches."""
    for rows in np.array_split(np.arange(start, stop), parts):
        for some in np.array_split(rows, 2):
            moments.update(Batch({Key("a"): Block(LEFT[some]), Key("b"): Block(RIGHT[some])}))
        moments.fold()
    return moments


def make(rows=None, compensated=False):
    return CoMoments("a", "b", N_LEFT, N_RIGHT, rows=rows, compensated=compensated)


def centred_by_numpy():
    a, b = LEFT.double().numpy(), RIGHT.double().numpy()
    return (a - a.mean(0)).T @ (b - b.mean(0))


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("rows", [(0, 5), (5, 6), (6, 23), (0, 23)])
def test_a_panel_is_those_rows_of_the_whole(rows, compensated):
    found = feed(make(rows, compensated)).result()
    whole = feed(make(None, compensated)).result()
    expected = centred_by_numpy()[slice(*rows)]
    np.testing.assert_allclose(found.centred().numpy(), expected, **TIGHT)
    np.testing.assert_allclose(found.centred().numpy(), whole.centred(slice(*rows)).numpy(), **TIGHT)
    np.testing.assert_allclose(found.transposed().centred().numpy(), expected.T, **TIGHT)
    np.testing.assert_allclose(found.centred(slice(0, 1), slice(2, 4)).numpy(), expected[:1, 2:4], **TIGHT)


def test_panels_have_names_of_their_own_and_do_not_merge_with_one_another():
    assert len({make(rows).key for rows in ((0, 5), (5, 10), (0, 23), None)}) == 3
    assert make((0, N_LEFT)).key == make().key
    with pytest.raises(MergeError):
        make((0, 5)).merge(make((5, 11)))


@pytest.mark.parametrize("compensated", [False, True])
def test_a_panel_restored_from_its_state_goes_on_to_the_same_bits(compensated):
    whole = feed(make((3, 9), compensated), 6)
    first = feed(make((3, 9), compensated), 3, stop=TOKENS // 2)
    second = make((3, 9), compensated)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    feed(second, 3, start=TOKENS // 2)
    for name in ("cross", "rest", "left_sum", "right_sum"):
        assert torch.equal(getattr(whole, name), getattr(second, name))


def errors_of_sums(terms):
    """Of terms summed with compensation and in plain float32, relative to the largest sum on the way."""
    total, rest = torch.zeros(terms.shape[1:]), torch.zeros(terms.shape[1:], dtype=torch.bfloat16)
    plain = torch.zeros(terms.shape[1:])
    for term in terms:
        add_compensated(total, rest, term.clone())
        plain += term
    exact = terms.double().numpy().cumsum(0)
    kept = (total.double() + rest.double()).numpy()
    return [(np.abs(value - exact[-1]) / np.abs(exact).max(0)).max() for value in (kept, plain.double().numpy())]


@pytest.mark.parametrize(("swing", "drift"), [(0, 300), (1000, 300), (1000, 0)])
def test_compensated_sums_are_exact_to_eight_more_bits_than_float32(swing, drift):
    """2000 terms that grow, or that are large and change their sign: what a sum lost must survive the next term."""
    sizes = torch.randn(2000, 8, 16, generator=torch.Generator().manual_seed(3)).mul(0.3).exp()
    sign = (-1.0) ** torch.arange(2000)[:, None, None]
    compensated, plain = errors_of_sums(swing * sizes * sign + drift * sizes.flip(0))
    assert plain > 5e-7
    assert compensated < plain / 256
    assert compensated < 1e-8


def test_compensated_co_moments_after_many_folds():
    draw = torch.Generator().manual_seed(4)
    left, right = (torch.rand(2000, n, generator=draw).mul(200).round() / 64 + 1 for n in (5, 4))
    kept, plain = CoMoments("a", "b", 5, 4, compensated=True), torch.zeros(5, 4)
    for x, y in zip(left, right):  # products of few bits: exact in float32
        kept.update(Batch({Key("a"): Block(x[None]), Key("b"): Block(y[None])}))
        kept.fold()
        plain += torch.outer(x, y)
    exact = left.double().numpy().T @ right.double().numpy()
    found = (kept.cross.double() + kept.rest.double()).numpy()
    error, without = (np.abs(value / exact - 1).max() for value in (found, plain.double().numpy()))
    assert error < 5e-9
    assert without > 20 * error


def test_compensated_sums_merge():
    ends = [0, 200, 450, 460, TOKENS]
    parts = [feed(make(None, True), 3, *cut) for cut in pairwise(ends)]
    parts[1].merge(parts[0])
    parts[3].merge(parts[2])
    parts[3].merge(parts[1])
    assert parts[3].count == TOKENS
    np.testing.assert_allclose(parts[3].result().centred().numpy(), centred_by_numpy(), **TIGHT)


def test_merging_keeps_what_both_sums_had_lost():
    one, other = (CoMoments("a", "b", 1, 1, compensated=True) for _ in range(2))
    for moments, total, rest in ((one, 2.0**24, 0.5), (other, 2.0**24 + 2, 0.75)):
        moments.cross.fill_(total)
        moments.rest.fill_(rest)
    one.merge(other)
    assert float(one.cross.double() + one.rest.double()) == 2.0**25 + 2 + 1.25


def test_plain_and_compensated_sums_do_not_merge():
    with pytest.raises(MergeError):
        make().merge(make(compensated=True))


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("rows", [None, (4, 17)])
def test_tiles_that_are_folded_as_soon_as_they_are_multiplied(monkeypatch, rows, compensated):
    """The way of a GPU, where a batch is a shard."""
    monkeypatch.setattr(comoments, "TILE_ROWS", 4)
    moments = make(rows, compensated)
    moments.at_once = True
    moments.pending = torch.zeros(0, N_RIGHT)
    feed(moments)
    assert moments.count == TOKENS
    expected = centred_by_numpy()[slice(*(rows or (0, N_LEFT)))]
    np.testing.assert_allclose(moments.result().centred().numpy(), expected, **TIGHT)


@pytest.mark.parametrize("widths", [(5, 5), (640, 640), (641, 641), (2600, 800), (5, 641, 1, 20)])
def test_within_layer_products_in_tiles(widths):
    values = torch.randn(300, sum(widths), generator=torch.Generator().manual_seed(5)).exp()
    moments = LayerMoments("a", Units(widths))
    assert [tile_of(width) for width in widths] == [max(640, -(-width // 4)) for width in widths]
    for rows in values.split(70):
        moments.update(Batch({Key("a"): Block(rows)}))
        moments.fold()
    exact = values.double().numpy()
    exact = exact - exact.mean(0)
    found = moments.result()
    assert found.units == Units(widths)
    for layer, part in zip(found.centred, np.split(exact, np.cumsum(widths)[:-1], 1), strict=True):
        expected = part.T @ part
        np.testing.assert_allclose(layer.numpy(), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_array_equal(layer.numpy(), layer.mT.numpy())
    np.testing.assert_allclose(found.squares.numpy(), (exact**2).sum(0), rtol=1e-5)


@pytest.mark.parametrize("rounding", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_precision_of_products_is_put_back(rounding, device):
    native = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul

    def settings():
        return [part.fp32_precision for part in native]

    before = settings()
    lowered = {("cpu", "bfloat16"): ["bf16", before[1]], ("cuda", "tf32"): [before[0], "tf32"]}
    with product_precision(rounding, torch.device(device)):
        assert settings() == lowered.get((device, rounding), before)
    assert settings() == before
    with pytest.raises(ZeroDivisionError), product_precision(rounding, torch.device(device)):
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.parametrize("rounding", BITS)
def test_of_rounded_values_the_products_are_exact(rounding, monkeypatch):
    """But for a CPU's units for bfloat16, whose products are rounded too (test_products.py)."""
    monkeypatch.setattr(products, "processor_flags", frozenset)
    left, right = round_to(LEFT, rounding), round_to(RIGHT, rounding)
    moments = make()
    moments.update(Batch({Key("a"): Block(left, rounding=rounding), Key("b"): Block(right, rounding=rounding)}))
    a, b = left.double().numpy(), right.double().numpy()
    np.testing.assert_allclose(
        moments.result().centred().numpy(), (a - a.mean(0)).T @ (b - b.mean(0)), rtol=2e-6, atol=0.02
    )


def rounded_by_numpy(values, bits):
    """Nearest, ties to even, of normal numbers: through the mantissa in float64."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits).astype(np.float32)


@pytest.mark.parametrize("rounding", BITS)
def test_rounding_is_to_the_nearest(rounding):
    draw = np.random.default_rng(0)
    some = draw.standard_normal(20_000) * 10.0 ** draw.integers(-20, 20, 20_000)
    values = some.astype(np.float32)
    found = round_to(torch.from_numpy(values), rounding).numpy()
    np.testing.assert_array_equal(found, rounded_by_numpy(values, BITS[rounding]))


@pytest.mark.parametrize("rounding", BITS)
def test_ties_go_to_the_even_mantissa(rounding):
    unit = 2.0 ** (1 - BITS[rounding])
    steps = np.arange(64)
    scales = np.array([1.0, -1.0, 2.0**-30, -(2.0**30)])
    ties = ((1 + (steps + 0.5) * unit)[:, None] * scales).astype(np.float32)
    even = (1 + (steps + steps % 2) * unit)[:, None] * scales
    np.testing.assert_array_equal(round_to(torch.from_numpy(ties), rounding).numpy(), even)
    for towards, expected in ((np.inf, steps + 1), (-np.inf, steps)):  # next to a tie one is nearest
        near = np.nextafter(ties[:, 0], np.float32(towards))
        np.testing.assert_array_equal(round_to(torch.from_numpy(near), rounding).numpy(), 1 + expected * unit)


@pytest.mark.parametrize("rounding", [*BITS, "float32"])
def test_rounding_keeps_zeros_powers_and_infinities(rounding):
    values = torch.tensor([0.0, -0.0, 1.0, -(2.0**-126), 2.0**127, torch.inf, -torch.inf])
    found = round_to(values, rounding)
    assert torch.equal(found, values)
    assert torch.equal(torch.signbit(found), torch.signbit(values))


@pytest.mark.parametrize("rounding", [*BITS, "float32"])
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_rounding_keeps_nan(rounding, bits):
    """0x7FFFFFFF is the NaN that arithmetic on NVIDIA GPUs makes: made a number, it would not stop the study."""
    values = torch.from_numpy(np.array([bits], np.uint32).view(np.float32))
    assert torch.isnan(round_to(values, rounding)).all()


@pytest.mark.parametrize("rounding", BITS)
def test_rounding_does_not_touch_its_input(rounding):
    values = torch.tensor([1.0 + 2.0**-20, 3.3])
    before = values.clone()
    assert not torch.equal(round_to(values, rounding), before)
    assert torch.equal(values, before)
