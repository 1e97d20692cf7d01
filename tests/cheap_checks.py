"""Calls whose annotations name no array are checked by beartype alone.

jaxtyping's own wrapper binds the arguments of every call to keep count of the sizes of arrays; it takes longer than
what many of the functions do.  Where no array is named there is nothing to count.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import jaxtyping

FULL = jaxtyping.jaxtyped


def is_plain(hint: Any) -> bool:
    """Whether a hint is made of classes that are no arrays; not where it holds a name still to be looked up."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return not issubclass(hint, jaxtyping.AbstractArray) and hint.__module__.partition(".")[0] != "jaxtyping"
    if hint in (None, Any, ...):
        return True
    if isinstance(hint, list):
        return all(map(is_plain, hint))
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    return origin is not None and all(map(is_plain, typing.get_args(hint)))


def is_plain_function(function: Any) -> bool:
    """Whether it is an ordinary function, all of whose hints are plain."""
    return (
        inspect.isfunction(function)
        and not (inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function))
        and all(map(is_plain, function.__annotations__.values()))
    )


def checked(subject: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """`jaxtyping.jaxtyped`, but for functions, and classes of data, that name no array."""
    if subject is None:
        return partial(checked, typechecker=typechecker)
    if is_plain_function(subject):
        return typechecker(subject)
    if (
        isinstance(subject, type)
        and dataclasses.is_dataclass(subject)
        and is_plain_function(vars(subject).get("__init__"))
    ):
        subject.__init__ = typechecker(subject.__init__)
        return subject
    return FULL(subject, typechecker=typechecker)


jaxtyping.jaxtyped = checked
