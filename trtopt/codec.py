"""Conversion of frozen dataclasses to JSON and back, for the run store and `report.json`.

JSON has neither infinities nor NaN: they become the strings "inf", "-inf" and "nan". A path becomes its text.

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
    """Return `value` in a form that `json.dumps(..., allow_nan=False)` accepts.

    Raises:
        TypeError: `value` contains an object that is not a dataclass, mapping, tuple, list, path or plain value.
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
    """Return the instance of `cls` that `encode` turned into `data`.

    Raises:
        ValueError: `data` does not match the fields of `cls`; the message names the field.
    """
    return typing.cast(T, _decode(cls, data, cls.__name__))


def _decode(annotation: Any, data: Any, where: str) -> Any:
    """Decode `data` as a value of `annotation`; `where` is its path for error messages, such as `Report.stages[0]`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _decode_dataclass(annotation, data, where)
    if origin in (Union, types.UnionType):
        return _decode_union(args, data, where)
    if origin is Literal and data in args:
        return data
    if origin is tuple and isinstance(data, list):
        # `tuple[int, ...]` has items of one type, in any number; `tuple[int, str]` has one type for each item.
        item_types = [args[0]] * len(data) if args[-1] is Ellipsis else list(args)
        if len(item_types) == len(data):
            items = enumerate(zip(item_types, data, strict=True))
            return tuple(_decode(item_type, item, f"{where}[{i}]") for i, (item_type, item) in items)
    if origin in (Mapping, dict) and isinstance(data, dict):
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if annotation is Path and isinstance(data, str):
        return Path(data)
    # bool is a subclass of int, so it must be excluded by hand here and compared by exact type below.
    if annotation is float and isinstance(data, int | float | str) and not isinstance(data, bool):
        return _decode_float(data, where)
    if annotation in (int, str, bool, type(None)) and type(data) is annotation:
        return data
    raise ValueError(f"{where} is {reprlib.repr(data)}, not {_name(annotation)}")


def _decode_float(data: int | float | str, where: str) -> float:
    if isinstance(data, str):
        if data not in _SPECIAL:
            raise ValueError(f"{where} is {reprlib.repr(data)}, not a number")
        return _SPECIAL[data]
    try:
        return float(data)
    except OverflowError:
        raise ValueError(f"{where} is an integer too large for a float") from None


def _decode_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {reprlib.repr(data)}, not an object")
    annotations, required = _fields(cls)
    if unknown := data.keys() - annotations.keys():
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))}")
    if missing := required - data.keys():
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    return cls(**{name: _decode(annotations[name], item, f"{where}.{name}") for name, item in data.items()})


# Cached: a graph has thousands of decisions, and resolving the annotations costs more than the rest of decoding.
@functools.cache
def _fields(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the annotation of every field, and the names of the fields without a default."""
    hints = typing.get_type_hints(cls)
    nothing = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    required = (f.name for f in fields if f.default is nothing and f.default_factory is nothing)
    return {field.name: hints[field.name] for field in fields}, frozenset(required)


def _decode_union(annotations: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in annotations:
        return None
    members = tuple(annotation for annotation in annotations if annotation is not type(None))
    # `T | None` is decoded as T, so that the error names the field inside T that is wrong.
    if len(members) == 1:
        return _decode(members[0], data, where)
    for annotation in members:
        try:
            return _decode(annotation, data, where)
        except ValueError:
            continue
    raise ValueError(f"{where} is {reprlib.repr(data)}, not {' or '.join(map(_name, members))}")


def _name(annotation: Any) -> str:
    """Return `int` rather than `<class 'int'>`."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
