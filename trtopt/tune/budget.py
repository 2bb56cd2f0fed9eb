"""The grammar of `--budget`: how long a search may take.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from trtopt.errors import UsageError

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_FIX = "Write --budget 30min, 2h or 40candidates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most seconds of evaluation, and the most candidates, of all runs that one journal records."""

    seconds: float = math.inf
    candidates: float = math.inf

    def spent(self, seconds: float, candidates: int) -> str:
        """Return what is spent, or an empty string."""
        if candidates >= self.candidates:
            return f"the budget of {self.candidates:.0f} candidates is spent"
        return f"the budget of {self.seconds:.0f} s is spent" if seconds >= self.seconds else ""


def parse_budget(text: str) -> Budget:
    """Parse `30min`, `2h`, `90s` or `40candidates`; an empty text sets no limit.

    Raises:
        UsageError: the text is anything else, or the number is not above 0.
    """
    if not text:
        return Budget()
    match = re.fullmatch(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>\w+)", text.strip())
    if match is None or float(match["number"]) <= 0:
        raise UsageError(f"--budget {text!r} is not a positive number with a unit", fix=_FIX)
    number, unit = float(match["number"]), match["unit"]
    if unit in ("candidate", "candidates") and number == int(number):
        return Budget(candidates=number)
    if unit not in _SECONDS:
        raise UsageError(f"--budget {text!r} has an unknown unit", fix=_FIX)
    return Budget(seconds=number * _SECONDS[unit])
