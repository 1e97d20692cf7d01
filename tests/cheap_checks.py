"""The same checks of types and sizes as jaxtyping's own, in less time.

jaxtyping's wrapper binds the arguments of every call, checks them, and checks them once more beside what is returned.
Here beartype's wrapper alone checks arguments and answer, within a count of the sizes of arrays where arrays are named.
What is left to jaxtyping's own: generators, and hints that are strings or hold names or formulas still to be looked up.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jaxtyping

FULL = jaxtyping.jaxtyped
SIZES = jaxtyping.jaxtyped("context")  # within it, sizes of one name are the same
MADE: dict[Any, Callable] = {}  # checks of local functions, which are made anew whenever what is around them runs


def arrays_in(hint: Any) -> Iterator[type[jaxtyping.AbstractArray] | None]:
    """The arrays that a hint names; None for each thing in it that is still to be looked up."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        if issubclass(hint, jaxtyping.AbstractArray):
            yield hint
        elif hint.__module__.partition(".")[0] == "jaxtyping":
            yield None
    elif isinstance(hint, list):
        for part in hint:
            yield from arrays_in(part)
    elif hint not in (None, Any, ...) and (origin := typing.get_origin(hint)) is not typing.Literal:
        if origin is None:
            yield None
        for part in typing.get_args(hint):
            yield from arrays_in(part)


def is_plain(hint: Any) -> bool:
    """Whether a hint is made of classes that are no arrays; not where it holds a name still to be looked up."""
    return not list(arrays_in(hint))


def is_known(hint: Any) -> bool:
    """Whether nothing in a hint is still to be looked up, among the arguments neither."""
    return all(array is not None and "{" not in array.dim_str for array in arrays_in(hint))


def is_function_of(kind: Callable[[Any], bool], function: Any) -> bool:
    """Whether it is an ordinary function, all of whose hints are of a kind."""
    return (
        inspect.isfunction(function)
        and not (inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function))
        and all(map(kind, function.__annotations__.values()))
    )


def checked_once(function: Callable, typechecker: Callable[[Any], Any]) -> Callable:
    """`typechecker(function)`; of a local function's next likeness the wrapper that was made for the first one."""
    if "<locals>" not in function.__qualname__:
        return typechecker(function)
    key = (function.__code__, typechecker, *function.__annotations__.items())
    if key not in MADE:
        MADE[key] = typechecker(function)
    made = MADE[key]
    if "__beartype_func" not in (made.__kwdefaults__ or {}):  # nothing to be checked
        return typechecker(function)
    copy = types.FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, made.__closure__)
    copy.__kwdefaults__ = made.__kwdefaults__ | {"__beartype_func": function}
    return functools.update_wrapper(copy, function)


def with_sizes(function: Callable, typechecker: Callable[[Any], Any]) -> Callable:
    """The function with its arguments and its answer checked, and the sizes of arrays kept count of in between."""
    inner = None  # until it is called: most functions never are

    @functools.wraps(function)
    def counting(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal inner
        inner = inner or checked_once(function, typechecker)
        with SIZES:
            return inner(*args, **kwargs)

    return counting


def checked_function(function: Any, typechecker: Callable[[Any], Any]) -> Callable | None:
    """An ordinary function checked; None of anything else."""
    if is_function_of(is_plain, function):
        return checked_once(function, typechecker)
    return with_sizes(function, typechecker) if is_function_of(is_known, function) else None


def checked(subject: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """`jaxtyping.jaxtyped`, with cheaper checks of ordinary functions and classes of data."""
    if subject is None:
        return partial(checked, typechecker=typechecker)
    if function := checked_function(subject, typechecker):
        return function
    of_data = isinstance(subject, type) and dataclasses.is_dataclass(subject)
    if of_data and (function := checked_function(vars(subject).get("__init__"), typechecker)):
        subject.__init__ = function
        return subject
    return FULL(subject, typechecker=typechecker)


jaxtyping.jaxtyped = checked
