"""The ways to serve a model on a GPU: each with its memory, its capacity, and what it takes of the GPU.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trtopt.fleet.demand import Demand, Fleet, Gpu
from trtopt.fleet.plan import Strategy

BUSY = 0.8
"""The most of its time that a GPU, or an instance, is planned to compute: queues grow without bound towards 1."""
_MOST_INSTANCES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Instances of a model on a GPU with a batch.

    Attributes:
        model: the number of the model in the fleet.
        gpu: the number of the GPU.
        batch: the largest batch.
        instances: how many.
        memory: bytes that they need together.
        capacity: requests per second that they can serve.
        load: the part of the GPU that one request per second takes.
    """

    model: int
    gpu: int
    batch: int
    instances: int
    memory: int
    capacity: float
    load: float


def options(fleet: Fleet, strategy: Strategy) -> tuple[Option, ...]:
    """Return every way to serve a model on a GPU that has the memory for it alone, and keeps the model's limit."""
    return tuple(
        option
        for number, demand in enumerate(fleet.demands)
        for place, gpu in enumerate(fleet.gpus)
        for option in _on(number, demand, place, gpu, strategy)
        if option.memory <= fleet.free(place)
    )


def _on(number: int, demand: Demand, place: int, gpu: Gpu, strategy: Strategy) -> Iterator[Option]:
    for batch in fitting(demand, gpu):
        per_request = demand.time(batch) / batch / gpu.speed / 1000
        for count in counts(demand, strategy, demand.rate * per_request):
            memory = demand.memory.needed(batch, count)
            if strategy == "fixed" and demand.budget and memory > demand.budget:
                continue
            yield Option(
                model=number,
                gpu=place,
                batch=batch,
                instances=count,
                memory=memory,
                capacity=BUSY * count / per_request,
                load=per_request * demand.share,
            )


def counts(demand: Demand, strategy: Strategy, busy: float) -> range:
    """Return the numbers of instances to choose from.

    Args:
        demand: the model.
        strategy: `fixed` has the number that is stated.
        busy: the number of instances that its whole rate keeps busy.
    """
    if strategy == "fixed":
        return range(demand.instances, demand.instances + 1)
    least = least_instances(demand)
    beside = max(math.floor(1 / demand.share), 1)  # more than run beside each other serve no more
    most = min(math.ceil(busy / BUSY), beside, _MOST_INSTANCES)
    return range(least, max(most, least) + 1)


def least_instances(demand: Demand) -> int:
    """Return the least number of instances: two with priorities, as one idles up to 0.5 s between their batches."""
    return 2 if demand.urgent else 1


def fitting(demand: Demand, gpu: Gpu) -> tuple[int, ...]:
    """Return the batches that keep the limit: a request may wait for one batch, and then for its own."""
    return tuple(batch for batch in demand.batches() if 2 * demand.slow(batch) / gpu.speed <= demand.limit)
