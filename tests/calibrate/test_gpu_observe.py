"""Observation as a GPU does it, run on the host: the same histograms as one sample at a time, whatever the batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibrate.host_gpu import HostGpu

from trtopt.calibrate.gpu_observe import OnGpu, observe_on_gpu
from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.observe import observe
from trtopt.data.dataset import Array, Dataset
from trtopt.engine.binding import BoundRun
from trtopt.engine.onnxruntime import OrtRunner, open_runner
from trtopt.errors import CalibrationError, DataError, OutOfMemoryError
from trtopt.events import Event, Progress, Warned, silent

# Sums of powers of two are exact in any order: batches give the same bits as single samples.
NET = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 4] x) => (float[n, 4] relu, float[n, 4] y)
<float[4, 4] w = {1, 0, 0, 2, 0, 1, 0, 0, 4, 0, 1, 0, 0, 0, 0, 1}> {
  m = MatMul(x, w)
  relu = Relu(m)
  y = Sqrt(relu)
}"""
# A batch of 1 is written into it: what is joined ends up in one row, and the softmax mixes it.
MIXING = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 4] x) => (float[k, j] y) <int64[2] one = {1, -1}> {
  r = Reshape(x, one)
  y = Softmax<axis = 1>(r)
}"""
NAMES = ["x", "relu", "y"]


def opened(folder: Path, text: str = NET) -> OrtRunner:
    onnx.save(onnx.parser.parse_model(text), folder / "m.onnx")
    return open_runner(folder / "m.onnx")


def samples(count: int, *, batched: bool = True, values: Mapping[int, float] | None = None) -> Dataset:
    def load(index: int) -> dict[str, Array]:
        x = np.random.default_rng(index).integers(-64, 64, (1, 4)).astype(np.float32) / 16
        if values and index in values:
            x[0, 2] = values[index]
        return {"x": x}

    ids = tuple(f"s{i}" for i in range(count))
    return Dataset(source="here", digest="", ids=ids, load=load, batched=batched)


class Model:
    """Binds for real, keeps the sizes of what it was asked to bind, and has memory for `room` samples."""

    def __init__(self, runner: OrtRunner, room: int = 1000) -> None:
        self.runner, self.room = runner, room
        self.sizes: list[int] = []

    def bind(self, feed: Mapping[str, Array]) -> BoundRun:
        self.sizes.append(len(feed["x"]))
        if self.sizes[-1] > self.room:
            raise OutOfMemoryError("memory is exhausted")
        return self.runner.bind(feed)


def on_gpu(model: Model, data: Dataset, batch: int = 8, names: list[str] = NAMES) -> dict[str, Histogram]:
    return observe_on_gpu(
        OnGpu(bind=model.bind, gpu=HostGpu(), batch=batch), names, data, stage="calibrate", emit=silent
    )


def assert_same(found: Mapping[str, Histogram], runner: OrtRunner, data: Dataset, names: list[str] = NAMES) -> None:
    wanted = observe(runner.run, names, data, stage="calibrate", emit=silent)
    assert list(found) == list(wanted)
    for name, histogram in wanted.items():
        assert [p.tolist() for p in found[name].counts()] == [p.tolist() for p in histogram.counts()]
        assert (found[name].amax, found[name].total) == (histogram.amax, histogram.total)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_batches_give_the_histograms_of_single_samples(tmp_path: Path, batch: int) -> None:
    model = Model(opened(tmp_path))
    assert_same(on_gpu(model, samples(20), batch), model.runner, samples(20))
    assert max(model.sizes) == max(min(batch, 20), 1)


def test_buffers_are_bound_once_for_all_batches_of_a_size(tmp_path: Path) -> None:
    model = Model(opened(tmp_path))
    on_gpu(model, samples(35), 8)
    assert model.sizes == [1, 2, 8, 3]  # two to see whether joined samples are kept apart, and the last batch


def test_when_memory_is_exhausted_the_batch_is_halved_and_said(tmp_path: Path) -> None:
    model, events = Model(opened(tmp_path), room=3), list[Event]()
    found = observe_on_gpu(
        OnGpu(bind=model.bind, gpu=HostGpu(), batch=8), NAMES, samples(11), stage="calibrate", emit=events.append
    )
    assert_same(found, model.runner, samples(11))
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert warned == [
        "the GPU's memory does not hold 8 samples a run: 4 from now on",
        "the GPU's memory does not hold 4 samples a run: 2 from now on",
    ]
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == [2, 4, 6, 8, 10, 11]


def test_memory_for_not_even_one_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError):
        on_gpu(Model(opened(tmp_path), room=0), samples(4, batched=False))


def test_samples_that_a_model_mixes_are_run_one_by_one(tmp_path: Path) -> None:
    model = Model(opened(tmp_path, MIXING))
    assert_same(on_gpu(model, samples(6), names=["x", "y"]), model.runner, samples(6), ["x", "y"])
    assert set(model.sizes) == {1, 2}  # two, once, to see


def test_samples_that_may_not_be_joined_are_run_one_by_one(tmp_path: Path) -> None:
    model = Model(opened(tmp_path))
    assert_same(on_gpu(model, samples(6, batched=False)), model.runner, samples(6, batched=False))
    assert model.sizes == [1]


def test_outputs_that_change_their_shape_with_the_values_are_bound_again(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 4] x) => (float[m] y) <int64[1] flat = {-1}> {
      r = Reshape(x, flat)
      zero = Sub(r, r)
      keep = Greater(r, zero)
      y = Compress<axis = 0>(r, keep)
    }"""
    model = Model(opened(tmp_path, text))
    data = samples(6, batched=False)
    assert_same(on_gpu(model, data, names=["y"]), model.runner, data, ["y"])


@pytest.mark.parametrize(("bad", "kind"), [(np.nan, "NaN"), (np.inf, "infinite")])
@pytest.mark.parametrize("index", [0, 9])
def test_nan_and_infinity_name_the_tensor_and_the_one_sample(tmp_path: Path, bad: float, kind: str, index: int) -> None:
    data = samples(12, values={index: bad})
    with pytest.raises(CalibrationError, match=f"tensor 'x' is {kind} for sample s{index}:"):
        on_gpu(Model(opened(tmp_path)), data, 4)


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="tensor 'ghost' was not observed"):
        on_gpu(Model(opened(tmp_path)), samples(2), names=["x", "ghost"])


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="here holds no samples"):
        on_gpu(Model(opened(tmp_path)), samples(0))
