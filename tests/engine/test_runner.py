"""The runner on a fake CUDA backend and a fake engine: results, graphs, streams, and the release of resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine.cuda_on_host import HostBackend, at

from trtopt.engine.cuda.device import CudaError, Device
from trtopt.engine.runner.engine import EngineRunner
from trtopt.engine.runner.program import Port, Shape
from trtopt.engine.runner.slot import SHAPES_KEPT
from trtopt.errors import DataError, OutOfMemoryError, UsageError

F32 = np.dtype(np.float32)


class Doubling:
    """Fake engine: `y` is twice `x` [1 to 4, 3], plus the shape tensor `n` on the host if it has one."""

    where = "a doubling engine"
    weights_size = 5
    max_contexts = 0
    workspace_size = 64

    def __init__(self, backend: HostBackend, *, dtype: Any = F32, late: bool = False, on_host: bool = False) -> None:
        self.backend = backend
        self.dtype = np.dtype(dtype)
        self.late = late
        self.prepared: list[Mapping[str, Shape]] = []
        self.alive = 0
        self.refuses_capture = False
        size = 12 * self.dtype.itemsize
        self.ports = (
            Port(name="x", dtype=self.dtype, output=False, size=size, min=(1, 3), max=(4, 3)),
            Port(name="y", dtype=self.dtype, output=True, size=size, sized_late=late),
        )
        if on_host:
            int64 = np.dtype(np.int64)
            self.ports += (Port(name="n", dtype=int64, output=False, size=8, min=(1,), max=(1,), on_host=True),)

    def prepare(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], workspace: int) -> DoublingExecution:
        self.prepared.append(shapes)
        self.alive += 1
        return DoublingExecution(self, shapes["x"], addresses)

    def close(self) -> None:
        assert not self.alive, "executions are released before the engine"
        self.backend.released.append("program")


class DoublingExecution:
    def __init__(self, program: Doubling, shape: Shape, addresses: Mapping[str, int]) -> None:
        self.program, self.shape, self.addresses = program, shape, addresses
        self.computed: Shape = (-1, 3) if program.late else shape

    def outputs(self) -> Mapping[str, Shape]:
        return {"y": self.computed}

    def enqueue(self, stream: int) -> None:
        program, count = self.program, int(np.prod(self.shape))
        if program.refuses_capture and program.backend._capturing is not None:
            raise CudaError("the engine does not run", why="not in a capture")

        def compute() -> None:
            more = int(at(self.addresses["n"], 1, np.int64)[0]) if "n" in self.addresses else 0
            x = at(self.addresses["x"], count, program.dtype)
            np.copyto(at(self.addresses["y"], count, program.dtype), (x * x.dtype.type(2) + x.dtype.type(more)))
            self.computed = (self.shape[0] - 1, 3) if program.late else self.shape

        program.backend.enqueue(compute)

    def close(self) -> None:
        self.program.alive -= 1


Opened = tuple[EngineRunner, Doubling, HostBackend]


def opened(*, streams: int = 1, graphs: bool = True, room: int = 1 << 20, **program: Any) -> Opened:
    backend = HostBackend(room)
    engine = Doubling(backend, **program)
    return EngineRunner(Device(backend, 0), engine, streams=streams, graphs=graphs), engine, backend


def sample(rows: int = 2, start: float = 0) -> dict[str, np.ndarray]:
    return {"x": np.arange(start, start + 3 * rows, dtype=np.float32).reshape(rows, 3)}


def test_outputs_survive_the_next_run() -> None:
    runner, _, _ = opened()
    with runner:
        first = runner.run(sample())
        runner.run(sample(start=100))
        np.testing.assert_array_equal(first["y"], sample()["x"] * 2)


def test_where_names_the_engine_and_the_gpu() -> None:
    runner, _, _ = opened()
    with runner:
        assert runner.where == "a doubling engine, Host"
        assert (runner.inputs, runner.outputs) == (("x",), ("y",))


def test_a_shape_is_captured_at_its_second_run_and_replayed_from_then_on() -> None:
    runner, program, backend = opened()
    with runner:
        for _ in range(3):
            np.testing.assert_array_equal(runner.run(sample())["y"], sample()["x"] * 2)
        ran = [name for name in backend.launched if name in ("compute", "replay")]
        assert ran == ["compute", "replay", "replay"]
        assert runner.no_graphs == ""
        runner.run(sample(rows=1))
        assert backend.launched.count("compute") == 2
    assert program.prepared == [{"x": (2, 3)}, {"x": (1, 3)}]


def test_an_engine_that_cannot_be_captured_runs_without_graphs_and_the_reason_is_kept() -> None:
    runner, program, backend = opened()
    program.refuses_capture = True
    with runner:
        for _ in range(3):
            np.testing.assert_array_equal(runner.run(sample())["y"], sample()["x"] * 2)
        assert "not in a capture" in runner.no_graphs
        assert "replay" not in backend.launched


@pytest.mark.parametrize(
    ("open_it", "why"),
    [
        (lambda: opened(graphs=False), "CUDA graphs are disabled"),
        (lambda: opened(late=True), "the shape of an output depends on values"),
    ],
)
def test_without_graphs_the_reason_is_kept(open_it: Callable[[], Opened], why: str) -> None:
    runner, _, backend = open_it()
    with runner:
        runner.run(sample())
        runner.run(sample())
        assert runner.no_graphs == why
        assert "replay" not in backend.launched


def test_an_output_whose_shape_depends_on_values_has_the_computed_shape() -> None:
    runner, _, _ = opened(late=True)
    with runner:
        np.testing.assert_array_equal(runner.run(sample(rows=3))["y"], sample(rows=3)["x"][:2] * 2)


def test_a_graph_is_captured_for_each_value_of_a_shape_tensor() -> None:
    runner, program, backend = opened(on_host=True)
    with runner:
        for more in (1, 1, 5, 5, 1):
            feed = sample() | {"n": np.array([more])}
            np.testing.assert_array_equal(runner.run(feed)["y"], sample()["x"] * 2 + more)
        assert len(program.prepared) == 2
        assert backend.launched.count("compute") == 2


def test_one_run_per_stream_can_be_in_flight_and_results_come_in_order() -> None:
    runner, _, _ = opened(streams=3)
    with runner:
        for start in (0, 100, 200):
            runner.submit(sample(start=start))
        assert runner.in_flight == 3
        with pytest.raises(RuntimeError, match="collect a result first"):
            runner.submit(sample())
        with pytest.raises(RuntimeError, match="collect their results first"):
            runner.run(sample())
        for start in (0, 100, 200):
            np.testing.assert_array_equal(runner.collect().outputs["y"], sample(start=start)["x"] * 2)
        with pytest.raises(RuntimeError, match="submit one first"):
            runner.collect()


def test_a_feed_can_be_changed_while_its_run_is_in_flight() -> None:
    runner, _, _ = opened()
    with runner:
        feed = sample()
        runner.submit(feed)
        feed["x"][:] = -1
        np.testing.assert_array_equal(runner.collect().outputs["y"], sample()["x"] * 2)


def test_staged_arrays_are_submitted_without_a_copy_and_outputs_can_be_views() -> None:
    runner, _, _ = opened(streams=2)
    with runner:
        staged = runner.stage({"x": (2, 3)})
        staged["x"][:] = 4
        runner.submit(staged)
        assert not np.shares_memory(runner.stage({"x": (2, 3)})["x"], staged["x"])
        view = runner.collect(copy=False).outputs["y"]
        assert view.tolist() == [[8.0] * 3] * 2
        runner.run(sample())
        runner.run(sample())
        assert view.tolist() == (sample()["x"] * 2).tolist()


def test_a_slice_of_a_staged_array_is_copied() -> None:
    runner, _, _ = opened()
    with runner:
        staged = runner.stage({"x": (4, 3)})["x"]
        staged[:] = np.arange(12).reshape(4, 3)
        half = staged[::2]
        np.testing.assert_array_equal(runner.run({"x": half})["y"], np.arange(12).reshape(4, 3)[::2] * 2)


def test_shapes_that_do_not_fit_cannot_be_staged() -> None:
    runner, _, _ = opened()
    with runner:
        with pytest.raises(DataError, match=r"its shape is \[9, 3\]"):
            runner.stage({"x": (9, 3)})
        with pytest.raises(DataError, match="no shape for input x: no shapes were given"):
            runner.stage({})
        runner.submit(sample())
        with pytest.raises(RuntimeError, match="collect a result first"):
            runner.stage({"x": (1, 3)})


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "no data for input x: the sample has none"),
        ({"z": np.zeros(1)}, "the sample has z"),
        ({"x": np.zeros((5, 3), np.float32)}, r"its shape is \[5, 3\], the engine supports \[1, 3\] to \[4, 3\]"),
        ({"x": np.zeros((0, 3), np.float32)}, r"its shape is \[0, 3\]"),
        ({"x": np.zeros(3, np.float32)}, r"its shape is \[3\]"),
        ({"x": np.zeros((2, 3), np.complex64)}, "it is complex64, the engine expects float32"),
    ],
)
def test_a_feed_that_does_not_fit_is_rejected_and_the_next_one_runs(feed: dict[str, np.ndarray], message: str) -> None:
    runner, _, _ = opened()
    with runner:
        with pytest.raises(DataError, match=message):
            runner.run(feed)
        assert runner.in_flight == 0
        np.testing.assert_array_equal(runner.run(sample())["y"], sample()["x"] * 2)


def test_floats_are_cast_to_the_type_of_a_16_bit_engine() -> None:
    runner, _, _ = opened(dtype=ml_dtypes.bfloat16)
    with runner:
        output = runner.run({"x": np.full((1, 3), 1.0009765625, np.float32)})["y"]
        assert output.dtype == ml_dtypes.bfloat16
        assert output.astype(np.float32).tolist() == [[2.0, 2.0, 2.0]]


def test_a_strided_feed_is_copied_correctly() -> None:
    runner, _, _ = opened()
    with runner:
        wide = np.arange(12, dtype=np.float32).reshape(2, 6)
        np.testing.assert_array_equal(runner.run({"x": wide[:, ::2]})["y"], wide[:, ::2] * 2)


def test_the_least_recently_used_shape_is_released_first() -> None:
    backend = HostBackend()
    program = Doubling(backend)
    program.ports = tuple(
        Port(name=port.name, dtype=F32, output=port.output, size=1000, min=(1, 3), max=(80, 3))
        for port in program.ports
    )
    with EngineRunner(Device(backend, 0), program, streams=1) as runner:
        for rows in [*range(1, SHAPES_KEPT + 1), 1, SHAPES_KEPT + 1]:
            runner.run(sample(rows))
        assert program.alive == SHAPES_KEPT
        runner.run(sample(1))
        assert len(program.prepared) == SHAPES_KEPT + 1
        runner.run(sample(2))
        assert len(program.prepared) == SHAPES_KEPT + 2


def test_repeated_runs_allocate_nothing() -> None:
    runner, _, backend = opened(streams=2)
    with runner:
        for _ in range(2):
            for rows in (1, 2, 3, 4):
                runner.run(sample(rows))
                runner.run(sample(rows))
        before, free = len(backend.alive), backend.memory()
        for index in range(200):
            runner.run(sample(1 + index % 4))
        assert (len(backend.alive), backend.memory()) == (before, free)


def test_memory_is_reported_by_purpose() -> None:
    runner, _, backend = opened(streams=2)
    with runner:
        assert runner.memory == {"weights": 5, "activations": 128, "io": 192}
        assert backend.room - backend.memory()[0] == 128 + 192


def test_closing_releases_everything_in_reverse_order_even_with_a_run_in_flight() -> None:
    runner, _, backend = opened(streams=2)
    for _ in range(3):
        runner.run(sample())
    runner.submit(sample())
    runner.close()
    runner.close()
    assert not backend.alive
    assert backend.released[-2:] == ["program", "context"]
    assert backend.released.index("graph") < backend.released.index("memory") < backend.released.index("stream")


def test_exhausted_memory_releases_what_was_allocated_before() -> None:
    backend = HostBackend(room=200)
    program = Doubling(backend)
    with pytest.raises(OutOfMemoryError):
        EngineRunner(Device(backend, 0), program, streams=2)
    assert not backend.alive
    assert backend.released[-2:] == ["program", "context"]


def test_zero_streams_are_rejected_and_nothing_stays_allocated() -> None:
    backend = HostBackend()
    with pytest.raises(UsageError, match="0 streams"):
        EngineRunner(Device(backend, 0), Doubling(backend), streams=0)
    assert not backend.alive
