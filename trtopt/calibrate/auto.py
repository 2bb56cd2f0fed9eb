"""`--method auto`: the method whose quantized network has the highest output SQNR.

All methods share the same histograms, so the calibration data is read once. Each candidate network then runs on a few
samples. Choosing a method per tensor, by the error at the output of the layer that consumes it, was tried on six
networks and was worse than plain `mse` on five, because the errors of layers do not add up independently.

Touches: nothing; it calls the function that measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from trtopt.types import CalibrationTable

FALLBACK = "mse"
"""Method used for trial tables, and when no candidate can be evaluated. On the networks tried it was never far from
the best method."""
TINY = 1e-30
"""Lower bound of a relative error, so that an error of zero has a finite SQNR (300 dB)."""


def choose(tables: Mapping[str, CalibrationTable], error: Callable[[CalibrationTable], float]) -> CalibrationTable:
    """Return the table with the smallest `error`, and record the output SQNR of every candidate in it.

    Args:
        tables: the candidate tables by method. `FALLBACK` must be among them; it wins a tie.
        error: returns the error energy over the signal energy at the network's outputs for a table, or infinity if the
            candidate cannot be evaluated.

    Returns:
        The chosen table, with the SQNR in dB of every candidate that could be evaluated in `tried`. This is the table
        of `FALLBACK` if none could.
    """
    errors = {name: error(table) for name, table in tables.items()}
    evaluated = {name: value for name, value in errors.items() if math.isfinite(value)}
    # The key is a pair, so that FALLBACK (False sorts first) wins a tie.
    best = min(evaluated, key=lambda name: (evaluated[name], name != FALLBACK), default=FALLBACK)
    sqnr = {name: -10 * math.log10(max(value, TINY)) for name, value in evaluated.items()}
    return replace(tables[best], tried=sqnr)
