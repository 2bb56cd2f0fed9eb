"""Configurations of random graphs: they parse, say what the graph is, and load in a real server."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trtopt.errors import UsageError
from trtopt.events import silent
from trtopt.graph.file import describe
from trtopt.serve import config, folders, repository, verify
from trtopt.serve.images import image
from trtopt.types import ShapeRange

pytest.importorskip("tritonclient")
COUNT = 40
TYPES = {
    "FLOAT": TensorProto.FLOAT,
    "FLOAT16": TensorProto.FLOAT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "INT8": TensorProto.INT8,
    "UINT8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
}
NAMES = st.from_regex(r"[a-z][a-z0-9_./:-]{0,10}", fullmatch=True)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, tuple[ShapeRange, ...]]:
    """Draw a graph of one to three inputs, each through one node to an output, and shapes of its dynamic inputs.

    The batch is free, fixed, or absent, and another dimension may be free. A node keeps a row, or joins all of them.
    """
    batch = draw(st.sampled_from(("n", "n", "n", "n", 4, None)))
    largest = draw(st.integers(2, 16))
    inputs, outputs, nodes, ranges = [], [], [], []
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    for i, name in enumerate(names):
        dims = draw(st.lists(st.sampled_from((1, 2, 3, 5, f"length{i}")), max_size=3))
        shape = ([] if batch is None else [batch]) + dims
        dtype = draw(st.sampled_from(sorted(TYPES)))
        shape = shape or [1]
        joins = len(shape) > 1 and draw(st.integers(0, 8)) == 0 and dtype in ("FLOAT", "INT32", "INT64")
        inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], shape))
        out = f"{name}_out"
        if joins:
            nodes.append(helper.make_node("ReduceSum", [name, "axis"], [out], keepdims=0))
            outputs.append(helper.make_tensor_value_info(out, TYPES[dtype], shape[1:]))
        else:
            nodes.append(helper.make_node("Identity", [name], [out]))
            outputs.append(helper.make_tensor_value_info(out, TYPES[dtype], shape))
        if any(isinstance(dim, str) for dim in shape):
            sizes = [{"n": size, f"length{i}": size + 1} for size in (1, min(2, largest), largest)]
            low, best, high = (tuple(of.get(dim, dim) for dim in shape) for of in sizes)  # type: ignore[misc]
            ranges.append(ShapeRange(name=name, min=low, opt=best, max=high))
    axis = numpy_helper.from_array(np.array([0], np.int64), "axis")
    graph = helper.make_graph(nodes, "net", inputs, outputs, [axis])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tuple(ranges)


def made(folder: Path, number: int, drawn: tuple[onnx.ModelProto, tuple[ShapeRange, ...]]) -> folders.Made:
    proto, ranges = drawn
    path = folder / f"{number}.onnx"
    onnx.save(proto, path)
    model = folders.Model(name=f"m{number}", runs=(folders.Source(onnx=describe(path)),), shapes=ranges)
    platform = "tensorrt" if number % 2 else "onnxruntime"
    return folders.make(model, folders.Options(image=image("26.03"), platform=platform), silent)  # type: ignore[arg-type]


def draw_all(folder: Path) -> list[folders.Made]:
    """Draw the same graphs each time."""
    found: list[folders.Made] = []

    @seed(7)
    @settings(max_examples=COUNT, database=None, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def collect(drawn: tuple[onnx.ModelProto, tuple[ShapeRange, ...]]) -> None:
        found.append(made(folder, len(found), drawn))

    collect()
    return found


def test_configurations_of_random_graphs_parse_and_state_the_graph(tmp_path: Path) -> None:
    models = draw_all(tmp_path)
    assert len(models) == COUNT
    batched = 0
    for each in models:
        own = each.folders[0].config
        assert config.parse(config.text(own)) == own
        model = each.claims[0].onnx
        assert [entry.name for entry in own.input] == [spec.name for spec in model.inputs]
        assert [entry.name for entry in own.output] == [spec.name for spec in model.outputs]
        for entry, spec in zip((*own.input, *own.output), (*model.inputs, *model.outputs), strict=True):
            assert len(entry.dims) == max(len(spec.shape) - (own.max_batch_size > 0), 1)
            assert entry.HasField("reshape") == (len(spec.shape) == (own.max_batch_size > 0))
        batched += own.max_batch_size > 0
    assert 10 < batched < COUNT


@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="pytriton is not installed")
def test_configurations_of_random_graphs_load_and_answer_as_the_runner(tmp_path: Path) -> None:
    models = draw_all(tmp_path)
    written = [folder for each in models for folder in each.folders]
    claims = [claim for each in models for claim in each.claims]
    with repository.staged(tmp_path / "repo", written) as stage:
        assert len(verify.verify(written, stage, claims)) == COUNT


def test_a_scalar_of_a_model_without_a_batch_axis_is_refused(tmp_path: Path) -> None:
    scalar = helper.make_tensor_value_info("x", TensorProto.FLOAT, [])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "net", [scalar], [out])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(UsageError, match="x is a scalar"):
        made(tmp_path, 0, (proto, ()))
