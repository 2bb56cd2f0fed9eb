"""A plan from what is asked: instances are packed, delays chosen, shortages named, and latencies simulated.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trtopt.bench.intervals import PERCENTILES
from trtopt.fleet import shortage
from trtopt.fleet.demand import Demand, Fleet
from trtopt.fleet.pack import ENOUGH, Chosen, pack
from trtopt.fleet.plan import Expected, Place, Plan, Service, Strategy
from trtopt.fleet.simulate import Outcome, Setting, Station, Stream, simulate

_REQUESTS = 40_000
"""Requests to simulate, of all models; up to four times that for enough of the rarest."""
_OF_EACH = 500


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
    named = tuple(replace(service, missing=shortage.missing(made, service)) for service in services)
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
        served=demand.rate if served >= ENOUGH * demand.rate else served,
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
    rates = [sum(stream.rate for stream in station.streams) for station in running]
    seconds = _REQUESTS / sum(rates)
    setting = Setting(
        speeds=tuple(gpu.speed for gpu in made.fleet.gpus),
        limited=made.strategy == "priority",
        seconds=min(max(seconds, _OF_EACH / min(rates)), 4 * seconds),
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
