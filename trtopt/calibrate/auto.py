"""`--method auto`: of the tables of the other methods, the one whose network is nearest to FP32 at its outputs.

The histograms are the same for all methods, so that the data is read once; then each candidate's network runs on a few
samples. Choosing tensor by tensor, by the error at the output of the layer that reads it, was tried on six networks and
was worse than plain `mse` on five: errors of layers do not add up independently.

Touches: nothing; it calls the function that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from trtopt.types import CalibrationTable


def choose(
    tables: Mapping[str, CalibrationTable], error: Callable[[CalibrationTable], float]
) -> tuple[CalibrationTable, str]:
    """Return the table with the least `error`, and a line that says what each method's error was, in dB of SQNR.

    `error(table)` is noise energy over signal energy at the network's outputs; the first of equals wins.
    """
    import math

    errors = {name: error(table) for name, table in tables.items()}
    best = min(errors, key=errors.__getitem__)
    said = ", ".join(f"{name} {-10 * math.log10(max(value, 1e-30)):.1f} dB" for name, value in errors.items())
    return replace(tables[best], method="auto", chosen=dict.fromkeys(tables[best].scales, best)), f"{best} ({said})"
