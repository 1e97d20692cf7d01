"""Modules by the names that they had before they lay in packages."""

from importlib import import_module

import pytest

import universal_neurons
from universal_neurons.moved import MOVED


@pytest.mark.parametrize(("former", "now"), MOVED.items())
def test_a_former_name_is_the_module_where_it_is_now(former, now):
    with pytest.warns(DeprecationWarning, match=f"universal_neurons.{former} is now universal_neurons.{now}"):
        import_again(former)
    module = import_module(f"universal_neurons.{former}")
    assert module is import_module(f"universal_neurons.{now}")
    assert module.__spec__.name == f"universal_neurons.{now}"


def import_again(former):
    import sys

    sys.modules.pop(f"universal_neurons.{former}", None)
    return import_module(f"universal_neurons.{former}")


def test_what_is_set_by_a_former_name_is_set(monkeypatch):
    monkeypatch.setattr("universal_neurons.tokens.SHARD_POSITIONS", 7)
    assert import_module("universal_neurons.text.tokens").SHARD_POSITIONS == 7


@pytest.mark.parametrize("name", ["universal_neurons.no_such", "self_correlation", "universal_neurons.text.stream"])
def test_no_other_name_is_found(name):
    with pytest.raises(ModuleNotFoundError):
        import_module(name)
    assert universal_neurons.__version__
