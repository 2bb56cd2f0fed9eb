from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtopt.calibrate import method_names
from trtopt.calibrate.observe import observe, tap
from trtopt.calibrate.table import make_table
from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.errors import CalibrationError, DataError, ModelError
from trtopt.events import Event, Progress, silent
from trtopt.graph.file import describe
from trtopt.types import OnnxModel

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(9, 1, 3, 8, 8)).astype(np.float32)


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.random.default_rng(len(name)).normal(size=shape).astype(np.float32), name)


@pytest.fixture(scope="module")
def proto() -> onnx.ModelProto:
    """Return a small network that also has an integer tensor, and an If whose branches consume `relu`."""
    branch = helper.make_graph(
        [helper.make_node("Neg", ["relu"], ["negated"])], "branch", [], [helper.make_empty_tensor_value_info("negated")]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["conv1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu"], "relu"),
        helper.make_node("Conv", ["relu", "w2"], ["conv2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["conv2", "relu"], ["sum"], "add"),
        helper.make_node("GlobalAveragePool", ["sum"], ["gap"], "gap"),
        helper.make_node("Flatten", ["gap"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"], "fc"),
        helper.make_node("ArgMax", ["logits"], ["class"], "argmax", axis=1),
        helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [
            weight("w1", 4, 3, 3, 3),
            weight("w2", 4, 4, 3, 3),
            weight("w3", 4, 10),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def model(proto: onnx.ModelProto, tmp_path: Path) -> OnnxModel:
    onnx.save(proto, tmp_path / "model.onnx")
    return describe(tmp_path / "model.onnx")


def runner(path: Path) -> Callable[[Feed], Mapping[str, Array]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def dataset(samples: Any = SAMPLES, order: Any = None) -> Dataset:
    order = list(range(len(samples)) if order is None else order)
    return Dataset(
        source="samples",
        digest="d",
        ids=tuple(f"s{i}" for i in order),
        load=lambda i: {"x": samples[order[i]]},
        batched=True,
    )


def tapped(model: OnnxModel, *tensors: str) -> onnx.ModelProto:
    path = model.path.with_name("tapped.onnx")
    tap(model, tensors, path)
    runner(path)  # onnxruntime accepts it
    return onnx.load(path)


def test_the_tensors_become_the_outputs_in_order(model: OnnxModel) -> None:
    assert [value.name for value in tapped(model, "flat", "relu", "flat").graph.output] == ["flat", "relu"]


def test_nodes_and_weights_that_no_output_needs_are_removed(model: OnnxModel) -> None:
    graph = tapped(model, "sum").graph
    assert [node.name for node in graph.node] == ["conv1", "relu", "conv2", "add"]
    assert {tensor.name for tensor in graph.initializer} == {"w1", "w2"}


def test_an_output_of_the_model_keeps_its_type(model: OnnxModel) -> None:
    output = tapped(model, "relu", "logits").graph.output[1]
    assert output.name == "logits"
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT


def test_tensors_that_a_subgraph_consumes_are_kept(model: OnnxModel) -> None:
    graph = tapped(model, "chosen").graph
    assert [node.name for node in graph.node] == ["conv1", "relu", "if"]
    run = runner(model.path.with_name("tapped.onnx"))
    assert run({"x": SAMPLES[0]})["chosen"].max() <= 0


def test_a_graph_input_does_not_become_an_output_but_one_output_is_kept(model: OnnxModel) -> None:
    assert [value.name for value in tapped(model, "x").graph.output] == ["logits"]


def test_an_initializer_listed_as_input_is_removed_from_both(proto: onnx.ModelProto, tmp_path: Path) -> None:
    old = onnx.ModelProto()
    old.CopyFrom(proto)
    old.graph.input.append(helper.make_tensor_value_info("w3", TensorProto.FLOAT, [4, 10]))
    onnx.save(old, tmp_path / "old.onnx")
    graph = tapped(describe(tmp_path / "old.onnx"), "relu").graph
    assert [value.name for value in graph.input] == ["x"]


def test_an_unknown_tensor_is_refused_with_a_suggestion(model: OnnxModel) -> None:
    with pytest.raises(ModelError, match=r"'relu1' cannot be observed.*Did you mean 'relu'"):
        tapped(model, "relu1")


def test_a_tensor_inside_a_subgraph_is_refused(model: OnnxModel) -> None:
    with pytest.raises(ModelError, match="'negated' cannot be observed: no node of the main graph"):
        tapped(model, "negated")


def test_external_data_is_referenced_not_copied(proto: onnx.ModelProto, tmp_path: Path) -> None:
    big = onnx.ModelProto()
    big.CopyFrom(proto)
    path = tmp_path / "model.onnx"
    onnx.save(big, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = describe(path)
    before = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    tap(model, ["relu"], tmp_path / "tapped.onnx")
    after = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert after.keys() - before.keys() == {"tapped.onnx"}
    np.testing.assert_array_equal(
        runner(tmp_path / "tapped.onnx")({"x": SAMPLES[0]})["relu"],
        runner_of_relu(proto, tmp_path)({"x": SAMPLES[0]})["relu"],
    )
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ModelError, match="external data"):
        tap(model, ["relu"], tmp_path / "elsewhere" / "tapped.onnx")


def runner_of_relu(proto: onnx.ModelProto, folder: Path) -> Callable[[Feed], Mapping[str, Array]]:
    (folder / "inline").mkdir()
    onnx.save(proto, folder / "inline" / "model.onnx")
    tap(describe(folder / "inline" / "model.onnx"), ["relu"], folder / "inline" / "tapped.onnx")
    return runner(folder / "inline" / "tapped.onnx")


TENSORS = ("x", "relu", "sum", "flat")


def observed(model: OnnxModel, data: Dataset, *, tensors: tuple[str, ...] = TENSORS, emit: Any = silent) -> Any:
    tap(model, tensors, model.path.with_name("tapped.onnx"))
    return observe(runner(model.path.with_name("tapped.onnx")), tensors, data, stage="calibrate", emit=emit)


def test_histograms_count_the_values_that_the_model_computes(model: OnnxModel) -> None:
    histograms = observed(model, dataset())
    assert tuple(histograms) == TENSORS
    run = runner(model.path.with_name("tapped.onnx"))
    relu = np.concatenate([run({"x": sample})["relu"] for sample in SAMPLES])
    assert histograms["relu"].amax == relu.max()
    assert histograms["relu"].zeros == np.count_nonzero(relu == 0)
    assert histograms["relu"].total == relu.size
    assert histograms["x"].amax == np.abs(SAMPLES).max()


@pytest.mark.parametrize("method", method_names())
def test_the_table_is_the_same_bit_for_bit_in_any_order_of_the_samples(model: OnnxModel, method: str) -> None:
    forward = dataset()
    shuffled = dataset(order=np.random.default_rng(1).permutation(len(SAMPLES)))
    tables = [make_table(method, observed(model, data), model=model, dataset=data) for data in (forward, shuffled)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("method", method_names())
def test_the_table_is_the_same_bit_for_bit_for_any_number_of_workers(model: OnnxModel, method: str) -> None:
    tap(model, TENSORS, model.path.with_name("tapped.onnx"))
    run, data = runner(model.path.with_name("tapped.onnx")), dataset()
    runs = [observe(run, TENSORS, data, stage="calibrate", emit=silent, callers=n) for n in (1, 2, 5)]
    tables = [make_table(method, histograms, model=model, dataset=data) for histograms in runs]
    assert tables[0] == tables[1] == tables[2]


def test_each_worker_runs_a_sample_at_the_same_time() -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    everyone = threading.Barrier(3, timeout=30)

    def run(feed: Feed) -> Mapping[str, Array]:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        everyone.wait()
        with lock:
            at_once -= 1
        return {}

    observe(run, ["x"], dataset(), stage="calibrate", emit=silent, callers=3)
    assert most == 3


def test_the_first_of_several_bad_samples_is_named_whichever_ends_first() -> None:
    def run(feed: Feed) -> Mapping[str, Array]:
        place = int(feed["x"][0, 0, 0, 0])
        time.sleep(0.05 if place == 2 else 0)
        return {"sum": np.full(3, np.nan if place in (2, 3) else 1.0, np.float32)}

    samples = np.broadcast_to(np.arange(9, dtype=np.float32)[:, None, None, None, None], SAMPLES.shape).copy()
    with pytest.raises(CalibrationError, match="'sum' is NaN for sample s2"):
        observe(run, ["sum"], dataset(samples), stage="calibrate", emit=silent, callers=4)


def test_each_run_gets_one_sample(model: OnnxModel) -> None:
    sizes = []

    def run(feed: Feed) -> Mapping[str, Array]:
        sizes.append(feed["x"].shape[0])
        return {}

    observe(run, ["x"], dataset(), stage="calibrate", emit=silent)
    assert sizes == [1] * len(SAMPLES)


def test_nan_names_the_tensor_and_the_sample(model: OnnxModel) -> None:
    samples = SAMPLES.copy()
    samples[4, 0, 1, 2, 3] = np.nan
    with pytest.raises(CalibrationError, match="tensor 'x' is NaN for sample s4"):
        observed(model, dataset(samples))


def test_an_integer_tensor_is_refused(model: OnnxModel) -> None:
    with pytest.raises(CalibrationError, match="'class' cannot be calibrated: its dtype is int64"):
        observed(model, dataset(), tensors=("relu", "class"))


def test_a_tensor_that_was_not_returned_is_named(model: OnnxModel) -> None:
    with pytest.raises(CalibrationError, match="'sum' was not observed"):
        observe(lambda feed: {}, ["x", "sum"], dataset(), stage="calibrate", emit=silent)


def test_no_samples_are_an_error(model: OnnxModel) -> None:
    with pytest.raises(DataError, match="holds no samples"):
        observed(model, replace(dataset(), ids=()))


def test_progress_is_reported_for_every_sample(model: OnnxModel) -> None:
    events: list[Event] = []
    observed(model, dataset(), emit=events.append)
    assert [(e.stage, e.done, e.total) for e in events if isinstance(e, Progress)] == [
        ("calibrate", i, 9) for i in range(1, 10)
    ]
    assert all("samples/s" in e.note for e in events if isinstance(e, Progress))
