"""Durations and sizes as users write them: `5ms`, `8GiB`.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from trtopt.errors import UsageError

# One unit of each name in milliseconds, and in bytes.
MILLISECONDS = {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
BYTES = {
    "B": 1.0,
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)},
}

_QUANTITY = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>\S*)")


def quantity(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    """Parse a positive number with a unit, such as `5ms`, and return it in the base unit.

    Args:
        text: the text to parse.
        units: size of each unit in the base unit; the key "" allows a number without a unit.
        what: the flag that contains the text, for error messages.
        example: a valid flag, for error messages.

    Raises:
        UsageError: the number is missing, zero or infinite, or the unit is missing or unknown.
    """
    match, fix = _QUANTITY.fullmatch(text.strip()), f"Write {example}"
    if match is None:
        raise UsageError(f"invalid limit in {what}", why=f"{text.strip()!r} is not a positive number", fix=fix)
    unit = match["unit"]
    if unit not in units:
        known = ", ".join(unit for unit in units if unit)
        if not unit:
            raise UsageError(f"missing unit in {what}", why=f"it must be one of {known}", fix=fix)
        raise UsageError(f"unknown unit in {what}", why=f"{unit!r} is not one of {known}", fix=fix)
    value = float(match["number"]) * units[unit]
    if not 0 < value < math.inf:
        raise UsageError(f"invalid limit in {what}", why="it must be above 0 and finite", fix=fix)
    return value
