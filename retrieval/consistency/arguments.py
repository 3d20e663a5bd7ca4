"""The arguments of public functions, checked against their annotations before anything is computed.

A wrong type would end in an error of NumPy, or in a wrong number without any error. Values (a share outside (0, 1), an
empty list) are checked by the functions.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InvalidEmbeddings, InvalidInput

_P = ParamSpec("_P")
_R = TypeVar("_R")


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the function with its arguments checked against its annotations, and sequences made arrays or lists.

    The types are those that the public functions use: numbers, texts, sequences, arrays and classes of this package. A
    list of numbers becomes an array, an array of texts a list, and an array of 0 and 1 an array of bool where that is
    wanted. A bool is no number, a text no sequence of texts, a seed no generator.

    Raises:
        InvalidInput, or InvalidEmbeddings for an array: at the call, an argument of another type, with its name.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def with_checks(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidInput(f"{function.__name__}: {error}") from error
        wanted = _annotations(function)
        for name, value in bound.arguments.items():
            if name in wanted:
                bound.arguments[name] = _as(wanted[name], value, name)
        return function(*bound.args, **bound.kwargs)

    return with_checks


def check_fields(value: object) -> None:
    """Check the fields of a frozen dataclass against their annotations, as `checked` does; call it in `__post_init__`.

    Raises:
        InvalidInput, InvalidEmbeddings: see `checked`.
    """
    wanted = get_type_hints(type(value))
    for field in fields(value):  # type: ignore[arg-type]  # a dataclass by contract
        object.__setattr__(value, field.name, _as(wanted[field.name], getattr(value, field.name), field.name))


@functools.cache
def _annotations(owner: Any) -> Mapping[str, Any]:
    return get_type_hints(owner)


def _as(wanted: Any, value: Any, name: str) -> Any:
    """Return the value as the annotation wants it."""
    options = get_args(wanted) if get_origin(wanted) in {Union, types.UnionType} else (wanted,)
    refusals = []
    for option in options:
        try:
            return _as_one(option, value, name)
        except (InvalidInput, InvalidEmbeddings) as error:
            refusals.append(error.with_traceback(None))  # a frame in a cycle would keep the arrays alive
    if len(refusals) == 1:
        raise refusals[0]
    raise InvalidInput(f"{name}: expected {' or '.join(_words(option) for option in options)}, found {_found(value)}")


def _as_one(wanted: Any, value: Any, name: str) -> Any:
    origin = get_origin(wanted)
    if origin is np.ndarray:
        return _as_array(get_args(get_args(wanted)[1])[0], value, name)
    if origin is Sequence:
        return _as_sequence(get_args(wanted)[0], value, name)
    if not _fits(wanted, value):
        raise InvalidInput(f"{name}: expected {_words(wanted)}, found {_found(value)}")
    parts = get_args(wanted)
    if origin is tuple and set(parts) <= {int, float}:
        for place, part in enumerate(parts):
            _as_one(part, value[place], f"{name}[{place}]")
    elif origin is Mapping:
        for key, member in value.items():
            _as(parts[1], member, f"{name}[{key!r}]")
    return value


def _fits(wanted: Any, value: Any) -> bool:
    """Return whether the value is of a type, its members left aside."""
    origin = get_origin(wanted)
    if wanted in {float, int}:
        return isinstance(value, Real if wanted is float else Integral) and not isinstance(value, bool | np.bool_)
    if wanted is bool:
        return isinstance(value, bool | np.bool_)
    if origin is Literal:
        return isinstance(value, str)  # the function lists the words that it knows
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(get_args(wanted))
    if origin is Callable:
        return callable(value)
    kind = origin or wanted
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _as_sequence(of: Any, value: Any, name: str) -> Any:
    """Return a list of texts, or the sequence itself if its members are of another kind."""
    if isinstance(value, str | bytes) or not (isinstance(value, Sequence) or hasattr(value, "__array__")):
        raise InvalidInput(f"{name}: expected a sequence, found {_found(value)}")
    members = value if isinstance(value, Sequence) else np.asarray(value)
    if not isinstance(members, Sequence):
        if members.ndim != 1:
            raise InvalidEmbeddings(f"{name}: expected one value for each entry, found an array {members.shape}")
        members = members.tolist()
    if get_origin(of) is not None and get_origin(of) is not tuple:
        for place, member in enumerate(members):
            _as_one(of, member, f"{name}[{place}]")
    if of in {float, int, str} or (isinstance(of, type) and get_origin(of) is None):
        for place, member in enumerate(members):
            if of is str and isinstance(member, str):  # the usual case, fast
                continue
            if of is str:
                raise InvalidEmbeddings(
                    f"{name}: expected strings, found {_found(member)} at place {place}; convert class numbers to "
                    "strings first"
                )
            _as_one(of, member, f"{name}[{place}]")
    return members


def _as_array(of: Any, value: Any, name: str) -> NDArray[Any]:
    """Return the value as an array: as it is if it is one, else converted to the wanted type."""
    array = value if isinstance(value, np.ndarray) else _made(of, value, name)
    if array.ndim == 0:
        raise InvalidEmbeddings(f"{name}: expected an array, found a single value")
    if of is np.bool_ and array.dtype != np.bool_:
        if array.dtype.kind not in "iuf" or not np.isin(array, (0, 1)).all():
            raise InvalidInput(f"{name}: expected True or False for each entry, found {array.dtype} {_found(value)}")
        return array.astype(np.bool_)  # `~` of 0 and 1 would be -1 and -2
    if array.dtype.kind not in ("b" if of is np.bool_ else "iuf"):
        raise InvalidEmbeddings(f"{name}: expected an array of numbers, found {array.dtype} {array.shape}")
    return array


def _made(of: Any, value: Any, name: str) -> NDArray[Any]:
    if isinstance(value, str | bytes) or not (isinstance(value, Sequence) or hasattr(value, "__array__")):
        raise InvalidEmbeddings(f"{name}: expected an array, found {_found(value)}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidEmbeddings(f"{name}: expected an array, found rows of different lengths") from error
    if array.size == 0 or (of is not np.bool_ and array.dtype.kind in "iuf"):
        return array.astype(of)
    return array


def _words(wanted: Any) -> str:
    """Return a type in words."""
    if wanted is np.random.Generator:
        return "a numpy.random.Generator, such as np.random.default_rng(0)"
    names = {float: "a number", int: "a whole number", bool: "True or False", str: "a text", type(None): "None"}
    if wanted in names:
        return names[wanted]
    origin = get_origin(wanted)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(wanted)))
    if origin is np.ndarray:
        return "an array"
    name = getattr(origin or wanted, "__name__", str(wanted))
    # The class of labelled vectors is above this module in the order of imports.
    known = {
        "LabelledVectors": "labelled vectors",
        "Sequence": "a sequence",
        "tuple": f"a tuple of {len(get_args(wanted))}",
    }
    return known.get(name, f"a value of class {name}")


def _found(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
