"""Models that a plan does not serve as asked, and why: by how many MB (10^6 bytes) one does not fit, or what it lacks.

Touches: nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace

from trtopt.fleet.demand import MB, Demand
from trtopt.fleet.options import BUSY, fitting, least_instances, options
from trtopt.fleet.pack import ENOUGH, pack
from trtopt.fleet.plan import Plan, Service
from trtopt.types import GateResult

_RESOLUTION = 100
"""A shortage is known to 1/100 of it, and to 1 MB below 100 MB."""
_MOST_OPTIONS = 100
"""With more, packing takes seconds, and is not repeated: the shortage is that beside the others as they are."""


def missing(made: Plan, service: Service) -> str:
    """Return why a model is not served at its rate; empty if it is."""
    demand = made.fleet.demand(service.model)
    if service.served >= demand.rate:
        return ""
    if service.places:
        return f"serves {service.served:.4g} of {demand.rate:g} requests/s: no time or memory is left for more"
    able = [number for number, gpu in enumerate(made.fleet.gpus) if fitting(demand, gpu)]
    if not able:
        fastest = 2 * demand.slow(demand.batches()[0]) / max(gpu.speed for gpu in made.fleet.gpus)
        return (
            f"cannot keep {demand.limit:g} ms: a request may take {fastest:.3g} ms, twice the p99 of its smallest batch"
        )
    count = demand.instances if made.strategy == "fixed" else least_instances(demand)
    needed = demand.memory.needed(demand.batches()[0], count)
    if made.strategy == "fixed" and 0 < demand.budget < needed:
        over = math.ceil((needed - demand.budget) / MB)
        return f"does not fit: {over:,} MB more are needed than the {demand.budget // MB:,} MB that it is given"
    most, number = min((made.used(number) + needed - made.fleet.free(number), number) for number in able)
    if most > 0 and (least := _least(made, demand, number, most // MB)):
        return f"does not fit: {least:,} MB more are needed on GPU {made.fleet.gpus[number].device}"
    return f"is not served: the GPUs compute {100 * BUSY:.0f} % of the time for more valuable requests"


def _least(made: Plan, demand: Demand, number: int, most: int) -> int:
    """Return how many MB a GPU lacks for a model, so that no other is served less; 0 if it is not a matter of memory.

    Others may get smaller batches, so that it can be less than the model needs beside them as they are.

    Args:
        made: a plan without the model.
        demand: the model.
        number: the GPU.
        most: enough MB for the model beside the others as they are.
    """
    if not _fits(made, demand, number, most):
        return 0
    low = most if len(options(made.fleet, made.strategy)) > _MOST_OPTIONS else 0
    while most - low > max(1, most // _RESOLUTION):
        middle = (low + most) // 2
        low, most = (low, middle) if _fits(made, demand, number, middle) else (middle, most)
    return most


def _fits(made: Plan, demand: Demand, number: int, more: int) -> bool:
    """Return whether a model is served with more MB on a GPU, and no other less than in a plan."""
    gpus = list(made.fleet.gpus)
    gpus[number] = replace(gpus[number], memory=gpus[number].memory + more * MB)
    fleet = replace(made.fleet, gpus=tuple(gpus))
    served = dict.fromkeys((each.name for each in fleet.demands), 0.0)
    for chosen in pack(fleet, made.strategy):
        served[fleet.demands[chosen.option.model].name] += chosen.served
    return served[demand.name] > 0 and all(
        served[service.model] >= ENOUGH * service.served for service in made.services
    )


def gates(made: Plan) -> tuple[GateResult, ...]:
    """Return the result of the gates of each model: that it serves its rate, and within its limit if it has one."""
    found = []
    for service in made.services:
        demand = made.fleet.demand(service.model)
        enough = f"{service.served:g} requests/s, must be at least {demand.rate:g} requests/s"
        found.append(_gate(service, "throughput", (service.served, demand.rate), service.missing, enough))
        if service.model not in made.expected or not math.isfinite(demand.limit):
            continue
        p99 = made.expected[service.model].latency["p99"]
        late = f"is expected to answer within {p99:.3g} ms at p99; its limit is {demand.limit:g} ms"
        within = f"{p99:.3g} ms, must be at most {demand.limit:g} ms"
        found.append(_gate(service, "latency_p99", (p99, demand.limit), late if p99 > demand.limit else "", within))
    return tuple(found)


def _gate(service: Service, metric: str, value: tuple[float, float], failed: str, passed: str) -> GateResult:
    return GateResult(
        output=service.model,
        metric=metric,
        value=value[0],
        limit=value[1],
        verdict="fail" if failed else "pass",
        reason=failed or passed,
    )


def shortages(made: Plan) -> tuple[str, ...]:
    """Return a line for each gate that fails."""
    return tuple(f"{gate.output} {gate.reason}" for gate in gates(made) if gate.verdict == "fail")
