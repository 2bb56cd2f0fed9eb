"""Observation in batches, run on the host: the histograms equal those of single samples for any batch size."""

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
from trtopt.engine.onnxruntime import OrtRunner, open_runner
from trtopt.engine.runner.binding import BoundRun
from trtopt.errors import CalibrationError, DataError, OutOfMemoryError
from trtopt.events import Event, Progress, Warned, silent

# Sums of powers of two are exact in any order, so batches and single samples give the same bits.
NET = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 4] x) => (float[n, 4] relu, float[n, 4] y)
<float[4, 4] w = {1, 0, 0, 2, 0, 1, 0, 0, 4, 0, 1, 0, 0, 0, 0, 1}> {
  m = MatMul(x, w)
  relu = Relu(m)
  y = Sqrt(relu)
}"""
# The Reshape has a constant batch of 1: joined samples end up in one row, and the softmax mixes them.
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
    """A model that binds with onnxruntime, records the batch sizes, and has memory for `room` samples."""

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


def assert_same(actual: Mapping[str, Histogram], runner: OrtRunner, data: Dataset, names: list[str] = NAMES) -> None:
    expected = observe(runner.run, names, data, stage="calibrate", emit=silent)
    assert list(actual) == list(expected)
    for name, histogram in expected.items():
        assert [p.tolist() for p in actual[name].counts()] == [p.tolist() for p in histogram.counts()]
        assert (actual[name].amax, actual[name].total) == (histogram.amax, histogram.total)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_batches_give_the_same_histograms_as_single_samples(tmp_path: Path, batch: int) -> None:
    model = Model(opened(tmp_path))
    assert_same(on_gpu(model, samples(20), batch), model.runner, samples(20))
    assert max(model.sizes) == max(min(batch, 20), 1)


def test_buffers_are_bound_once_for_all_batches_of_a_size(tmp_path: Path) -> None:
    model = Model(opened(tmp_path))
    on_gpu(model, samples(35), 8)
    assert model.sizes == [1, 2, 8, 3]  # the check of two samples, a full batch, the last batch


def test_out_of_memory_halves_the_batch_with_a_warning(tmp_path: Path) -> None:
    model, events = Model(opened(tmp_path), room=3), list[Event]()
    histograms = observe_on_gpu(
        OnGpu(bind=model.bind, gpu=HostGpu(), batch=8), NAMES, samples(11), stage="calibrate", emit=events.append
    )
    assert_same(histograms, model.runner, samples(11))
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert warned == [
        "out of GPU memory at batch 8; continuing with batch 4",
        "out of GPU memory at batch 4; continuing with batch 2",
    ]
    done = [event.done for event in events if isinstance(event, Progress)]
    assert done == [2, 4, 6, 8, 10, 11]


def test_out_of_memory_for_one_sample_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError):
        on_gpu(Model(opened(tmp_path), room=0), samples(4, batched=False))


def test_samples_that_a_model_mixes_are_run_one_by_one(tmp_path: Path) -> None:
    model = Model(opened(tmp_path, MIXING))
    assert_same(on_gpu(model, samples(6), names=["x", "y"]), model.runner, samples(6), ["x", "y"])
    assert set(model.sizes) == {1, 2}  # 2: the check whether joined samples stay independent


def test_samples_that_may_not_be_joined_are_run_one_by_one(tmp_path: Path) -> None:
    model = Model(opened(tmp_path))
    assert_same(on_gpu(model, samples(6, batched=False)), model.runner, samples(6, batched=False))
    assert model.sizes == [1]


def test_outputs_whose_shape_depends_on_the_values_are_bound_again(tmp_path: Path) -> None:
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


def test_masks_are_counted_apart(tmp_path: Path) -> None:
    histogram = on_gpu(Model(opened(tmp_path)), samples(12, values={0: -1e9, 9: 1e9}), 4)["x"].unmasked()
    assert histogram.amax < 1e3


@pytest.mark.parametrize("index", [0, 9])
def test_nan_names_the_tensor_and_the_sample(tmp_path: Path, index: int) -> None:
    data = samples(12, values={index: np.nan})
    with pytest.raises(CalibrationError, match=f"tensor 'x' is NaN for sample s{index}:"):
        on_gpu(Model(opened(tmp_path)), data, 4)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="tensor 'ghost' was not observed"):
        on_gpu(Model(opened(tmp_path)), samples(2), names=["x", "ghost"])


def test_no_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="here holds no samples"):
        on_gpu(Model(opened(tmp_path)), samples(0))
