"""The simulation of queues: against the theory of queues, and properties that every server has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.fleet.simulate import Outcome, Setting, Station, Stream, simulate

MEAN = 10.0
ONE = Setting(speeds=(1.0,), seconds=400)


def fixed(batch: int, level: float) -> float:
    return MEAN


def exponential(batch: int, level: float) -> float:
    return -MEAN * math.log(1 - level)


def growing(batch: int, level: float) -> float:
    return 4 + batch


def run(setting: Setting = ONE, **station: object) -> Outcome:
    """Simulate one model; its load is that of batches of one in 10 ms."""
    load = station.pop("load")
    streams = (Stream(rate=load * 1000 / MEAN),)  # type: ignore[operator]
    defaults: dict[str, object] = {"streams": streams, "duration": fixed, "batch": 1, "instances": (0,)}
    return simulate([Station(**{**defaults, **station})], setting)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_exponential_times_give_the_latency_of_m_m_1(load: float) -> None:
    latency = run(load=load, duration=exponential).latency
    assert latency.mean() == pytest.approx(MEAN / (1 - load), rel=0.06)
    # The time in an M/M/1 queue is exponential.
    assert np.percentile(latency, 95) == pytest.approx(math.log(20) * MEAN / (1 - load), rel=0.08)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_constant_times_give_the_latency_of_m_d_1(load: float) -> None:
    assert run(load=load).latency.mean() == pytest.approx(MEAN * (1 + load / (2 * (1 - load))), rel=0.04)


def test_two_instances_that_fit_beside_each_other_give_the_latency_of_m_m_2() -> None:
    load = 0.7  # of each
    offered = 2 * load
    waits = offered**2 / 2 / (1 - load) / (1 + offered + offered**2 / 2 / (1 - load))  # Erlang's C
    latency = run(load=offered, duration=exponential, instances=(0, 0), share=0.5).latency
    assert latency.mean() == pytest.approx(MEAN + waits * MEAN / (2 * (1 - load)), rel=0.05)


def test_instances_that_slow_each_other_down_share_the_processor() -> None:
    # The mean of M/G/1 with processor sharing does not depend on the distribution.
    latency = run(load=0.5, instances=(0,) * 12).latency
    assert latency.mean() == pytest.approx(MEAN / (1 - 0.5), rel=0.05)


def test_urgent_requests_wait_as_in_a_queue_with_priorities() -> None:
    first, second = 0.3, 0.4
    streams = (Stream(rate=first * 100, level=1), Stream(rate=second * 100, level=2))
    found = run(load=0, streams=streams)
    rest = (first + second) * MEAN / 2  # of the batch that runs, on average
    means = [found.latency[found.level == level].mean() - MEAN for level in (1, 2)]
    assert means[0] == pytest.approx(rest / (1 - first), rel=0.06)
    assert means[1] == pytest.approx(rest / (1 - first) / (1 - first - second), rel=0.06)


def test_models_that_the_rate_limiter_keeps_apart_wait_in_one_queue() -> None:
    station = Station(streams=(Stream(rate=35.0),), duration=fixed, batch=1, instances=(0,))
    setting = Setting(speeds=(1.0,), limited=True, seconds=400)
    found = simulate([station, station], setting)
    mean = np.concatenate([each.latency for each in found]).mean()
    assert mean == pytest.approx(MEAN * (1 + 0.7 / (2 * 0.3)), rel=0.05)


def test_the_rate_limiter_gives_half_the_turns_to_priority_2() -> None:
    setting = Setting(speeds=(1.0,), limited=True, seconds=20)
    models = [
        Station(streams=(Stream(rate=1000.0),), duration=fixed, batch=1, instances=(0,), priority=priority)
        for priority in (1, 2)
    ]
    first, second = simulate(models, setting)
    # While both queues are full, 2 of 3 runs are of the first.
    ends = [np.sort(each.latency)[len(each.latency) // 2] for each in (first, second)]
    assert ends[0] < 0.8 * ends[1]


def test_a_lone_request_waits_for_the_delay() -> None:
    latency = run(load=0.001, duration=growing, batch=8, delay=3.0).latency
    assert np.median(latency) == pytest.approx(3 + growing(1, 0))


def test_full_batches_run_at_once() -> None:
    found = run(load=5.0, duration=growing, batch=8, delay=1000.0)
    assert found.batch == pytest.approx(8, rel=0.01)
    assert np.median(found.latency) < 100


def test_preferred_sizes_are_what_runs() -> None:
    found = run(load=5.0, duration=growing, batch=8, delay=1000.0, preferred=(4,))
    assert found.batch == pytest.approx(4, rel=0.01)


def test_a_slice_is_slower() -> None:
    setting = Setting(speeds=(0.5,), seconds=400)
    assert np.median(run(setting, load=0.001).latency) == pytest.approx(2 * MEAN)


MODELS = st.builds(
    Station,
    streams=st.lists(
        st.builds(Stream, rate=st.floats(1, 60), level=st.integers(1, 3)),
        min_size=1,
        max_size=3,
        unique_by=lambda s: s.level,
    ).map(tuple),
    duration=st.floats(0.5, 5).map(lambda each: lambda batch, level: 2 + each * batch * (0.8 + 0.4 * level)),
    batch=st.integers(1, 9),
    instances=st.lists(st.integers(0, 1), min_size=1, max_size=3).map(tuple),
    delay=st.floats(0, 20),
    share=st.sampled_from((0.25, 0.5, 1.0)),
    priority=st.integers(1, 3),
)


@settings(max_examples=60)
@given(st.lists(MODELS, min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_every_request_is_answered_after_its_batch(models: list[Station], limited: bool, seed: int) -> None:
    found = simulate(models, Setting(speeds=(1.0, 0.5), limited=limited, seconds=3, seed=seed))
    for station, outcome in zip(models, found, strict=True):
        if len(outcome.latency):
            assert outcome.latency.min() >= station.duration(1, 0) - 1e-6
            assert np.isfinite(outcome.latency).all()
            assert 1 <= outcome.batch <= station.batch


@settings(max_examples=30)
@given(st.lists(MODELS, min_size=1, max_size=3), st.booleans(), st.sampled_from((0.5, 2.0, 8.0)))
def test_a_slower_clock_changes_nothing_else(models: list[Station], limited: bool, factor: float) -> None:
    def slowed(station: Station) -> Station:
        return Station(
            streams=tuple(Stream(rate=each.rate / factor, level=each.level) for each in station.streams),
            duration=lambda batch, level: factor * station.duration(batch, level),
            batch=station.batch,
            instances=station.instances,
            delay=factor * station.delay,
            share=station.share,
            priority=station.priority,
        )

    speeds = (1.0, 0.5)
    before = simulate(models, Setting(speeds=speeds, limited=limited, seconds=2))
    after = simulate([slowed(each) for each in models], Setting(speeds=speeds, limited=limited, seconds=2 * factor))
    for first, second in zip(before, after, strict=True):
        np.testing.assert_allclose(second.latency, factor * first.latency, rtol=1e-6)


def test_requests_arrive_when_they_are_said_to() -> None:
    streams = (Stream(rate=1.0, moments=(0.0, 1.0, 2.0)),)
    latency = run(load=0, streams=streams).latency
    assert latency.tolist() == [10.0, 19.0, 28.0]


def test_requests_that_have_not_waited_for_the_delay_miss_the_next_batch() -> None:
    # The second joins a batch at 11, and runs at 15 without the third, which may join one at 17.
    streams = (Stream(rate=1.0, moments=(0.0, 6.0, 12.0)),)
    assert run(load=0, streams=streams, batch=8, delay=5.0).latency.tolist() == [15.0, 19.0, 23.0]


def test_with_levels_an_urgent_request_overtakes_all_that_wait() -> None:
    first = Stream(rate=1.0, level=1, moments=(5.0,))
    second = Stream(rate=1.0, level=2, moments=(0.0, 1.0, 2.0, 3.0))
    found = run(load=0, streams=(second, first), batch=2)
    assert found.latency[found.level == 1].tolist() == [15.0]
    assert found.latency[found.level == 2].tolist() == [10.0, 19.0, 28.0, 27.0]


def test_the_batcher_sleeps_while_a_batch_is_open() -> None:
    # The second is in an open batch from 7 on. The third does not wake the batcher before the first batch ends at 11.
    streams = (Stream(rate=1.0, moments=(0.0, 6.0, 8.0)),)
    assert run(load=0, streams=streams, batch=8, delay=1.0).latency.tolist() == [11.0, 15.0, 23.0]
