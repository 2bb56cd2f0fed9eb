"""The metrics that `--gate` takes, as a table made from the catalog, the kinds of outputs and the default gates.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.compare.catalog import METRICS
from trtopt.compare.defaults import DEFAULTS
from trtopt.compare.gates import example
from trtopt.compare.kinds import kind, kinds

HEAD = ("metric", "kinds of output", "limit", "default", "example", "meaning")
_LIMITS = {"drop": "largest drop", "at least": "minimum", "at most": "maximum"}


def rows() -> list[tuple[str, ...]]:
    """Return a row under `HEAD` for each metric that can be gated, in reading order."""
    of_kind = {name: kind(name).METRICS for name in kinds()}
    found: list[tuple[str, ...]] = []
    for name, metric in METRICS.items():
        if name == "nonfinite":  # always judged, without a limit
            continue
        measured_by = [each for each, metrics in of_kind.items() if name in metrics]
        limits = {each: limit for each, gates in DEFAULTS.items() for gated, limit in gates if gated == name}
        unit = metric.unit and f" {metric.unit}"
        shown = sorted({f"{limit:g}{unit}" for limit in limits.values()})
        found.append(
            (
                name,
                ", ".join(measured_by) if len(measured_by) < len(of_kind) and measured_by else "all",
                _LIMITS[metric.sense] + (f", {metric.unit}" if metric.unit else ""),
                " or ".join(shown) + (f" ({', '.join(limits)})" if limits and set(limits) != set(measured_by) else ""),
                example(name),
                metric.text,
            )
        )
    return found
