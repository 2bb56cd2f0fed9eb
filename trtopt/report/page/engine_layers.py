"""The table of an engine's layers in report.html.

Touches: nothing.
"""

from __future__ import annotations

import math

from trtopt.report.page.benchmark import number
from trtopt.types import Engine, LayerTimes, Table


def table(engine: Engine, times: LayerTimes | None) -> Table:
    """Return one row per layer, in the order of execution: those that did not fuse are marked with what they are.

    If the layers were timed, each row has the time, and its share of the time of all layers.
    """
    rows = []
    for layer in engine.layers:
        nodes = ", ".join(layer.nodes)
        took = () if times is None else _time(times.ms.get(layer.name, math.nan), sum(times.ms.values()))
        rows.append((layer.name, layer.type, layer.precision, *took, layer.apart, nodes, layer.tactic))
    head = () if times is None else ("ms", "share")
    at = "" if times is None else f", timed one by one at batch {times.batch}"
    return Table(
        title=f"Layers of the engine, in the order of execution{at}",
        head=("layer", "type", "precision", *head, "not fused", "nodes", "kernel"),
        rows=tuple(rows),
    )


def _time(ms: float, total: float) -> tuple[str, str]:
    return (number(ms), f"{100 * ms / total:.1f} %") if math.isfinite(ms) and total else ("", "")
