"""`--method auto`: of the tables of the other methods, the one whose network is nearest to FP32 at its outputs.

The histograms are the same for all methods, so that the data is read once; then each candidate's network runs on a few
samples. Choosing tensor by tensor, by the error at the output of the layer that reads it, was tried on six networks and
was worse than plain `mse` on five: errors of layers do not add up independently.

Touches: nothing; it calls the function that measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from trtopt.types import CalibrationTable

FALLBACK = "mse"
"""What networks are compared by before a method is chosen, and where none can be: never far from the best."""
TINY = 1e-30
"""The least error that is told from none."""


def choose(tables: Mapping[str, CalibrationTable], error: Callable[[CalibrationTable], float]) -> CalibrationTable:
    """Return the table with the least `error`, with what SQNR, in dB, each method's network has.

    `tables` are by method, `FALLBACK` among them, which wins against its equals. `error(table)` is noise energy over
    signal energy at the network's outputs, infinite where it cannot be said.
    """
    errors = {name: error(table) for name, table in tables.items()}
    tried = {name: -10 * math.log10(max(value, TINY)) for name, value in errors.items() if math.isfinite(value)}
    best = min(tried, key=lambda name: (errors[name], name != FALLBACK), default=FALLBACK)
    return replace(tables[best], tried=tried)
