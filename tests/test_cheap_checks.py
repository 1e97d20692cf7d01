"""What is wrong is found whether a function names an array or not."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import beartype
import numpy as np
import pytest
import torch
from cheap_checks import checked, is_plain
from jaxtyping import Float, TypeCheckError
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


WRONG = {
    "an argument": lambda: plain("1", ["a"]),
    "within a list": lambda: plain(1, [2]),
    "what is returned": lambda: plain(7, ["a"]),
    "sizes that differ": lambda: sized(torch.ones(2, 3), torch.ones(2, 3)),
    "a returned array's size": lambda: sized(torch.ones(7, 3), torch.ones(3, 2)),
    "a field": lambda: Record("1"),
    "fields of other sizes": lambda: Sized(torch.ones(2), torch.ones(3)),
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


def test_the_package_is_checked_so():
    with pytest.raises(beartype.roar.BeartypeCallHintViolation):
        shortened("a", "b")
    with pytest.raises(TypeCheckError):
        rho(3.0, np.ones((4, 3)))
