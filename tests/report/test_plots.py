"""Figures one by one: `store.plot`, of one neuron, in a notebook; nothing of pyplot is touched."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

import universal_neurons as un
from universal_neurons.errors import InputError
from universal_neurons.report.figures import DYNAMICS_KINDS, NEURON_KINDS, STUDY_KINDS


@pytest.fixture(scope="module")
def store(folders, text_file, tmp_path_factory):
    config = un.StudyConfig(
        models=tuple(map(str, folders[:2])), data=str(text_file), out=str(tmp_path_factory.mktemp("plots") / "run"),
        draws=2, labels=("tokens", "position"), stages=("statistics", "universality", "labels"),
    )  # fmt: skip
    return un.run_study(config, progress=False)


def test_what_there_is_is_listed_and_drawn_without_pyplot(store):
    import matplotlib.pyplot as plt

    there = dir(store.plot)
    assert {"universality", "densities", "four_families", "by_layer"} <= set(there)
    assert not {"entropy", "costs", "subsets"} & set(there)
    assert "plot.universality(): How well other models match each neuron" in repr(store.plot)
    figure = store.plot.universality()
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert "Seen here: " in figure._repr_html_()
    assert re.search(r'<figure><img alt="How well', figure._repr_html_())
    assert plt.get_fignums() == []


@pytest.mark.parametrize("kind", [*STUDY_KINDS, *NEURON_KINDS], ids=lambda kind: f"{kind.name}-{kind.file}")
def test_every_method_has_a_name_and_a_docstring(store, kind):
    plot = store.plot if kind in STUDY_KINDS else store.neuron("L0.1").plot
    method = getattr(plot, kind.name)
    assert method.__name__ == kind.name
    assert kind.name.isidentifier()
    assert kind.axes in method.__doc__
    assert ("`model`" in method.__doc__) == (kind.per != "study")


def test_what_is_not_there_says_which_stage_makes_it(store):
    with pytest.raises(InputError, match="without the table costs") as error:
        store.plot.costs()
    assert "the stage roles" in error.value.wanted
    assert error.value.fix == "uneurons roles RUN adds them"
    with pytest.raises(InputError, match="no figure universality of m9"):
        store.plot.universality("m9")
    with pytest.raises(InputError, match="no figure intervals of m1"):
        store.plot.intervals(model="m1")  # nobody asked about its matches
    with pytest.raises(AttributeError, match="no figure 'nothing'; there are universality"):
        _ = store.plot.nothing
    with pytest.raises(TypeError):
        store.plot.densities(model="m1")  # it is of all models


def test_figures_of_one_neuron_show_its_tables(store):
    alive = store.neurons.filter(~pl.col("dead"), model=store.models[0]).row(3, named=True)
    neuron = store.neuron(f"L{alive['layer']}.{alive['neuron']}")
    assert dir(neuron.plot) == ["activations", "matches", "pre_activations"]
    number = store.units[neuron.model].number_of(neuron.layer, neuron.neuron)
    low, _, counts = store.histogram(neuron.model, number)
    figure = neuron.plot.pre_activations()
    assert (
        f"Of {counts.sum():,} positions here {100 * counts[low >= 0].sum() / counts.sum():.1f} %" in figure.caption.seen
    )
    heights, edges, _ = figure.axes[0].patches[0].get_data()
    assert 0.99 < float(np.sum(heights * np.diff(edges))) <= 1 + 1e-9
    figure = neuron.plot.matches()
    drawn = next(line for line in figure.axes[0].lines if line.get_label() == "rows that chose it")
    assert list(drawn.get_xdata()) == neuron.matches.filter(rank=1)["corr"].to_list()
    with pytest.raises(InputError, match="without the table effects"):
        neuron.plot.logit_effects()
    other = store.neuron("m1/L0.0")
    with pytest.raises(InputError, match="nothing to draw activations of"):
        other.plot.activations()


def test_activations_of_a_neuron_that_was_kept(store):
    name = next(column for column in store.table("details").columns if re.fullmatch(r"L\d+\.\d+", column))
    details = store.table("details")
    figure = store.neuron(name).plot.activations()
    holds = details[f"{name} label"]
    assert f"at {int(holds.sum()):,} of {len(holds):,} positions" in figure.caption.seen
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_page_names_every_figure():
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    for kind in (*STUDY_KINDS, *NEURON_KINDS, *DYNAMICS_KINDS):
        assert f"`{kind.name}`" in page, kind.name
