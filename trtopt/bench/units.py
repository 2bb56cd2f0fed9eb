"""Times and sizes as people write them: `5ms`, `8GiB`.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from trtopt.errors import UsageError

MILLISECONDS = {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}
BYTES = {
    "B": 1.0,
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)},
}

_WRITTEN = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>\S*)")


def quantity(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    """The number of a text with one of the units, each worth so much; `what` it is of, as a message names it.

    Raises:
        UsageError: it is no positive number, or its unit is none of these (an empty one allows none to be written).
    """
    written, fix = _WRITTEN.fullmatch(text.strip()), f"Write {example}"
    if written is None:
        raise UsageError(f"{what} has no limit", why=f"{text.strip()!r} is no positive number", fix=fix)
    if written["unit"] not in units:
        known = ", ".join(unit for unit in units if unit)
        why = f"{written['unit']!r} is none of {known}" if written["unit"] else f"it may be any of {known}"
        raise UsageError(f"{what} has no unit", why=why, fix=fix)
    value = float(written["number"]) * units[written["unit"]]
    if not 0 < value < math.inf:
        raise UsageError(f"{what} cannot be meant", why="it must be above 0", fix=fix)
    return value
