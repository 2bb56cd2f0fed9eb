"""Packing: which instances of which model run on which GPU, as an integer program.

For each option (a model on a GPU with a batch and a number of instances) there is a choice x in {0, 1}, and the part f
of the model's requests that it serves. Limits are the memory and the time of each GPU. The most valuable requests are
served first, then as little as possible moves from the previous plan, and then as little as possible is used.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from trtopt.fleet.demand import Fleet
from trtopt.fleet.options import BUSY, Option, options
from trtopt.fleet.plan import Plan, Strategy

Floats = NDArray[np.float64]
ENOUGH = 0.999
"""Part of a rate that counts as all of it: packing is exact to a ten-thousandth."""
_SECONDS = 10.0
_GAP = 1e-6
"""Part of the value that a solution may lack: a model of few requests must not be left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A choice: the option, and requests per second that it serves."""

    option: Option
    served: float


def weight(priority: int) -> float:
    """Return the value of a request: one of priority 2 counts half of one of priority 1, as in the rate limiter."""
    return 1 / priority


def pack(fleet: Fleet, strategy: Strategy, previous: Plan | None = None) -> tuple[Chosen, ...]:
    """Return the instances to run.

    Args:
        fleet: the models and the GPUs.
        strategy: `fixed` has the stated instances on one GPU each; with `priority`, models of priority 1 are served
            before all others, then those of priority 2, and so on.
        previous: the plan that runs now; GPUs are the same if Docker calls them the same.
    """
    found = options(fleet, strategy)
    if not found:
        return ()
    program = _Program(fleet, found, strategy)
    for value in _values(fleet, found, strategy):
        solution = program.best(-value)
        program.keep(value, float(value @ solution))
    solution = program.best(_costs(fleet, found, previous))
    parts = solution[len(found) : 2 * len(found)]
    chosen = [
        Chosen(option=option, served=float(np.clip(part, 0, 1)) * fleet.demands[option.model].rate)
        for option, is_chosen, part in zip(found, solution[: len(found)] > 0.5, parts, strict=True)
        if is_chosen
    ]
    return _completed(fleet, chosen)


def _completed(fleet: Fleet, chosen: Sequence[Chosen]) -> tuple[Chosen, ...]:
    """Return a choice in which instances serve what the rounding of the program has left of their rate."""
    found = list(chosen)
    for i, each in enumerate(found):
        option = each.option
        free = BUSY - sum(other.served * other.option.load for other in found if other.option.gpu == option.gpu)
        left = fleet.demands[option.model].rate
        left -= sum(other.served for other in found if other.option.model == option.model)
        more = min(left, option.capacity - each.served, free / option.load)
        found[i] = Chosen(option=option, served=each.served + max(more, 0.0))
    return tuple(found)


class _Program:
    """The limits: columns are x and f of each option, then y of each model and batch that any option has."""

    def __init__(self, fleet: Fleet, found: Sequence[Option], strategy: Strategy) -> None:
        self.pairs = sorted({(option.model, option.batch) for option in found})
        self.count = 2 * len(found) + len(self.pairs)
        self.rows: list[dict[int, float]] = []
        self.most: list[float] = []
        self.solution: Floats = np.zeros(self.count)
        size = len(found)
        for gpu in range(len(fleet.gpus)):
            here = [i for i, option in enumerate(found) if option.gpu == gpu]
            # In MB, so that a solution that is a millionth off does not take more than there is.
            self.limit({i: found[i].memory / max(fleet.free(gpu), 1) for i in here}, 1.0)
            self.limit({size + i: found[i].load * fleet.demands[found[i].model].rate for i in here}, BUSY)
        for model in range(len(fleet.demands)):
            own = [i for i, option in enumerate(found) if option.model == model]
            self.limit({size + i: 1.0 for i in own}, 1.0)
            if strategy == "fixed":
                self.limit(dict.fromkeys(own, 1.0), 1.0)
            for gpu in range(len(fleet.gpus)):
                self.limit({i: 1.0 for i in own if found[i].gpu == gpu}, 1.0)
        for i, option in enumerate(found):
            # f <= x min(1, capacity / rate), and x <= y: a model has one configuration, so one batch everywhere.
            part = min(option.capacity / fleet.demands[option.model].rate, 1.0)
            self.limit({size + i: 1.0, i: -part}, 0.0)
            self.limit({i: 1.0, 2 * size + self.pairs.index((option.model, option.batch)): -1.0}, 0.0)
        for model in range(len(fleet.demands)):
            self.limit({2 * size + j: 1.0 for j, pair in enumerate(self.pairs) if pair[0] == model}, 1.0)
        if strategy == "priority":
            self._unblock(fleet, found)

    def _unblock(self, fleet: Fleet, found: Sequence[Option]) -> None:
        """Keep apart what would break the limit of a more important model: one batch of another, and two of its own."""
        for i, first in enumerate(found):
            important = fleet.demands[first.model]
            speed = fleet.gpus[first.gpu].speed
            left = important.limit - 2 * important.slow(first.batch) / speed
            blocking: dict[int, dict[int, float]] = {}
            for j, second in enumerate(found):
                other = fleet.demands[second.model]
                beside = second.gpu == first.gpu and other.priority > important.priority
                if beside and other.slow(second.batch) / speed > left:
                    blocking.setdefault(second.model, {i: 1.0})[j] = 1.0
            for row in blocking.values():  # of a model on a GPU, one option at most is chosen
                self.limit(row, 1.0)

    def limit(self, row: dict[int, float], most: float) -> None:
        """Add a limit: the sum of the columns times these factors is at most `most`."""
        if row:
            self.rows.append(row)
            self.most.append(most)

    def keep(self, value: Floats, reached: float) -> None:
        """Let no later solution have less of a value."""
        self.limit({i: -float(each) for i, each in enumerate(value) if each}, _GAP - reached)

    def best(self, costs: Floats) -> Floats:
        """Return the solution of the lowest cost."""
        own = len(costs)
        costs = np.concatenate([costs, np.zeros(self.count - own)])
        entries = [(value, row, column) for row, each in enumerate(self.rows) for column, value in each.items()]
        values, rows, columns = zip(*entries, strict=True)
        matrix = sparse.csr_matrix((values, (rows, columns)), (len(self.rows), self.count))
        size = (self.count - len(self.pairs)) // 2
        integral = np.ones(self.count)
        integral[size : 2 * size] = 0
        done: Any = milp(
            costs,
            integrality=integral,
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, ub=np.array(self.most)),
            options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
        )
        if done.x is not None:  # in time; else the solution before still is one, as nothing is at first
            self.solution = np.asarray(done.x, np.float64)
        return self.solution[:own]


def _values(fleet: Fleet, found: Sequence[Option], strategy: Strategy) -> list[Floats]:
    """Return what to serve as much of as possible, one after the other; the largest value is 1."""
    levels = sorted({demand.priority for demand in fleet.demands}) if strategy == "priority" else [0]
    values = []
    for level in levels:
        value = np.zeros(2 * len(found))
        for i, option in enumerate(found):
            demand = fleet.demands[option.model]
            if level in (0, demand.priority):
                value[len(found) + i] = demand.rate * weight(demand.priority)
        total = sum(each.rate * weight(each.priority) for each in fleet.demands if level in (0, each.priority))
        values.append(value / total)
    return values


def _costs(fleet: Fleet, found: Sequence[Option], previous: Plan | None) -> Floats:
    """Return the cost of each column: what moves, then the number of instances, then the time that GPUs compute."""
    known = {service.model: service for service in previous.services} if previous else {}
    numbers = {gpu.device: number for number, gpu in enumerate(previous.fleet.gpus)} if previous else {}
    costs = np.zeros(2 * len(found))
    for i, option in enumerate(found):
        demand = fleet.demands[option.model]
        costs[i] = 1e-2 * option.instances
        costs[len(found) + i] = 1e-3 * option.load * demand.rate
        before = known.get(demand.name)
        if before is not None and before.places:
            number = numbers.get(fleet.gpus[option.gpu].device)
            count = 0 if number is None else before.on(number)
            # Without this option, the instances that are there go.
            costs[i] += abs(option.instances - count) - count + 0.5 * (option.batch != before.batch)
    return costs
