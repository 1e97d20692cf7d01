"""Units: numbers, places and names against a list of all units, of layers of equal and unequal width."""

import numpy as np
import polars as pl
import pytest

from universal_neurons.units import Units, name_column, parse_unit, unit_name

WIDTHS = [(24, 24), (1,), (5, 1, 7), (3, 0, 2), (0, 4), (4, 0, 0), (), (0,), *[
    tuple(np.random.default_rng(seed).integers(0, 9, 1 + seed).tolist()) for seed in range(6)
]]  # fmt: skip


def enumerated(widths):
    """Layer and unit of every number, counted one by one."""
    return [(layer, unit) for layer, width in enumerate(widths) for unit in range(width)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_numbers_and_places_are_those_of_a_list_of_all_units(widths):
    units, places = Units(widths), enumerated(widths)
    assert len(units) == len(places)
    assert units.layers == len(widths)
    for number, place in enumerate(places):
        assert units.place_of(number) == place
        assert units.number_of(*place) == number
        assert units.layer_of(number) == place[0]
        assert units.has(*place)
    for layer, width in enumerate(widths):
        columns = units.columns(layer)
        assert places[columns] == [(layer, unit) for unit in range(width)]
        assert not units.has(layer, width)
        assert not units.has(layer, -1)
    assert not units.has(len(widths), 0)
    assert not units.has(-1, 0)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_arrays_of_any_shape_keep_it_and_say_none_of_none(widths, dtype):
    units, places = Units(widths), [*enumerated(widths), (-1, -1)]
    numbers = [*range(len(units)), -1]
    order = np.random.default_rng(0).integers(0, len(numbers), (3, 4))
    given = np.array(numbers, dtype)[order]
    layer, unit = units.place_of(given)
    assert layer.shape == unit.shape == given.shape
    assert list(zip(layer.ravel().tolist(), unit.ravel().tolist())) == [places[place] for place in order.ravel()]
    assert units.number_of(layer, unit).tolist() == given.tolist()
    assert units.layer_of(given).tolist() == layer.tolist()


def test_none_is_none_of_one_number_too():
    units = Units((5, 1, 7))
    assert units.place_of(-1) == (-1, -1)
    assert units.number_of(-1, -1) == -1


@pytest.mark.parametrize("number", [13, -2, np.array([0, 13]), np.array([-2])])
def test_a_number_of_no_unit_is_a_mistake_of_ours(number):
    with pytest.raises(AssertionError):
        Units((5, 1, 7)).place_of(number)


@pytest.mark.parametrize("place", [(0, 5), (3, 0), (-1, 0), (np.array([3]), np.array([0]))])
def test_a_place_of_no_unit_is_a_mistake_of_ours(place):
    with pytest.raises(AssertionError):
        Units((5, 1, 7)).number_of(*place)


def test_a_unit_beyond_its_layer_in_an_array_is_a_mistake_of_ours():
    for layers, units in (([0, 1], [4, 1]), ([0, -1], [4, 0])):
        with pytest.raises(AssertionError):
            Units((5, 1, 7)).number_of(np.array(layers), np.array(units))


def test_equal_layers_have_a_width_and_unequal_ones_none():
    units = Units.equal(3, 24)
    assert units == Units((24, 24, 24))
    assert (units.layers, units.width, len(units)) == (3, 24, 72)
    with pytest.raises(AssertionError, match="unequal"):
        assert Units((24, 23)).width
    with pytest.raises(AssertionError):
        units.columns(3)
    with pytest.raises(AssertionError):
        units.columns(-1)


def test_whole_layers_of_columns():
    units = Units((5, 1, 7))
    assert units.layers_in(0, 13) == slice(0, 3)
    assert units.layers_in(5, 6) == slice(1, 2)
    with pytest.raises(AssertionError):
        units.layers_in(5, 7)


@pytest.mark.parametrize("widths", WIDTHS)
def test_numbers_by_layer(widths):
    units, places = Units(widths), enumerated(widths)
    numbers = np.random.default_rng(1).permutation(len(units)).tolist()
    grouped = units.by_layer(numbers)
    assert list(grouped) == sorted({layer for layer, _ in places})
    for layer, some in grouped.items():
        assert some == [number for number in numbers if places[number][0] == layer]
        assert units.within_layers(some) == [places[number][1] for number in some]
    assert units.by_layer([]) == {}


@pytest.mark.parametrize("widths", WIDTHS)
def test_columns_of_a_table_and_back(widths):
    units, places = Units(widths), enumerated(widths)
    columns = units.table_columns()
    assert all(column.dtype == np.int32 for column in columns.values())
    assert list(zip(columns["layer"].tolist(), columns["neuron"].tolist())) == places
    table = pl.DataFrame(columns)
    assert table.select(units.number_column()).to_series().to_list() == list(range(len(units)))
    some = np.array([*range(0, len(units), 2), -1])
    columns = units.table_columns(some, "match_")
    assert [tuple(row) for row in pl.DataFrame(columns).rows()] == [*places[::2], (-1, -1)]
    assert list(columns) == ["match_layer", "match_neuron"]


def test_a_layer_that_is_not_there_has_no_number():
    table = pl.DataFrame({"layer": [0, 2, 3], "neuron": [4, 6, 0]}, schema_overrides={"layer": pl.Int32})
    assert table.select(Units((5, 1, 7)).number_column()).to_series().to_list() == [4, 12, None]


@pytest.mark.parametrize("model", [None, "seed-1", "a/b", "x\ny", "L0.0", "L1.2/L3.4", "é{}", "/"])
def test_names_are_read_as_they_were_written(model):
    for layer, unit in ((0, 0), (3, 17), (11, 123_456_789)):
        assert parse_unit(unit_name(layer, unit, model)) == (model, layer, unit)


def test_names_are_those_that_people_read():
    assert unit_name(3, 17) == "L3.17"
    assert unit_name(3, 17, "seed-1") == "seed-1/L3.17"
    table = pl.DataFrame({"layer": [0, 3], "neuron": [5, 17]})
    assert table.select(name_column()).to_series().to_list() == ["L0.5", "L3.17"]


@pytest.mark.parametrize(
    "name", ["", "L0", "l0.1", "L-1.0", "L1.2.3", "L1.2/", "/L1.2", "L١.٢", "L1.2\n", " L1.2", "L1234567890.1", "L1.H2"]
)
def test_what_is_no_name(name):
    assert parse_unit(name) is None


MIXED = Units((5, 14, 8, 6), ((0, 0), (3, 4), (2, 4), (0, 0)))
MIXED_NAMES = [
    *(f"L0.{unit}" for unit in range(5)),
    *(f"L1.{unit}" for unit in range(2)),
    *(f"L1.E{expert}.{unit}" for expert in range(3) for unit in range(4)),
    *(f"L2.E{expert}.{unit}" for expert in range(2) for unit in range(4)),
    *(f"L3.{unit}" for unit in range(6)),
]


def test_experts_units_are_named_and_read():
    assert [unit_name(*MIXED.place_of(number)) for number in range(len(MIXED))] == MIXED_NAMES
    for number, name in enumerate(MIXED_NAMES):
        model, layer, unit = parse_unit(name)
        assert (model, MIXED.number_of(layer, unit)) == (None, number)
        assert parse_unit(f"a/{name}") == ("a", layer, unit)
        assert unit_name(layer, unit, "a") == f"a/{name}"
        assert MIXED.has(layer, unit)


def test_experts_units_in_arrays_and_tables():
    numbers = [*range(len(MIXED)), -1]
    places = [*(parse_unit(name)[1:] for name in MIXED_NAMES), (-1, -1)]
    layers, units = MIXED.place_of(np.array(numbers))
    assert list(zip(layers.tolist(), units.tolist())) == places
    assert MIXED.number_of(layers, units).tolist() == numbers
    table = pl.DataFrame(MIXED.table_columns(np.array(numbers)))
    assert table["neuron"].dtype == pl.Int32
    assert table.select(MIXED.number_column()).to_series().to_list() == [*range(len(MIXED)), None]
    assert table[:-1].select(name_column()).to_series().to_list() == MIXED_NAMES
    assert MIXED.within_layers(range(5, 9)) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["L0.E0.0", "L1.E3.0", "L1.E0.4", "L1.2", "L2.0", "L3.E0.0", "L4.0", "L0.5"])
def test_places_that_no_expert_has(name):
    assert not MIXED.has(*parse_unit(name)[1:])


@pytest.mark.parametrize(
    "name", ["L0.E.1", "L0.E1", "L0.E-1.0", "L0.E1.1000000", "L0.E12345.0", "L0.e1.0", "L0.E1.E1.0"]
)
def test_what_is_no_experts_name(name):
    assert parse_unit(name) is None


def test_units_are_what_their_facts_say():
    for units in (MIXED, Units((3, 4)), Units.equal(2, 24)):
        assert Units.of_facts(units.facts) == units
    assert Units.equal(2, 24).facts == {"layers": 2, "d_mlp": 24}
    assert Units((3, 4)).facts["d_mlp"] == 4
