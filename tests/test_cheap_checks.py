"""What is wrong is found whether a function names an array or not."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import beartype
import numpy as np
import pytest
import torch
from cheap_checks import checked, is_known, is_plain
from jaxtyping import Float
from torch import Tensor

from universal_neurons.legible import shortened
from universal_neurons.matching.heldout import rho

typed = checked(typechecker=beartype.beartype)


@pytest.mark.parametrize(
    "hint",
    [int, None, Tensor, Any, int | None, list[int], tuple[str, ...], dict[str, list[Tensor]], Callable[[int], str],
     Callable[..., None], Literal["a", 1], type[int], Mapping[str, Any]],
)  # fmt: skip
def test_classes_and_what_holds_them_are_plain(hint):
    assert is_plain(hint)


@pytest.mark.parametrize(
    "hint",
    [Float[Tensor, "a b"], list[Float[Tensor, " a"]], Float[Tensor, " a"] | None, Callable[[Float[Tensor, " a"]], None],
     Callable[[int], Float[Tensor, " a"]], "int", list["int"], dict[str, tuple[Float[Tensor, " a"], ...]]],
)  # fmt: skip
def test_arrays_and_names_to_be_looked_up_are_not(hint):
    assert not is_plain(hint)


@pytest.mark.parametrize(
    "hint", [int, Float[Tensor, "a b"], list[Float[Tensor, " a"] | None], Callable[[Float[Tensor, " a"]], None]]
)
def test_arrays_are_known(hint):
    assert is_known(hint)


@pytest.mark.parametrize("hint", ["int", list["int"], Float[Tensor, " {n}"], tuple[Float[Tensor, " 2*{n}"], ...]])
def test_names_and_formulas_to_be_looked_up_are_not(hint):
    assert not is_known(hint)


@typed
def plain(number: int, names: list[str]) -> str:
    return number if number == 7 else names[0]


@typed
def sized(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    return a if len(a) == 7 else a @ b


@typed
@dataclasses.dataclass
class Record:
    number: int
    name: str = ""


@typed
@dataclasses.dataclass
class Sized:
    a: Float[Tensor, " n"]
    b: Float[Tensor, " n"]


@typed
class Ordinary:
    @typed
    def later(self) -> Iterator[int]:
        yield 1


@typed
def formula(a: Float[Tensor, " n"], k: int) -> Float[Tensor, " n+{k}"]:
    return torch.cat([a, a[:1]])


def local(number: int) -> Callable[[Any], int]:
    """A function of its own at every call."""

    @typed
    def added(other: int) -> int:
        return number + other

    return added


WRONG = {
    "an argument": lambda: plain("1", ["a"]),
    "within a list": lambda: plain(1, [2]),
    "what is returned": lambda: plain(7, ["a"]),
    "sizes that differ": lambda: sized(torch.ones(2, 3), torch.ones(2, 3)),
    "a returned array's size": lambda: sized(torch.ones(7, 3), torch.ones(3, 2)),
    "a field": lambda: Record("1"),
    "fields of other sizes": lambda: Sized(torch.ones(2), torch.ones(3)),
    "a size by a formula": lambda: formula(torch.ones(3), 2),
    "an argument of a local function": lambda: local(1)("2"),
    "an argument of its likeness": lambda: (local(1), local(2))[1]("2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(what):
    with pytest.raises(Exception, match=r"violates type hint|Type-check error"):
        WRONG[what]()


def test_what_is_right_passes():
    assert plain(1, ["a"]) == "a"
    assert sized(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert Record(1).name == ""
    assert len(Sized(torch.ones(2), torch.ones(2)).a) == 2
    assert list(Ordinary().later()) == [1]
    assert len(formula(torch.ones(3), 1)) == 4


def test_local_functions_keep_their_surroundings():
    assert [made(10) for made in [local(1), local(2), local(3)]] == [11, 12, 13]


def test_sizes_are_those_of_one_call():
    assert sized(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert sized(torch.ones(5, 6), torch.ones(6, 7)).shape == (5, 7)
    with pytest.raises(Exception, match="violates type hint"):
        sized(torch.ones(2, 3), torch.ones(4, 2))
    assert sized(torch.ones(1, 2), torch.ones(2, 3)).shape == (1, 3)


def test_the_package_is_checked_so():
    with pytest.raises(beartype.roar.BeartypeCallHintViolation):
        shortened("a", "b")
    with pytest.raises(beartype.roar.BeartypeCallHintViolation):
        rho(3.0, np.ones((4, 3)))
