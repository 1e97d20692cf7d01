"""What roles are said to cost, in readings and products, against what a study of one model makes."""

import polars as pl
import pytest
from conftest import FEW_ROLES, settled, tiny_model

import universal_neurons as un
from universal_neurons.interventions import readout
from universal_neurons.study.measured import ReadingSeconds
from universal_neurons.study.role_seconds import _changes

READ = 40  # positions
VALUES = (0.5, 2.0)  # none that another edit has too: equal changes are made once


@pytest.fixture(scope="module")
def counted(folders, text_file, tmp_path_factory):
    """A study of few readings; how many logits of changed runs were read, and how many were multiplied anew."""
    rows = {"read": 0, "multiplied": 0}
    measure, logits = readout._measure, readout.Readout.logits

    def measured(values, targets):
        rows["read"] += len(values)
        return measure(values, targets)

    def multiplied(self, residual, scale=None):
        rows["multiplied"] += residual.flatten(0, -2).shape[0]
        return logits(self, residual, scale)

    roles = FEW_ROLES.model_copy(update={"readings": READ, "values": VALUES})
    out = tmp_path_factory.mktemp("costs") / "r"
    stages = ("weights", "statistics", "roles")
    config = un.StudyConfig(models=(str(folders[0]),), data=str(text_file), out=str(out), roles=roles, stages=stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readout, "_measure", measured)
        patch.setattr(readout.Readout, "logits", multiplied)
        store = un.run_study(config, progress=False)
    return store, un.load_model(str(folders[0])), roles, rows


def test_readings_are_as_many_as_is_said(counted):
    store, model, roles, rows = counted
    tried = store.table("ablations").filter(kind="entropy").height  # so small a model has fewer than are asked for
    products, readings, _, _ = _changes(model, roles.model_copy(update={"entropy_neurons": tried}), None)
    candidates = tried + 4
    said = readings - candidates - 1  # those put back along frequency, and the clean run, aside
    assert said - 1 <= rows["read"] / READ <= said  # relu is zero of a neuron that is negative at all of the positions
    assert 0.2 * products < (rows["multiplied"] / READ) < products + 2


def test_tables_say_how_many_positions_were_read(counted):
    store, *_ = counted
    assert store.table("interventions")["tokens"].unique().to_list() == [READ]
    assert store.table("ablations")["tokens"].unique().to_list() == [READ]
    read = store.table("attention")["positions"]
    assert read.min() > READ  # of all positions that count
    assert store.table("interventions").filter(pl.col("edit") == "fix")["value"].n_unique() == len(VALUES)


def test_a_model_that_sources_share_runs_once(monkeypatch):
    """Neurons and stream of one model, neurons of another: the first's bare forward pass is counted once."""
    models = [tiny_model("gpt2", seed) for seed in (1, 2)]
    stream = un.features_of(models[0], "residual")
    asked = [models[0], stream, models[1]]
    seconds = {models[0].name: 5.0, stream.name: 4.0, models[1].name: 7.0}
    monkeypatch.setattr("universal_neurons.study.measured.bare_seconds", lambda model, config: 3.0)
    monkeypatch.setattr(
        "universal_neurons.study.measured.seconds_by_model", lambda some, of: {each.name: of(each) for each in some}
    )
    forward = ReadingSeconds.measured(asked, settled(), lambda model, config: seconds[model.name])
    names = [each.name for each in asked]
    assert forward.of(names) == 5 + 4 - 3 + 7
    assert forward.of(reversed(names)) == 5 + 4 - 3 + 7
    assert forward.of(set(names[:1])) == 5
    assert forward.of(names[1:]) == 4 + 7
    assert set(forward.bare) == set(names[:2])
