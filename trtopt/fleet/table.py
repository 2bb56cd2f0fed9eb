"""The plan as two tables of text: the GPUs, and the models.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trtopt.fleet.demand import MB
from trtopt.fleet.plan import Plan, Service


def gpus(plan: Plan) -> list[str]:
    """Return the table of the GPUs: memory in MB (10^6 bytes), and the part of the time that each computes."""
    rows = [["GPU", "name", "MB used", "of", "busy", "instances"]]
    for number, gpu in enumerate(plan.fleet.gpus):
        here = [f"{service.on(number)} x {service.model}" for service in plan.services if service.on(number)]
        used = plan.fleet.process + plan.used(number) if here else 0
        rows.append(
            [
                gpu.device,
                gpu.name,
                f"{math.ceil(used / MB):,}",
                f"{gpu.memory // MB:,}",
                f"{100 * plan.load(number):.0f} %",
                ", ".join(here) or "-",
            ]
        )
    return _aligned(rows, left=(0, 1, 5))


def models(plan: Plan) -> list[str]:
    """Return the table of the models: requests per second, and the latency in ms that the simulation expects."""
    rows = [["model", "priority", "requests/s", "served", "batch", "delay", "mean batch", "p50", "p95", "p99", "limit"]]
    return _aligned([*rows, *(_row(plan, service) for service in plan.services)], left=(0,))


def _row(plan: Plan, service: Service) -> list[str]:
    demand = plan.fleet.demand(service.model)
    expected = plan.expected.get(service.model)
    times = [f"{expected.latency[name]:.3g}" for name in ("p50", "p95", "p99")] if expected else ["-"] * 3
    return [
        service.model,
        str(demand.priority),
        f"{demand.rate:g}",
        f"{service.served:.4g}",
        str(service.batch) if service.places else "-",
        f"{service.delay_us / 1000:.3g}",
        f"{expected.batch:.1f}" if expected else "-",
        *times,
        f"{demand.limit:g}" if math.isfinite(demand.limit) else "-",
    ]


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
