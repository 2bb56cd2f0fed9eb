"""A plan from what is asked: instances are packed, delays chosen, shortages named, and latencies simulated.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trtopt.bench.intervals import PERCENTILES
from trtopt.fleet.demand import MB, Demand, Fleet
from trtopt.fleet.options import BUSY, fitting, least_instances
from trtopt.fleet.pack import Chosen, pack
from trtopt.fleet.plan import Expected, Place, Plan, Service, Strategy
from trtopt.fleet.simulate import Outcome, Setting, Station, Stream, simulate

_REQUESTS = 60_000
"""Requests to simulate."""
_MOST_SECONDS = 600.0
_ENOUGH = 0.999
"""Part of a rate that counts as all of it: the packing is exact to a ten-thousandth."""


def plan(fleet: Fleet, strategy: Strategy, previous: Plan | None = None) -> Plan:
    """Return the plan for a fleet.

    Args:
        fleet: the models and the GPUs.
        strategy: how instances are chosen (see `pack`).
        previous: the plan that runs now; None if nothing does.
    """
    chosen = pack(fleet, strategy, previous)
    services = tuple(
        service(fleet, number, [each for each in chosen if each.option.model == number], strategy)
        for number in range(len(fleet.demands))
    )
    made = Plan(strategy=strategy, fleet=fleet, services=services)
    named = tuple(replace(service, missing=_missing(made, service)) for service in services)
    made = replace(made, services=named)
    return replace(made, expected=expected(made))


def service(fleet: Fleet, number: int, chosen: Sequence[Chosen], strategy: Strategy) -> Service:
    """Return how a model is served by the instances that were chosen for it."""
    demand = fleet.demands[number]
    if not chosen:
        return Service(model=demand.name, batch=1, delay_us=0, places=(), served=0.0)
    batch = chosen[0].option.batch
    served = min(sum(each.served for each in chosen), demand.rate)
    return Service(
        model=demand.name,
        batch=batch,
        delay_us=_delay(fleet, demand, chosen, strategy),
        places=tuple(Place(gpu=each.option.gpu, instances=each.option.instances) for each in chosen),
        served=demand.rate if served >= _ENOUGH * demand.rate else served,
    )


def _delay(fleet: Fleet, demand: Demand, chosen: Sequence[Chosen], strategy: Strategy) -> int:
    """Return how long requests may wait for others, in microseconds: what the limit leaves, at most one batch of 1.

    With `priority`, a model that others must not delay does not wait either.
    """
    top = min(each.priority for each in fleet.demands)
    if not math.isfinite(demand.limit) or not demand.largest or (strategy == "priority" and demand.priority == top):
        return 0
    speed = min(fleet.gpus[each.option.gpu].speed for each in chosen)
    left = demand.limit - 2 * demand.slow(chosen[0].option.batch) / speed
    return math.floor(max(min(left, demand.time(1)), 0.0) * 1000)


def _missing(made: Plan, service: Service) -> str:
    """Return why a model is not served at its rate; empty if it is. Memory is in MB, 10^6 bytes."""
    demand = made.fleet.demand(service.model)
    if service.served >= demand.rate:
        return ""
    if service.places:
        return f"serves {service.served:.4g} of {demand.rate:g} requests/s: no time or memory is left for more"
    able = [(number, gpu) for number, gpu in enumerate(made.fleet.gpus) if fitting(demand, gpu)]
    if not able:
        slowest = 2 * demand.slow(demand.batches()[0]) / max(gpu.speed for gpu in made.fleet.gpus)
        return (
            f"cannot keep {demand.limit:g} ms: a request may take {slowest:.3g} ms, twice the p99 of the smallest batch"
        )
    count = demand.instances if made.strategy == "fixed" else least_instances(demand)
    short, number = min((_short(made, demand, number, count), number) for number, _ in able)
    if short > 0:
        where = f"GPU {made.fleet.gpus[number].device}"
        free = max(made.fleet.free(number) - made.used(number), 0) // MB
        return f"does not fit: {short // MB:,} MB more are needed on {where}, which has {free:,} MB free"
    needed = demand.memory.needed(demand.batches()[0], count)
    if made.strategy == "fixed" and demand.budget and needed > demand.budget:
        over = math.ceil((needed - demand.budget) / MB)
        return f"does not fit: {over:,} MB more are needed than the {demand.budget // MB:,} MB that it is given"
    return f"is not served: the GPUs compute {100 * BUSY:.0f} % of the time for more valuable requests"


def _short(made: Plan, demand: Demand, number: int, count: int) -> int:
    """Return the bytes that a GPU lacks for a model with its smallest batch; negative if it fits."""
    batch = fitting(demand, made.fleet.gpus[number])[0]
    return made.used(number) + demand.memory.needed(batch, count) - made.fleet.free(number)


def stations(made: Plan) -> tuple[Station, ...]:
    """Return the models that are served, for a simulation of what they serve."""
    found = []
    for service in made.services:
        demand = made.fleet.demand(service.model)
        if not service.places or not service.served:
            continue
        parts = {1: demand.urgent, 2: 1 - demand.urgent} if demand.urgent else {1: 1.0}
        found.append(
            Station(
                streams=tuple(Stream(rate=service.served * part, level=level) for level, part in parts.items()),
                duration=demand.quantile,
                batch=service.batch,
                delay=service.delay_us / 1000,
                instances=tuple(place.gpu for place in service.places for _ in range(place.instances)),
                share=demand.share,
                priority=demand.priority,
            )
        )
    return tuple(found)


def expected(made: Plan, seed: int = 0) -> dict[str, Expected]:
    """Return the latencies that a simulation expects, by model; `p99 urgent` is that of urgent requests alone."""
    running = stations(made)
    if not running:
        return {}
    rate = sum(stream.rate for station in running for stream in station.streams)
    setting = Setting(
        speeds=tuple(gpu.speed for gpu in made.fleet.gpus),
        limited=made.strategy == "priority",
        seconds=min(_REQUESTS / rate, _MOST_SECONDS),
        seed=seed,
    )
    names = [service.model for service in made.services if service.places and service.served]
    return {
        name: Expected(latency=_latency(outcome, urgent=bool(made.fleet.demand(name).urgent)), batch=outcome.batch)
        for name, outcome in zip(names, simulate(running, setting), strict=True)
    }


def _latency(outcome: Outcome, *, urgent: bool) -> dict[str, float]:
    if not len(outcome.latency):
        return dict.fromkeys(("mean", *(f"p{percent}" for percent in PERCENTILES)), math.nan)
    found = {"mean": float(outcome.latency.mean())}
    found |= {f"p{percent}": float(np.percentile(outcome.latency, percent)) for percent in PERCENTILES}
    if urgent and len(first := outcome.latency[outcome.level == 1]):
        found["p99 urgent"] = float(np.percentile(first, 99))
    return found


def shortages(made: Plan) -> tuple[str, ...]:
    """Return a line for each model that is not served as asked: not at its rate, or not within its limit."""
    lines = []
    for service in made.services:
        demand = made.fleet.demand(service.model)
        if service.missing:
            lines.append(f"{service.model} {service.missing}")
        elif (p99 := made.expected[service.model].latency["p99"]) > demand.limit:
            lines.append(
                f"{service.model} is expected to answer within {p99:.3g} ms at p99; its limit is {demand.limit:g} ms"
            )
    return tuple(lines)
