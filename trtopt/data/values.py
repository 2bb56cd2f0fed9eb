"""Values in the table of a recipe: each is checked, and the error names it.

Touches: nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from trtopt.errors import UsageError

_SIDE = re.compile(r"(shorter|longer):(\d{1,5})(?:/(\d{1,5}))?", re.ASCII)
MOST_PIXELS = 1 << 15
"""Largest side of an image that a recipe can ask for."""


def side(text: str) -> tuple[str, int, int] | None:
    """Return the parts of `shorter:256` or `longer:256/224`: the side, its length, and what it is divided by (or 0).

    It is None for other texts, for a length of 0, and for one beyond `MOST_PIXELS`.
    """
    match = _SIDE.fullmatch(text)
    if match is None:
        return None
    which, length, of = match[1], int(match[2]), int(match[3] or 0)
    if not 0 < length <= MOST_PIXELS or (match[3] is not None and not of):
        return None
    return which, length, of


def size(value: Any, key: str, where: str) -> tuple[int, int] | Literal["input"] | None:
    """Return (height, width), or "input" for the size of the model's input; None for "none"."""
    if value == "none":
        return None
    if value == "input":
        return "input"
    if isinstance(value, list) and len(value) == 2 and all(type(x) is int and 0 < x <= MOST_PIXELS for x in value):
        return value[0], value[1]
    sides = ', "shorter:256", "longer:640", "shorter:256/224"' if key == "resize" else ""
    raise UsageError(
        f"{where}: {key} is {value!r}",
        why=f"sizes are from 1 to {MOST_PIXELS}" if isinstance(value, list) and len(value) == 2 else "",
        fix=f'Write it as [height, width]{sides}, "input" or "none"',
    )


def numbers(value: Any, key: str, count: int, where: str) -> tuple[float, ...]:
    """Return a number, or a list of none, one or `count` numbers, as a tuple. `scale` must not be empty."""
    values = value if isinstance(value, list) else [value]
    finite = all(type(x) in (int, float) and math.isfinite(x) for x in values)
    if not finite or len(values) not in {0, 1, count} or (key == "scale" and not values):
        many = f" or a list of {count}" if count > 1 else ""
        raise UsageError(f"{where}: {key} is {value!r}", why=f"it must be one finite number{many}")
    return tuple(float(x) for x in values)


def one_of(table: Mapping[str, Any], key: str, allowed: tuple[str, ...], where: str, default: str = "") -> str:
    """Return the value of a key, which must be one of `allowed`; the first of them is the default."""
    value = table.get(key, default or allowed[0])
    if value not in allowed:
        raise UsageError(f"{where}: {key} is {value!r}", why=f"it must be one of {', '.join(allowed)}")
    return cast(str, value)


def check_keys(table: Mapping[str, Any], allowed: tuple[str, ...], where: str, called: str) -> None:
    """Raise UsageError for a key that is not allowed; `called` is the word for keys in the message."""
    for key in table:
        if key in allowed:
            continue
        if called == "key" and key == "classes":
            # A key after a table header belongs to that table in TOML.
            fix = "Write it above the first table"
        else:
            fix = f"{suggest(key, allowed)}Choose from {', '.join(allowed)}"
        raise UsageError(f"{where}: unknown {called} {key}", fix=fix)


def suggest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Return a suggestion, with a space behind it, or an empty string if nothing is similar."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]}? " if near else ""


def by(size: tuple[int, int]) -> str:
    """Return a size as "224x224"."""
    return f"{size[0]}x{size[1]}"
