"""Batches of one shape that follow the free memory, several at a time, and pauses for another service."""

from __future__ import annotations

import http.server
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from trtopt.data.dataset import Dataset
from trtopt.errors import DataError, EnvironmentUnableError, OutOfMemoryError, UsageError
from trtopt.events import Event, Progress, silent
from trtopt.predict.answers import Array
from trtopt.predict.batching import PATIENCE, Batch, Governor, Sample, joined
from trtopt.predict.block import Block, block_rows
from trtopt.predict.formats import jsonl
from trtopt.predict.journal import open_journal
from trtopt.predict.lanes import Lanes
from trtopt.predict.loop import Tools, Work, predict
from trtopt.predict.pauses import Pauses, YieldLimit, opened, parse_limit
from trtopt.predict.probe import Model
from trtopt.shards.shard import WHOLE
from trtopt.types import OnnxModel, TensorSpec

SPEC = (TensorSpec(name="x", dtype="float32", shape=("n", 3)),)


class Doubling:
    """Runner that returns twice its input, and records its batches; `refuse` may raise an error."""

    where = "here"

    def __init__(self, refuse: object = None) -> None:
        self.batches: list[int] = []
        self._refuse = refuse

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(feed["x"]))
        if callable(self._refuse):
            self._refuse(feed["x"])
        return {"y": feed["x"] * 2}


class Streams(Doubling):
    """Runner with streams, as an engine's."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.streams, self.most = streams, 0
        self._flying: deque[dict[str, Array]] = deque()

    def submit(self, feed: Mapping[str, Array]) -> None:
        assert len(self._flying) < self.streams
        self._flying.append(super().run(feed))
        self.most = max(self.most, len(self._flying))

    def collect(self) -> SimpleNamespace:
        return SimpleNamespace(outputs=self._flying.popleft())

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        assert not self._flying
        return super().run(feed)


def dataset(count: int) -> Dataset:
    return Dataset(
        source="numbers",
        digest="d",
        ids=tuple(map(str, range(count))),
        load=lambda i: {"x": np.full((1, 3), i, np.float32)},
        batched=True,
    )


def written(runner: Doubling, count: int, tmp_path: object, most: int = 8, **tools: object) -> list[str]:
    """Predict `count` samples, and return the lines of the blocks."""
    model = Model(
        runner=runner,
        described=OnnxModel(path=tmp_path, digest="m", opset=17, inputs=SPEC, outputs=SPEC),  # type: ignore[arg-type]
        streams=getattr(runner, "streams", 1),
    )
    work = Work(dataset=dataset(count), shard=WHOLE, answers="raw", most=most)
    given = Tools(**{"free": lambda: 0, "emit": silent, "tell": lambda _: None, **tools})  # type: ignore[arg-type]
    with open_journal(tmp_path / "out.jsonl", {}) as journal:  # type: ignore[operator]
        predict(model, work, journal, jsonl, given)
        lines = []
        for part in journal.parts().values():
            with part() as file:
                lines += file.read().decode().splitlines()
    return lines


def values(count: int) -> list[str]:
    return [f'{{"sample": "{i}", "error": null, "y": [{2.0 * i}, {2.0 * i}, {2.0 * i}]}}' for i in range(count)]


def test_tight_memory_halves_the_batch_and_free_memory_doubles_it_again(tmp_path: object) -> None:
    readings: Iterator[int] = iter([1000, 1000, 50, 50] + [1000] * 1000)
    told: list[str] = []
    runner = Doubling()
    lines = written(runner, 400, tmp_path, most=16, free=lambda: next(readings) << 20, tell=told.append)
    assert lines == values(400)
    sizes = runner.batches[3:]  # the first three show that samples can be joined
    assert sizes[:3] == [16, 8, 4]
    assert 4 in sizes
    assert sizes.count(16) > 5  # it has grown back
    assert [line.split(":")[0] for line in told] == ["batch 8", "batch 4", "batch 8", "batch 16"]


def test_exhausted_memory_halves_the_batch_and_loses_no_row(tmp_path: object) -> None:
    def refuse(x: Array) -> None:
        if len(x) > 5:
            raise OutOfMemoryError("memory is exhausted")

    runner = Doubling(refuse)
    assert written(runner, 300, tmp_path, most=16) == values(300)
    # It is tried again more and more rarely.
    assert sum(size > 5 for size in runner.batches) < 12


def test_a_sample_that_does_not_fit_in_memory_ends_the_run_and_keeps_the_rows(tmp_path: object) -> None:
    def refuse(x: Array) -> None:
        if (x == 290).any():
            raise OutOfMemoryError("memory is exhausted")

    with pytest.raises(OutOfMemoryError):
        written(Doubling(refuse), 300, tmp_path)
    assert len(list(tmp_path.glob("*.parts/*.part"))) == 1  # type: ignore[attr-defined]


def test_a_sample_that_the_model_refuses_is_an_error_of_its_own_row(tmp_path: object) -> None:
    def refuse(x: Array) -> None:
        if (x == 7).any():
            raise DataError("the engine rejects 7")

    lines = written(Doubling(refuse), 40, tmp_path)
    assert lines[7] == '{"sample": "7", "error": "the engine rejects 7"}'
    assert lines[:7] + lines[8:] == values(40)[:7] + values(40)[8:]


def test_an_engine_has_a_run_in_flight_per_stream(tmp_path: object) -> None:
    runner = Streams(3)
    assert written(runner, 100, tmp_path) == values(100)
    assert runner.most == 3


def test_batches_do_not_depend_on_where_a_run_was_interrupted(tmp_path: object) -> None:
    whole = Doubling()
    written(whole, 600, tmp_path / "whole", most=100)  # type: ignore[operator]

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.done > 500:
            raise KeyboardInterrupt

    first, second = Doubling(), Doubling()
    with pytest.raises(KeyboardInterrupt):
        written(first, 600, tmp_path, most=100, emit=emit)
    written(second, 600, tmp_path, most=100)
    per_block = [100, 100, 56]
    assert whole.batches[3:] == [*per_block, *per_block, 88]
    assert second.batches[3:] == [*per_block, 88]


def test_the_progress_has_a_rate_and_the_time_left(tmp_path: object) -> None:
    seen: list[Event] = []
    written(Doubling(), 300, tmp_path, emit=seen.append)
    steps = [event for event in seen if isinstance(event, Progress)]
    assert [(step.done, step.total) for step in steps][-1] == (300, 300)
    assert "samples/s" in steps[0].note
    assert steps[-1].note.endswith("0:00 left")


def test_samples_are_joined_within_their_block_and_shape() -> None:
    first, second = (Block(number=i, ids=["a"] * 4) for i in range(2))
    lengths = [2, 3, 2, 2, 3, 3, 3, 3]
    samples = [
        Sample(block=block, row=row, feed={"x": np.zeros((1, lengths[4 * place + row]), np.float32)})
        for place, block in enumerate((first, second))
        for row in range(4)
    ]
    batches = list(joined(samples, Governor(2, lambda: 0, print), joinable=True))
    assert [(batch.block.number, batch.rows) for batch in batches] == [
        (0, (0, 2)),
        (0, (1,)),
        (0, (3,)),
        (1, (0, 1)),
        (1, (2, 3)),
    ]


def test_memory_between_the_two_limits_changes_nothing() -> None:
    governor = Governor(8, iter([100, 5, *[20] * 50]).__next__, lambda _: None)
    for _ in range(40):
        governor.look()
    assert governor.size == 4


def test_a_batch_that_failed_often_is_tried_rarely() -> None:
    governor = Governor(2, lambda: 0, lambda _: None)
    waited = []
    for _ in range(4):
        governor.halve("out of memory")
        looks = 0
        while governor.size == 1:
            governor.look()
            looks += 1
        waited.append(looks)
    assert waited == [PATIENCE * 2**power for power in (1, 2, 3, 4)]


def test_rows_of_large_outputs_make_small_blocks() -> None:
    assert (block_rows(0), block_rows(1 << 20), block_rows(1 << 40)) == (256, 64, 1)


def test_a_pause_begins_when_nothing_is_in_flight_and_ends_below_the_limit() -> None:
    readings = iter([0.2, 0.9, 0.8, 0.1, 0.1])
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    told: list[str] = []
    pauses = Pauses(lambda: next(readings), parse_limit("60%"), told.append, sleep=sleep, clock=lambda: now[0])
    runner = Streams(2)

    def batches() -> Iterator[Batch]:
        for row in range(4):
            now[0] += 3.0  # a reading is due every five seconds
            yield Batch(block=Block(number=0, ids=["a"] * 4), rows=(row,), feed={"x": np.ones((1, 3), np.float32)})

    lanes = Lanes(runner, streams=2, least=1, rowed=frozenset({"y"}))
    in_flight = []
    wait = pauses.wait

    def watched() -> None:
        in_flight.append(len(runner._flying))
        wait()

    pauses.wait = watched  # type: ignore[method-assign]
    assert len(list(lanes.run(batches(), pauses))) == 4
    assert in_flight
    assert not any(in_flight)
    assert told == ["paused: another service exceeds a utilisation of 60%"]
    assert slept.count(1.0) == 2  # at 0.9 and at 0.8


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("60%", YieldLimit(most=0.6)),
        ("2.5 %", YieldLimit(most=0.025)),
        ("20ms@http://h:1/p", YieldLimit(most=20.0, url="http://h:1/p")),
        ("1s@https://h", YieldLimit(most=1000.0, url="https://h")),
    ],
)
def test_limits_are_a_utilisation_or_a_latency(text: str, limit: YieldLimit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "60", "0%", "100%", "-1%", "20ms", "20ms@", "20ms@file:///etc", "x@http://h"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--yield"):
        parse_limit(text)


def test_the_latency_is_that_of_a_request() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    limit = YieldLimit(most=math.inf, url=f"http://127.0.0.1:{server.server_port}/")
    try:
        with opened(limit, print) as pauses:
            assert pauses is not None
            pauses.wait()
            assert pauses.seconds == 0.0
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(EnvironmentUnableError, match="does not answer"), opened(limit, print):
        pass


def test_without_a_gpu_a_utilisation_cannot_be_read() -> None:
    with pytest.raises(EnvironmentUnableError), opened(parse_limit("60%"), print):
        pass
