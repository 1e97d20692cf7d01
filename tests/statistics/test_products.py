"""Products by a CPU's units for small numbers, against float64 NumPy on values that are hard to round."""

import numpy as np
import pytest
import torch

from universal_neurons.statistics import Batch, Block, CoMoments, Key, LayerMoments, products, round_to_scales
from universal_neurons.statistics.products import INT8_LARGEST, Int8Halves, LowBfloat16, scales_of
from universal_neurons.units import Units

pytestmark = pytest.mark.usefixtures("by_onednn")

POSITIONS, LEFT, RIGHT = 8192, 24, 17


def heavy(seed, units=LEFT, positions=POSITIONS):
    """Units that share signals; kurtosis up to the number of positions, scales from 1e-6 to 1e6, some constant."""
    draw = np.random.default_rng(seed)
    common = np.random.default_rng(0).standard_normal((positions, units))
    values = common + 0.3 * draw.standard_normal((positions, units))
    values[:, ::3] = np.sign(values[:, ::3]) * np.abs(values[:, ::3]) ** 9  # kurtosis of thousands
    values[:, 1::6] = np.maximum(values[:, 1::6] - 2.5, 0)  # mostly 0, as a dictionary's
    values *= 10.0 ** draw.integers(-6, 7, units)
    values[:, 2] = -4.25
    values[:, 4] = 0
    return torch.from_numpy(values.astype(np.float32))


def blocks_of(values, batch, rounding="int8"):
    """The batches of shifted values, rounded as a source rounds them."""
    for rows in (values - values[:512].mean(0)).split(batch):
        rows = rows.clone()
        if rounding == "int8":
            yield Block(rows, rounding=rounding, scale=round_to_scales(rows))
        else:
            yield Block(rows.bfloat16().float(), rounding=rounding)


def correlated(left, right, batch=2048, rounding="int8", rows=None):
    moments = CoMoments("a", "b", left.shape[1], right.shape[1], rows=rows)
    spreads = []
    for a, b in zip(blocks_of(left, batch, rounding), blocks_of(right, batch, rounding)):
        moments.update(Batch({Key("a"): a, Key("b"): b}))
        spreads.append((a.columns, b.columns))
    kept = slice(*(rows or (0, left.shape[1])))
    centred = moments.result().centred()
    norms = []
    for side in range(2):
        total, squares = (sum(getattr(each[side], what) for each in spreads) for what in ("sums", "squares"))
        norms.append((squares - total**2 / len(left)).clamp_min(0).sqrt())
    return (centred / norms[0][kept, None] / norms[1]).numpy()


def by_numpy(left, right):
    a, b = (x.double().numpy() for x in (left, right))
    a, b = a - a.mean(0), b - b.mean(0)
    with np.errstate(invalid="ignore"):
        return (a.T @ b) / np.linalg.norm(a, axis=0)[:, None] / np.linalg.norm(b, axis=0)


@pytest.mark.parametrize(("rounding", "most"), [("int8", 1e-4), ("bfloat16", 5e-3)])
def test_correlations_of_heavy_tails_are_near_those_in_float64(rounding, most):
    left, right = heavy(1), heavy(2)[:, :RIGHT]
    found, expected = correlated(left, right, rounding=rounding), by_numpy(left, right)
    varies = np.isfinite(expected) & (left.std(0) > 0).numpy()[:, None] & (right.std(0) > 0).numpy()
    assert varies.sum() > LEFT * RIGHT / 2
    assert np.abs(expected[varies]).max() > 0.85
    np.testing.assert_allclose(found[varies], expected[varies], atol=most, rtol=0)


def test_one_sharp_position_leaves_the_others_their_precision():
    """A unit that fires once in a batch: what the others hold of it is as right as in float64."""
    left = torch.zeros(POSITIONS, 2)
    left[100, 0] = left[5000, 0] = 1000.0
    left[:, 1] = torch.from_numpy(np.random.default_rng(0).standard_normal(POSITIONS)).float()
    found, expected = correlated(left, left), by_numpy(left, left)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


def test_sums_in_whole_numbers_are_exact_whatever_the_tiles_threads_and_batches(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    numbers = [torch.randint(-INT8_LARGEST, INT8_LARGEST + 1, (300, n), generator=draw).float() for n in (37, 51)]
    numbers[0][0], numbers[1][0] = INT8_LARGEST, -INT8_LARGEST
    expected = numbers[0].double().T @ numbers[1].double()
    one = torch.ones(51)

    def product():
        into = torch.full((37, 51), torch.nan)
        left, right = (Int8Halves.of(each, one[: each.shape[1]]) for each in numbers)
        left.add_product(into, slice(None), right, slice(None), True)
        return into

    whole = product()
    np.testing.assert_allclose(whole.numpy(), expected.numpy(), rtol=3e-7, atol=3e-7 * 300 * INT8_LARGEST**2)
    monkeypatch.setattr(products, "TILE", (8, 16))
    assert torch.equal(product(), whole)
    monkeypatch.setattr(products, "INT8_POSITIONS", 100)
    np.testing.assert_allclose(product().numpy(), whole.numpy(), rtol=1e-6, atol=1e-6 * 300 * INT8_LARGEST**2)


def test_the_longest_stretch_of_the_largest_numbers_does_not_overflow():
    values = torch.full((products.INT8_POSITIONS, 1), 127.0 * 256 - 128)  # 126·256 + 128: the low half is −128
    low = Int8Halves.of(values, torch.ones(1))
    assert low.stretches[0].unique().tolist() == [-128, 127]
    into = torch.empty(1, 1)
    low.add_product(into, slice(None), low, slice(None), True)
    np.testing.assert_allclose(into.double().numpy(), len(values) * (127.0 * 256 - 128) ** 2, rtol=3e-7)


@pytest.mark.parametrize("positions", [1, 7, 512])
@pytest.mark.parametrize("units", [(1, 1), (1, 5), (4, 1), (3, 6)])
def test_products_of_any_shape(positions, units):
    """Of one row torch's own product would be of memory that nobody wrote."""
    left, right = (heavy(n, positions=positions)[:, 5 : 5 + n].contiguous() for n in units)
    (a,), (b,) = blocks_of(left, positions), blocks_of(right, positions)
    into = torch.full(units, torch.nan)
    a.packed.add_product(into, slice(None), b.packed, slice(None), True)
    expected = a.values.double().T @ b.values.double()
    tolerance = 1e-6 * (a.values.double().norm(dim=0)[:, None] * b.values.double().norm(dim=0)).numpy()
    assert (np.abs(into.numpy() - expected.numpy()) <= tolerance).all()


def test_rounded_values_are_multiples_of_scales_within_half_of_one_and_stay_so():
    values = heavy(3)
    rounded = values.clone()
    scale = round_to_scales(rounded)
    assert ((rounded - values).abs() <= 0.5 * scale + 3e-7 * values.abs()).all()
    again = rounded.clone()
    round_to_scales(again)
    np.testing.assert_allclose(again.numpy(), rounded.numpy(), rtol=1e-6)
    halves = Int8Halves.of(rounded, scale).stretches[0].double()
    numbers = 256 * halves[:POSITIONS] + halves[POSITIONS : 2 * POSITIONS]
    np.testing.assert_allclose((numbers * scale).numpy(), rounded.double().numpy(), rtol=1e-6)
    assert torch.equal(halves[:POSITIONS], halves[2 * POSITIONS :])


def test_units_of_zeros_and_of_next_to_nothing_have_no_scale():
    values = torch.tensor([[0.0, 1e-38, 1.0], [0.0, -1e-38, -2.0]])
    scale = round_to_scales(values)
    assert scale[:2].tolist() == [0.0, 0.0]
    assert values[:, :2].eq(0).all()
    np.testing.assert_allclose(values[:, 2].numpy(), [1.0, -2.0], rtol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_reach_the_sums(bad):
    values = torch.ones(16, 6)
    values[3, 4] = bad
    assert torch.isnan(scales_of(values)).tolist() == [False] * 4 + [True, False]
    scale = round_to_scales(values)
    moments = LayerMoments("a", Units((3, 3)))
    moments.update(Batch({Key("a"): Block(values, rounding="int8", scale=scale)}))
    moments.fold()
    assert moments.non_finite() == ("a", 4)


@pytest.mark.parametrize("rounding", ["int8", "bfloat16"])
def test_a_panel_is_those_rows_of_the_whole_to_the_bit(rounding):
    left, right = heavy(1, positions=1024), heavy(2, positions=1024)
    whole = correlated(left, right, 512, rounding)
    np.testing.assert_array_equal(correlated(left, right, 512, rounding, rows=(5, 9)), whole[5:9])


def test_within_layers_of_unequal_width_too():
    values, units = heavy(1, positions=2048), Units((5, 11, 8))
    moments = LayerMoments("a", units)
    for block in blocks_of(values, 512):
        moments.update(Batch({Key("a"): block}))
    shifted = values.double().numpy() - values.double().numpy().mean(0)
    for number, layer in enumerate(moments.result().centred):
        columns = units.columns(number)
        expected = shifted[:, columns].T @ shifted[:, columns]
        norms = np.sqrt(expected.diagonal())
        scale = np.outer(norms, norms) + 1e-30
        np.testing.assert_allclose(layer.numpy() / scale, expected / scale, atol=1e-4)


def test_blocks_that_are_packed_differently_are_multiplied_as_they_are():
    left, right = heavy(1, positions=512), heavy(2, positions=512)
    (a,), b = blocks_of(left, 512), Block(right - right.mean(0))
    moments = CoMoments("a", "b", LEFT, LEFT)
    moments.update(Batch({Key("a"): a, Key("b"): b}))
    expected = a.values.double().T @ b.values.double()
    norms = a.values.double().norm(dim=0)[:, None] * b.values.double().norm(dim=0) + 1e-30
    found = moments.result().cross
    np.testing.assert_allclose((found / norms).numpy(), (expected / norms).numpy(), atol=5e-6)


def test_a_block_is_packed_once_and_only_by_units_that_are_there(monkeypatch):
    monkeypatch.setattr(products, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    block = Block(torch.ones(4, 3), rounding="bfloat16")
    assert isinstance(block.packed, LowBfloat16)
    assert block.packed is block.packed
    monkeypatch.setattr(products, "processor_flags", frozenset)
    assert Block(torch.ones(4, 3), rounding="bfloat16").packed is None
    assert Block(torch.ones(4, 3)).packed is None
