"""What a model needs to show a role: decided once, said with the figure where it fails."""

import polars as pl
import pytest

from universal_neurons.role_settings import RoleSettings
from universal_neurons.roles.preconditions import cannot_be_shown, preconditions, unmet_lines
from universal_neurons.storage import Store

SETTINGS = RoleSettings()
ABLE = {"token_kurt_high": 25.0, "relative_cut": 6.0, "null_tail": 0.02}
HEADS = pl.DataFrame({"head_layer": [0, 1, 1], "head": [0, 0, 1], "bos_attention": [0.9, 0.02, 0.3]})


class Told(Store):
    """What is read of a study: the table, where it has it."""

    def __init__(self, *tables: pl.DataFrame) -> None:
        self.told = tables

    def has(self, name):
        return name == "preconditions" and bool(self.told)

    def table(self, name):
        return pl.concat(self.told)


def test_a_model_that_has_all_can_show_all():
    found = preconditions("m", ABLE, HEADS, SETTINGS)
    assert found["met"].all()
    assert len(found) == 7
    assert found.filter(measure="bos_attention")["value"].to_list() == [0.3, 0.3]  # of later layers
    store = Told(found)
    assert not any(cannot_be_shown(store, "m", role) for role in found["role"])
    assert unmet_lines(store, ["m"]) == []


@pytest.mark.parametrize(
    ("change", "roles", "said"),
    [
        ({"token_kurt_high": 7.8}, ("prediction", "suppression"), "below 7.8, the cut is 10.0"),
        ({"token_kurt_high": 5.0, "relative_cut": 5.2}, ("prediction, relative",), "below 5.0, the cut is 5.2"),
        ({"null_tail": 0.62}, ("entropy",), "0.62 as strongly"),
    ],
)
def test_what_fails_is_said_with_its_figure(change, roles, said):
    store = Told(preconditions("m", ABLE | change, HEADS, SETTINGS), preconditions("n", ABLE, HEADS, SETTINGS))
    for role in roles:
        assert cannot_be_shown(store, "m", role).startswith("cannot be shown in this model: ")
        assert said in cannot_be_shown(store, "m", role)
        assert cannot_be_shown(store, "n", role) == ""
    assert cannot_be_shown(store, "m", "attention_activation") == cannot_be_shown(store, "m", "partition") == ""
    lines = unmet_lines(store, ["m", "n"])
    assert all(line.startswith("m: ") and line.endswith(".") for line in lines)
    assert any(said in line and roles[0] in line for line in lines)


def test_without_a_sink_no_attention_role_and_without_heads_nothing_is_claimed():
    faint = HEADS.with_columns(bos_attention=pl.Series([0.9, 0.02, 0.03]))
    store = Told(preconditions("m", ABLE, faint, SETTINGS))
    assert "BOS gets 0.030 of a head's attention at most" in cannot_be_shown(store, "m", "attention_activation")
    assert len(unmet_lines(store, ["m"])) == 1
    for heads in (None, faint.head(1), faint.with_columns(bos_attention=pl.lit(None, pl.Float64))):
        assert not preconditions("m", ABLE, heads, SETTINGS)["role"].str.starts_with("attention").any()
    assert cannot_be_shown(Told(), "m", "entropy") == ""
    assert unmet_lines(Told(), ["m"]) == []


def test_settings_move_what_is_wanted():
    settings = RoleSettings(kurtosis=30, null_space=0.01, attention_sink=0.5)
    found = preconditions("m", ABLE, HEADS, settings)
    assert found.filter(~pl.col("met"))["role"].to_list() == [
        "prediction", "suppression", "entropy", "attention_deactivation", "attention_activation",
    ]  # fmt: skip
