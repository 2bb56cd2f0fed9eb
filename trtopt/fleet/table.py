"""The plan as two tables: the GPUs, and the models.

Touches: nothing.
"""

from __future__ import annotations

import math

from trtopt.fleet.demand import MB
from trtopt.fleet.plan import Plan, Service
from trtopt.types import Table


def gpus(plan: Plan) -> Table:
    """Return the table of the GPUs: memory in MB (10^6 bytes), and the part of the time that each computes."""
    rows = []
    for number, gpu in enumerate(plan.fleet.gpus):
        here = [f"{service.on(number)} x {service.model}" for service in plan.services if service.on(number)]
        used = plan.fleet.process + plan.used(number) if here else 0
        rows.append(
            (
                gpu.device,
                gpu.name,
                f"{math.ceil(used / MB):,}",
                f"{gpu.memory // MB:,}",
                f"{100 * plan.load(number):.0f} %",
                ", ".join(here) or "-",
            )
        )
    return Table(title="GPUs", head=("GPU", "name", "MB used", "of", "busy", "instances"), rows=tuple(rows))


def models(plan: Plan) -> Table:
    """Return the table of the models: requests per second, and the latency in ms that the simulation expects."""
    head = ("model", "priority", "requests/s", "served", "batch", "delay", "mean batch", "p50", "p95", "p99", "limit")
    rows = tuple(_row(plan, service) for service in plan.services)
    return Table(title="models, with delays and expected latencies in ms", head=head, rows=rows)


def _row(plan: Plan, service: Service) -> tuple[str, ...]:
    demand = plan.fleet.demand(service.model)
    expected = plan.expected.get(service.model)
    times = [f"{expected.latency[name]:.3g}" for name in ("p50", "p95", "p99")] if expected else ["-"] * 3
    return (
        service.model,
        str(demand.priority),
        f"{demand.rate:g}",
        f"{service.served:.4g}",
        str(service.batch) if service.places else "-",
        f"{service.delay_us / 1000:.3g}",
        f"{expected.batch:.1f}" if expected else "-",
        *times,
        f"{demand.limit:g}" if math.isfinite(demand.limit) else "-",
    )
