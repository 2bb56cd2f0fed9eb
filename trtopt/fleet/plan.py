"""The plan of a fleet: which model runs where, in what batches, and the file that a rerun reads.

Touches: reads a plan file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trtopt.codec import decode, encode
from trtopt.errors import UsageError
from trtopt.fleet.demand import Fleet

Strategy = Literal["fixed", "dynamic", "priority"]
FILE = "plan.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Instances of a model on a GPU: the number of the GPU in the plan, and how many there are."""

    gpu: int
    instances: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model as it will be served.

    Attributes:
        model: its name.
        batch: its largest batch; 1 for a model without a batch axis.
        delay_us: how long a request waits for others to join its batch, in microseconds.
        places: where its instances are; empty if it is not served.
        served: requests per second that it can serve of those that it is offered.
        missing: why that is less than its rate; empty if it is not.
    """

    model: str
    batch: int
    delay_us: int
    places: tuple[Place, ...]
    served: float
    missing: str = ""

    def on(self, gpu: int) -> int:
        """Return the number of its instances on a GPU."""
        return sum(place.instances for place in self.places if place.gpu == gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Latency that the simulation expects: mean and percentiles in milliseconds by name, and the mean batch."""

    latency: Mapping[str, float]
    batch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan: what was asked, what is served where, and what to expect of each model by name."""

    schema_version: int = SCHEMA
    strategy: Strategy
    fleet: Fleet
    services: tuple[Service, ...]
    expected: Mapping[str, Expected] = field(default_factory=dict)

    def service(self, name: str) -> Service:
        """Return how a model is served."""
        return next(each for each in self.services if each.model == name)

    def used(self, gpu: int) -> int:
        """Return the bytes that models take on a GPU, without the server process."""
        return sum(
            self.fleet.demand(service.model).memory.needed(service.batch, count)
            for service in self.services
            if (count := service.on(gpu))
        )

    def load(self, gpu: int) -> float:
        """Return the part of the time that a GPU computes, if each GPU serves by its capacity and batches are full."""
        total = 0.0
        for service in self.services:
            demand, everywhere = self.fleet.demand(service.model), 0.0
            for place in service.places:
                everywhere += place.instances * self.fleet.gpus[place.gpu].speed
            if count := service.on(gpu):
                part = count * self.fleet.gpus[gpu].speed / everywhere
                busy = service.served * part * demand.time(service.batch) / service.batch / 1000
                total += busy * demand.share / self.fleet.gpus[gpu].speed
        return total


def text(plan: Plan) -> str:
    """Return the content of a plan file."""
    return json.dumps(encode(plan), indent=1, allow_nan=False) + "\n"


def read(path: Path) -> Plan:
    """Return the plan in a file.

    Raises:
        UsageError: there is none, or it is not a plan of this version.
    """
    try:
        found = decode(Plan, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error), fix="Name a plan.json") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a plan of this version of trtopt", why=str(error), fix="Remove it, or name another"
        ) from error
    if found.schema_version != SCHEMA:
        raise UsageError(f"{path} has schema_version {found.schema_version}, not {SCHEMA}", fix="Remove it")
    return found
