"""Packing: never more memory than there is, as much served as by trying everything, and few moves in a rerun."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from trtopt.fleet import planning, shortage
from trtopt.fleet.demand import MB, Demand, Fleet, Gpu, Memory, constant
from trtopt.fleet.options import BUSY, Option, options
from trtopt.fleet.pack import Chosen, pack, weight
from trtopt.fleet.plan import Place, Plan, Strategy

STRATEGIES: tuple[Strategy, ...] = ("fixed", "dynamic", "priority")


def model(name: str, rate: float, **changes: object) -> Demand:
    """Return a model of 100 MB, 50 MB per instance and 10 MB per sample; batch 1 takes 4 ms, batch 8 takes 10 ms."""
    fields: dict[str, object] = {
        "memory": Memory(weights=100 * MB, context=50 * MB, per_sample=10 * MB),
        "times": (constant(1, 4.0), constant(8, 10.0)),
        "largest": 8,
    }
    return Demand(name=name, rate=rate, **{**fields, **changes})  # type: ignore[arg-type]


def gpus(*sizes: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(device=str(i), name="g", memory=size * MB) for i, size in enumerate(sizes))


def fleet(*demands: Demand, sizes: tuple[int, ...] = (1000,)) -> Fleet:
    return Fleet(demands=demands, gpus=gpus(*sizes), process=100 * MB)


@st.composite
def demands(draw: st.DrawFn, number: int) -> Demand:
    first = draw(st.floats(0.5, 20))
    each = draw(st.floats(0.1, 1)) * first
    batches = draw(st.sampled_from(((1,), (1, 4), (1, 8, 32))))
    urgent = draw(st.sampled_from((0.0, 0.0, 0.2)))
    return Demand(
        name=f"m{number}",
        rate=draw(st.floats(1, 2000)),
        memory=Memory(
            weights=draw(st.integers(0, 800)) * MB,
            context=draw(st.integers(0, 300)) * MB,
            per_sample=draw(st.integers(0, 40)) * MB,
        ),
        times=tuple(constant(batch, first + each * (batch - 1)) for batch in batches),
        largest=draw(st.sampled_from((0, batches[-1]))),
        priority=draw(st.integers(1, 3)),
        limit=draw(st.sampled_from((10.0, 50.0, 400.0, math.inf))),
        share=draw(st.sampled_from((0.3, 0.5, 1.0))),
        instances=draw(st.integers(2 if urgent else 1, 3)),
        budget=draw(st.sampled_from((0, 700 * MB))),
        urgent=urgent,
    )


@st.composite
def fleets(draw: st.DrawFn, models: int, devices: int) -> Fleet:
    count = draw(st.integers(1, models))
    return Fleet(
        demands=tuple(draw(demands(number)) for number in range(count)),
        gpus=tuple(
            Gpu(
                device=str(i),
                name="g",
                memory=draw(st.integers(200, 4000)) * MB,
                speed=draw(st.sampled_from((1.0, 1.0, 3 / 7))),
            )
            for i in range(draw(st.integers(1, devices)))
        ),
        process=draw(st.sampled_from((0, 150 * MB))),
    )


def served(made: Plan) -> float:
    return sum(made.service(each.name).served * weight(each.priority) for each in made.fleet.demands)


def planned(asked: Fleet, strategy: Strategy, previous: Plan | None = None) -> Plan:
    """Return a plan without its simulation."""
    return packed(asked, strategy, pack(asked, strategy, previous))


def packed(asked: Fleet, strategy: Strategy, chosen: tuple[Chosen, ...]) -> Plan:
    own = [[each for each in chosen if each.option.model == number] for number in range(len(asked.demands))]
    services = tuple(planning.service(asked, number, each, strategy) for number, each in enumerate(own))
    return Plan(strategy=strategy, fleet=asked, services=services)


@settings(max_examples=200)
@given(fleets(5, 3), st.sampled_from(STRATEGIES))
def test_a_plan_never_takes_more_memory_or_time_than_there_is(asked: Fleet, strategy: Strategy) -> None:
    chosen = pack(asked, strategy)
    made = packed(asked, strategy, chosen)
    for number, gpu in enumerate(asked.gpus):
        assert not made.used(number) or asked.process + made.used(number) <= gpu.memory
    for service in made.services:
        demand = asked.demand(service.model)
        assert 0 <= service.served <= demand.rate
        assert bool(service.places) or not service.served
        for place in service.places:
            speed = asked.gpus[place.gpu].speed
            assert 2 * demand.slow(service.batch) / speed <= demand.limit
            assert place.instances >= (2 if demand.urgent else 1)
            if strategy == "fixed":
                assert place.instances == demand.instances
                assert not demand.budget or demand.memory.needed(service.batch, place.instances) <= demand.budget
    for number in range(len(asked.gpus)):
        assert sum(each.served * each.option.load for each in chosen if each.option.gpu == number) <= BUSY + 1e-3


def best(asked: Fleet, found: tuple[Option, ...]) -> float:
    """Return the priority-weighted requests per second of the best choice, by trying all of them."""
    ways = []
    for number in range(len(asked.demands)):
        own = [option for option in found if option.model == number]
        mine: list[tuple[Option, ...]] = [()]
        for batch in {option.batch for option in own}:
            here = [
                [option for option in own if (option.batch, option.gpu) == (batch, g)] for g in range(len(asked.gpus))
            ]
            mine += [tuple(filter(None, each)) for each in itertools.product(*[[None, *some] for some in here])]
        ways.append(mine)
    most = 0.0
    seen = set()
    for combined in itertools.product(*ways):
        chosen = [option for each in combined for option in each]
        key = frozenset(map(id, chosen))
        free = [gpu.memory - asked.process for gpu in asked.gpus]
        for option in chosen:
            free[option.gpu] -= option.memory
        if key in seen or not chosen or min(free) < 0:
            continue
        seen.add(key)
        values = np.array([weight(asked.demands[option.model].priority) for option in chosen])
        if (
            sum(value * min(o.capacity, asked.demands[o.model].rate) for value, o in zip(values, chosen, strict=True))
            <= most
        ):
            continue
        rows = [[option.load * (option.gpu == g) for option in chosen] for g in range(len(asked.gpus))]
        rows += [[float(option.model == m) for option in chosen] for m in range(len(asked.demands))]
        limits = [BUSY] * len(asked.gpus) + [demand.rate for demand in asked.demands]
        done = linprog(-values, rows, limits, bounds=[(0, option.capacity) for option in chosen])
        most = max(most, -float(done.fun))
    return most


@settings(max_examples=40)
@given(st.one_of(fleets(3, 1), fleets(2, 2)))
def test_trying_everything_serves_at_most_5_percent_more(asked: Fleet) -> None:
    found = options(asked, "dynamic")
    assert served(planned(asked, "dynamic")) >= best(asked, found) / 1.05 - 1e-6


def test_the_largest_batch_follows_the_free_memory() -> None:
    # 100 + 100 + 50 MB, and 10 MB per sample.
    batches = [planned(fleet(model("a", 150), sizes=(size,)), "dynamic").services[0].batch for size in (260, 290, 330)]
    assert batches == [1, 4, 8]


def test_the_largest_batch_follows_the_limit() -> None:
    batches = [planned(fleet(model("a", 20, limit=limit)), "dynamic").services[0].batch for limit in (9, 14, 20)]
    assert batches == [1, 4, 8]


def test_instances_follow_the_rate() -> None:
    # One instance serves 0.8 * 8 / 10 ms = 640 requests per second; four run beside each other.
    made = [planned(fleet(model("a", rate, share=0.25)), "dynamic") for rate in (100, 600, 900, 2000)]
    assert [each.services[0].on(0) for each in made] == [1, 1, 2, 4]


def test_a_rerun_moves_as_little_as_possible() -> None:
    before = planned(fleet(model("a", 600), model("b", 600), model("c", 500), sizes=(1000, 1000, 1000)), "dynamic")
    assert all(each.served == before.fleet.demand(each.model).rate for each in before.services)
    rates = fleet(model("a", 550), model("b", 620), model("c", 400), sizes=(1000, 1000, 1000))
    same = planned(rates, "dynamic", before)
    assert same.services == tuple(replace(each, served=rates.demand(each.model).rate) for each in before.services)
    # Only the model whose rate has grown beyond its instances gets more of them.
    grown = fleet(model("a", 550), model("b", 900), model("c", 100), sizes=(1000, 1000, 1000))
    after = planned(grown, "dynamic", before)
    assert after.services[1].served == 900
    assert after.services[0].places == before.services[0].places
    assert set(before.services[1].places) < set(after.services[1].places)
    assert after.services[2].places == before.services[2].places


def test_a_rerun_finds_the_gpus_by_their_device() -> None:
    asked = fleet(model("a", 100), sizes=(1000, 1000))
    before = planned(asked, "dynamic")
    (place,) = before.services[0].places
    swapped = replace(asked, gpus=asked.gpus[::-1])
    assert planned(swapped, "dynamic", before).services[0].places == (Place(gpu=1 - place.gpu, instances=1),)


def test_the_important_model_is_served_first() -> None:
    # One GPU serves 640 requests per second in all.
    asked = fleet(model("a", 400, priority=2), model("b", 500, priority=1), sizes=(2000,))
    made = planned(asked, "priority")
    assert [round(each.served) for each in made.services] == [140, 500]


def test_with_priority_others_do_not_break_the_limit_of_the_important_model() -> None:
    # A batch of 8 takes 10 ms: the important model has 12 - 2 * 4 = 4 ms to wait for another.
    asked = fleet(model("a", 50, limit=12.0), model("b", 100, priority=2))
    assert planned(asked, "dynamic").service("b").batch == 8
    made = planned(asked, "priority")
    assert (made.service("a").batch, made.service("b").batch) == (1, 1)


def test_fixed_has_what_is_stated_whatever_the_rate() -> None:
    for rate in (10, 600):
        asked = fleet(model("a", rate, instances=3, budget=400 * MB, share=0.3), sizes=(2000, 2000))
        (service,) = planned(asked, "fixed").services
        assert (service.batch, [place.instances for place in service.places]) == (4, [3])


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (fleet(model("a", 10), sizes=(250,)), "does not fit: 10 MB more are needed on GPU 0"),
        (fleet(model("a", 10), sizes=(50,)), "does not fit: 210 MB more are needed on GPU 0"),
        (fleet(model("a", 10), sizes=(150, 255)), "does not fit: 5 MB more are needed on GPU 1"),
        (fleet(model("a", 10, limit=7)), "cannot keep 7 ms: a request may take 8 ms"),
        (fleet(model("a", 1000)), "serves 640 of 1000 requests/s"),
    ],
)
def test_what_is_not_served_gets_one_line(asked: Fleet, line: str) -> None:
    (found,) = shortage.shortages(planning.plan(asked, "dynamic"))
    assert found.startswith(f"a {line}")


def test_a_model_beside_others_is_short_of_what_they_leave() -> None:
    made = planning.plan(fleet(model("a", 10), model("b", 10, priority=2), sizes=(400,)), "dynamic")
    (line,) = shortage.shortages(made)
    assert line.startswith("b does not fit: ")
    missing = int(line.split()[4])
    assert missing == 20  # with batches of 1 for both
    for more, fits in ((missing - 1, False), (missing, True)):
        asked = fleet(model("a", 10), model("b", 10, priority=2), sizes=(400 + more,))
        assert (not shortage.shortages(planning.plan(asked, "dynamic"))) is fits


def test_a_budget_that_is_too_small_is_named() -> None:
    made = planning.plan(fleet(model("a", 10, budget=150 * MB)), "fixed")
    assert shortage.shortages(made) == ("a does not fit: 10 MB more are needed than the 150 MB that it is given",)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_of_few_requests_is_not_left_out(strategy: Strategy) -> None:
    made = planned(fleet(model("a", 600), model("b", 0.01), sizes=(1000, 1000)), strategy)
    assert [each.served for each in made.services] == pytest.approx([600, 0.01])
