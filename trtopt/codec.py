"""Frozen dataclasses to JSON and back: how results are kept in the run store and written to `report.json`.

JSON has no infinities and no NaN: they become the strings "inf", "-inf" and "nan". A path becomes its text.

Touches: nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encode(value: Any) -> Any:
    """Return `value` as what `json.dumps(..., allow_nan=False)` takes.

    Raises:
        TypeError: it holds something that is no dataclass, mapping, tuple, list, path or plain value.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot encode {type(value).__name__}")


def decode(cls: type[T], data: Any) -> T:
    """Return the `cls` that `encode` made `data` from.

    Raises:
        ValueError: `data` has another shape.
    """
    return typing.cast(T, _decode(cls, data, cls.__name__))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, data, where)
    if origin in (Union, types.UnionType):
        return _decode_union(args, data, where)
    if origin is Literal and data in args:
        return data
    if origin is tuple and isinstance(data, list):
        kinds = [args[0]] * len(data) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(data):
            return tuple(_decode(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, data, strict=True)))
    if origin in (Mapping, dict) and isinstance(data, dict):
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is Path and isinstance(data, str):
        return Path(data)
    if kind is float and isinstance(data, int | float | str) and not isinstance(data, bool):
        return _decode_float(data, where)
    if kind in (int, str, bool, type(None)) and type(data) is kind:
        return data
    raise ValueError(f"{where} is {reprlib.repr(data)}, not {_name(kind)}")


def _decode_float(data: int | float | str, where: str) -> float:
    if isinstance(data, str):
        if data not in _SPECIAL:
            raise ValueError(f"{where} is {reprlib.repr(data)}, not a number")
        return _SPECIAL[data]
    try:
        return float(data)
    except OverflowError:
        raise ValueError(f"{where} is a whole number too large for a float") from None


def _decode_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {reprlib.repr(data)}, not an object")
    kinds, required = _fields(cls)
    if unknown := data.keys() - kinds.keys():
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))}")
    if missing := required - data.keys():
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    return cls(**{name: _decode(kinds[name], item, f"{where}.{name}") for name, item in data.items()})


@functools.cache  # resolving the annotations costs more than all the rest, and a graph has thousands of decisions
def _fields(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The type of every field, and the fields that have no default."""
    hints = typing.get_type_hints(cls)
    nothing = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    required = (f.name for f in fields if f.default is nothing and f.default_factory is nothing)
    return {field.name: hints[field.name] for field in fields}, frozenset(required)


def _decode_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:  # optional: what is wrong inside it is said, not only that something is
        return _decode(kinds[0], data, where)
    for kind in kinds:
        try:
            return _decode(kind, data, where)
        except ValueError:
            continue
    raise ValueError(f"{where} is {reprlib.repr(data)}, not {' or '.join(map(_name, kinds))}")


def _name(kind: Any) -> str:
    """`int` rather than `<class 'int'>`."""
    return kind.__name__ if isinstance(kind, type) else str(kind)
