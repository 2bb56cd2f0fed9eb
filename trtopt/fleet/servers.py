"""The servers of a plan: one for all whole GPUs, and one for each slice, because a process sees a single slice.

Touches: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trtopt.fleet.plan import Plan, Service
from trtopt.serve import config
from trtopt.serve.folders import Given

_FULL = 100
STOP_SECONDS = 40
"""Time to stop a server. It waits up to 30 s for its last requests; by default, Docker would kill it after 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Triton server.

    Attributes:
        name: its name, as a service of Docker Compose and of Kubernetes.
        repository: the folder of its models.
        gpus: the numbers of its GPUs in the plan, in the order in which it sees them.
        port: the first of its three ports: HTTP, gRPC, metrics.
    """

    name: str
    repository: str
    gpus: tuple[int, ...]
    port: int

    def command(self, plan: Plan) -> list[str]:
        """Return the command line that it runs."""
        words = ["tritonserver", "--model-repository=/models", "--metrics-config=summary_latencies=true"]
        if plan.strategy == "priority":
            words.append("--rate-limit=execution_count")
            words += [f"--rate-limit-resource={config.RESOURCE}:{_FULL}:{i}" for i in range(len(self.gpus))]
        return words

    def models(self, plan: Plan) -> tuple[Service, ...]:
        """Return the models that it serves."""
        return tuple(each for each in plan.services if any(each.on(gpu) for gpu in self.gpus))

    def rate(self, plan: Plan, service: Service) -> float:
        """Return the requests per second of a model that it is to be sent: by its part of the model's instances."""
        speeds = {gpu: service.on(gpu) * plan.fleet.gpus[gpu].speed for gpu in range(len(plan.fleet.gpus))}
        return service.served * sum(speeds[gpu] for gpu in self.gpus) / sum(speeds.values())


def servers(plan: Plan) -> tuple[Server, ...]:
    """Return the servers of a plan. GPUs without a model are left to others."""
    used = [number for number in range(len(plan.fleet.gpus)) if any(each.on(number) for each in plan.services)]
    whole = tuple(number for number in used if not plan.fleet.gpus[number].profile)
    groups = ([whole] if whole else []) + [(number,) for number in used if number not in whole]
    found = []
    for i, gpus in enumerate(groups):
        place = "-".join(plan.fleet.gpus[gpus[0]].device.split(":"))
        name = "triton" if gpus == whole else f"triton-{place}"
        repository = "models" if len(groups) == 1 else f"models/{name}"
        found.append(Server(name=name, repository=repository, gpus=gpus, port=8000 + 10 * i))
    return tuple(found)


def given(plan: Plan, server: Server, service: Service) -> Given:
    """Return batch, delay and instances of a model on a server."""
    demand = plan.fleet.demand(service.model)
    is_limited = plan.strategy == "priority"
    groups = tuple(
        config.Group(
            count=service.on(gpu),
            gpus=(number,),
            resource=math.ceil(demand.share * _FULL) if is_limited else 0,
            priority=demand.priority if is_limited else 0,
        )
        for number, gpu in enumerate(server.gpus)
        if service.on(gpu)
    )
    return Given(batch=service.batch if demand.largest else 0, delay_us=service.delay_us, groups=groups)
