"""Panels: every row once, as few passes as fit in memory, and the same answers however the matrices are cut."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from conftest import settled, tiny_model
from test_study import quiet

from universal_neurons import StudyConfig, TokenDataset
from universal_neurons.errors import MemoryNeededError
from universal_neurons.models import Described
from universal_neurons.passes import Layout, cut, model_pairs
from universal_neurons.study import memory
from universal_neurons.study.run_passes import lane_ends
from universal_neurons.units import Units

CONTEXT = 40


class Shape(Described):
    """A model of which nothing but its shape is asked."""

    def __init__(self, name, n_layers=2, d_mlp=24):
        super().__init__(name)
        self.units = Units.equal(n_layers, d_mlp)
        self.d_model, self.vocab_size, self.context = d_mlp // 4, 50_257, 512


SHAPES = {
    "equal": [(2, 24)] * 3,
    "uneven": [(12, 64), (3, 200), (1, 7), (24, 16)],
    "two": [(6, 50), (2, 31)],
    "many": [(4, 10)] * 9,
}


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("pairs", ["reference", "all"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_cut_covers_every_row_of_every_pair_once(shapes, pairs, by_layer):
    models = [Shape(f"m{number}", *shape) for number, shape in enumerate(SHAPES[shapes])]
    asked = model_pairs(models, pairs)
    total = sum(left.n_neurons * right.n_neurons for left, right in asked)
    steps = {left.name: left.d_mlp if by_layer else 1 for left in models}
    coarsest = max(steps[left.name] * right.n_neurons for left, right in asked)
    units = sum(left.n_neurons // steps[left.name] for left, _ in asked)
    for passes in [*range(1, 14), 29, 100, units, units + 50]:
        panels = cut(asked, passes, by_layer=by_layer)
        assert 1 <= len(panels) <= passes
        assert all(panels)
        for left, right in asked:
            rows = [p.rows for part in panels for p in part if (p.left, p.right) == (left, right)]
            assert rows[0][0] == 0
            assert rows[-1][1] == left.n_neurons
            assert all(before[1] == after[0] for before, after in pairwise(rows))
            assert all(
                start < stop and start % steps[left.name] == stop % steps[left.name] == 0 for start, stop in rows
            )
        entries = [sum(panel.entries for panel in part) for part in panels]
        assert sum(entries) == total
        assert max(entries) <= total / passes + coarsest
        if len(panels) == passes and passes <= total / (2 * coarsest):
            assert min(entries) >= total / passes - coarsest


def test_one_pass_makes_whole_matrices():
    models = [Shape(name) for name in "abc"]
    (panels,) = cut(model_pairs(models, "all"), 1, by_layer=True)
    assert [(p.left.name, p.right.name, p.rows) for p in panels] == [("a", "b", (0, 48)), ("a", "c", (0, 48)), ("b", "c", (0, 48))]  # fmt: skip


@pytest.mark.parametrize(("shards", "lanes"), [(10, 1), (10, 3), (7, 7), (2, 8), (1, 5)])
def test_lanes_are_even_and_cover_all_shards(shards, lanes):
    ends = lane_ends(shards, lanes)
    if min(shards, lanes) == 1:
        assert ends == []
        return
    sizes = np.diff([0, *ends])
    assert len(ends) == min(shards, lanes)
    assert ends[-1] == shards
    assert sizes.max() - sizes.min() <= 1


def planned(free, monkeypatch, models=5, groups=1, **settings):
    """The layout of a study of GPT-2-sized models where so many bytes are free, and what it would take."""
    shapes = [Shape(f"m{number}", 12, 3072) for number in range(models)]
    settings = {"stages": ("universality",), "batch_tokens": 2048, "device": "cpu", "gemm_dtype": "float32", "context": 512} | settings  # fmt: skip
    config = settled(**settings)
    monkeypatch.setattr(memory, "available_memory", lambda config: free)

    def needed(layout):
        return memory.memory_plan(config, shapes, layout, groups=groups).total

    return memory.plan_layout(config, shapes, groups=groups), needed, config, shapes


@pytest.mark.parametrize("settings", [{}, {"pairs": "all"}, {"search": "screened"}, {"pairs": "all", "lanes": 3}])
@pytest.mark.parametrize("groups", [1, 3])
def test_as_few_passes_as_fit_and_compensated_sums_before_a_further_pass(monkeypatch, settings, groups):
    monkeypatch.setattr(memory, "MOST_PASSES", 64)  # trying thousands of passes, each with its panels, takes seconds
    _, needed, config, shapes = planned(1 << 60, monkeypatch, groups=groups, **settings)
    whole, small = needed(Layout(1, False)), needed(Layout(1, True))
    assert small < whole
    found = {}
    for free in (whole, whole - 1, small, small - 1, whole // 2, whole // 4):
        layout, *_ = planned(free, monkeypatch, groups=groups, **settings)
        found[free] = layout
        assert needed(layout) <= free
        memory.require_memory(config, shapes, layout, groups=groups)
        order = [Layout(passes, sums) for passes in range(1, layout.passes + 1) for sums in (False, True)]
        assert all(needed(other) > free for other in order[: order.index(layout)])
    assert found[whole] == Layout(1, False)
    assert found[whole - 1] == found[small] == Layout(1, True)
    assert found[small - 1].passes >= 2
    assert found[whole // 4].passes > found[whole // 2].passes


def test_what_was_asked_for_is_not_planned(monkeypatch):
    assert planned(1, monkeypatch, panels=3)[0] == Layout(3, False)
    assert planned(1, monkeypatch, panels=3, sums="compensated")[0] == Layout(3, True)
    assert planned(1 << 60, monkeypatch, sums="compensated")[0] == Layout(1, True)
    _, needed, *_ = planned(1 << 60, monkeypatch)
    free = needed(Layout(1, True))
    assert planned(free, monkeypatch, sums="float64")[0].passes > 1
    assert planned(free, monkeypatch, sums="float64")[0].compensated is False


def test_a_study_that_does_not_fit_in_single_rows_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "MOST_PASSES", 12)
    layout, needed, config, shapes = planned(1 << 20, monkeypatch)
    assert layout == Layout(12, True)
    assert needed(layout) > 1 << 20
    with pytest.raises(MemoryNeededError, match="passes"):
        memory.require_memory(config, shapes, layout)


def test_a_study_that_cannot_fit_is_refused_without_planning_every_number_of_passes(monkeypatch):
    """Each plan cuts the panels anew: thousands of them are minutes of waiting for a refusal."""
    plans = []

    def never(config, models, layout=None, *, groups=1):
        plans.append(layout)
        return memory.MemoryPlan(1 << 62, 0, 0, 0)

    monkeypatch.setattr(memory, "memory_plan", never)
    planned(1 << 20, monkeypatch)
    assert len(plans) <= 100


def texts(rows=120, seed=0):
    """Rows of two subsets in turns."""
    draw = np.random.default_rng(seed)
    pieces = [(("prose", "code")[r // 3 % 2], draw.integers(1, 1024, CONTEXT - 1 - r % 3)) for r in range(rows)]
    return TokenDataset.from_pieces(pieces, context=CONTEXT, bos=0, masked=(0, 7))


@pytest.fixture(scope="module")
def inputs():
    return [tiny_model("gpt2", seed, f"m{seed}") for seed in range(3)], texts()


@pytest.fixture
def study(inputs, tmp_path, monkeypatch):
    """Runs a study of some settings on many small shards."""
    monkeypatch.setattr("universal_neurons.text.tokens.SHARD_POSITIONS", 800)
    models, tokens = inputs

    def run(**settings):
        name = "-".join(f"{key}={value}" for key, value in settings.items())
        plain = {"out": str(tmp_path / name), "draws": 2, "stages": ("universality",)}
        return quiet(StudyConfig(**plain | settings), models=models, tokens=tokens)

    return run


def require_same(store, other, but=()):
    """The same tables: numbers within rounding, everything else equal."""
    tables = sorted(path.stem for path in store.path.glob("*.parquet"))
    assert tables == sorted(path.stem for path in other.path.glob("*.parquet"))
    for name in set(tables) - set(but):
        one, two = store.table(name), other.table(name)
        assert one.schema == two.schema
        assert one.shape == two.shape
        for column, kind in one.schema.items():
            if kind.is_float():
                np.testing.assert_allclose(one[column], two[column], rtol=1e-6, atol=1e-6, err_msg=f"{name}.{column}")
            elif column != "certified":
                assert one[column].equals(two[column], null_equal=True), f"{name}.{column}"
    assert store.manifest["counted_tokens"] == other.manifest["counted_tokens"]


@pytest.mark.parametrize("settings", [
    {"pairs": "all", "subset": ("prose",)}, {"subset": ("all",), "sums": "compensated"}, {"baseline": "permutation"},
    {"pairs": "all", "lanes": 3, "gemm_dtype": "bfloat16"},
])  # fmt: skip
def test_exact_studies_do_not_depend_on_panels(study, settings):
    require_same(study(panels=1, **settings), study(panels=3, **settings))


@pytest.mark.parametrize("settings", [
    {"pairs": "all", "subset": ("prose",)}, {"subset": ("all",), "lanes": 3},
])  # fmt: skip
def test_screened_studies_do_not_depend_on_panels(study, settings):
    whole = study(panels=1, search="screened", group_size=2, **settings)
    assert whole.matches.filter(pl.col("rank") == 1)["certified"].is_not_null().all()
    require_same(whole, study(panels=3, search="screened", group_size=2, **settings))


def test_certificates_do_not_depend_on_panels(study):
    """With layers of 24 neurons, parts of a proposal are narrower than the whole."""
    whole, cut = (study(panels=panels, search="screened", pairs="all") for panels in (1, 5))
    assert whole.matches["certified"].to_list() == cut.matches["certified"].to_list()


def test_sketched_studies_do_not_depend_on_panels(study):
    whole = study(panels=1, search="sketch", pairs="all", group_size=4)
    require_same(whole, study(panels=3, search="sketch", pairs="all", group_size=4))


@pytest.mark.parametrize("search", ["exact", "screened"])
def test_studies_do_not_depend_on_lanes(study, search):
    """But convergence is looked at after lanes."""
    more = {"search": search, "pairs": "all"} | ({"group_size": 2} if search == "screened" else {})
    apart = study(lanes=3, **more)
    require_same(study(lanes=1, **more), apart, but=("convergence",))
    assert len(apart.convergence["tokens"].unique()) <= 3


def test_a_screened_study_finds_what_an_exact_one_does(study):
    exact, screened = study(pairs="all"), study(pairs="all", search="screened", group_size=2)
    best, found = (store.matches.filter(pl.col("rank") == 1) for store in (exact, screened))
    places = ["asker", "layer", "neuron", "match_model"]
    assert best.select(places).equals(found.select(places))
    same = (best["match_layer"] == found["match_layer"]) & (best["match_neuron"] == found["match_neuron"])
    assert same.filter(found["certified"]).all()
    assert same.filter(best["corr"] >= 0.3).all()
    np.testing.assert_allclose(best["corr"].filter(same), found["corr"].filter(same), atol=1e-6)
    np.testing.assert_array_equal(best["mutual"].filter(same & found["certified"]), found["mutual"].filter(same & found["certified"]))  # fmt: skip


def test_memory_decides_the_panels_of_a_study(study, monkeypatch):
    whole = study()
    assert whole.manifest["layout"] == {"passes": 1, "compensated": False}

    def scarce(config, models, layout=None, *, groups=1):
        layout = layout or Layout()
        return memory.MemoryPlan(0, 100 if layout.passes > 2 and layout.compensated else 1 << 62, 0, 0)

    monkeypatch.setattr(memory, "memory_plan", scarce)
    store = study(draws=3)
    assert store.manifest["layout"] == {"passes": 3, "compensated": True}
    np.testing.assert_allclose(store.neurons["mean_corr"][:48], whole.neurons["mean_corr"][:48], atol=1e-6)
