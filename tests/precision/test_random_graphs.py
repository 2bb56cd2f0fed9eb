"""Preparation, equalization, folding and typing keep the function of random graphs, within rounding."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from precision.grammar import Net, nets

from trtopt.calibrate.observe import tap
from trtopt.calibrate.ranges import ChannelRanges
from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.file import describe
from trtopt.graph.fold import fold
from trtopt.graph.prepare import check_types, infer_shapes, prepare, save
from trtopt.graph.query import float_nodes, is_float
from trtopt.graph.widen import in_fp32, is_in_fp32
from trtopt.precision import Request, precision
from trtopt.precision.passes import qdq
from trtopt.precision.passes.equalize import equalize
from trtopt.precision.passes.pairs import links
from trtopt.precision.passes.placement import place
from trtopt.precision.passes.smoothing import WAYS
from trtopt.types import CalibrationTable

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool")
STEP = {"fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 1e-4}  # INT8: the rest is in FP32
MARGIN = 8  # on the error of the yardstick, whose roundings are others
WIDER = (1.0, 1.03, 1.07)


def run(path: Path, net: Net, dtype: type | None = None) -> dict[str, Array]:
    feed = net.inputs(dtype)
    runner = open_runner(path)
    return runner.run({name: feed[name] for name in runner.inputs})


def errors(net: Net, found: Arrays) -> dict[str, float]:
    """Return the largest error of each floating-point output. The other outputs must be equal, and all shapes."""
    largest = {}
    for name in net.outputs:
        exact = {**net.tensors, **net.conditions}[name]
        assert found[name].shape == exact.shape, name
        if exact.dtype == bool:
            assert np.array_equal(found[name], exact), name
        else:
            largest[name] = float(np.abs(found[name].astype(np.float64) - exact).max())
            assert np.isfinite(largest[name]), name
    return largest


def yardstick(net: Net, folder: Path, kind: str) -> dict[str, float]:
    """Return the errors of the network in FP32 as it is, or with every tensor rounded to `fp16`, `bf16` or `int8`.

    The roundings of one scale may cancel: INT8 is rounded with several, and each error is the largest of theirs.
    """
    found = []
    for wider in WIDER if kind == "int8" else (1.0,):
        proto = net.model(np.float32)
        if kind != "fp32":
            rounded(proto, net, kind, wider)
        onnx.save(proto, folder / "yardstick.onnx")
        found.append(errors(net, run(folder / "yardstick.onnx", net, np.float32)))
    return {name: max(each[name] for each in found) for name in found[0]}


def rounded(proto: onnx.ModelProto, net: Net, kind: str, wider: float) -> None:
    """Round all tensors to a 16-bit type, or the inputs of the operators that INT8 may quantize, in place.

    The INT8 scales are `wider` than the values need.
    """
    graph, nodes = proto.graph, list(proto.graph.node)
    known = {name: array for name, array in {**net.tensors, **net.weights}.items() if array.dtype == np.float64}
    for name, array in known.items():
        low, high = f"{name}/low", f"{name}/rounded"
        if kind == "int8":
            scale, zero = f"{name}/scale", f"{name}/zero"
            amax = np.float32(wider * np.abs(array).max() / 127 or 1)
            graph.initializer.append(numpy_helper.from_array(np.array(amax), scale))
            graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
            pair = [helper.make_node("QuantizeLinear", [name, scale, zero], [low]),
                    helper.make_node("DequantizeLinear", [low, scale, zero], [high])]  # fmt: skip
        else:
            half = onnx.TensorProto.FLOAT16 if kind == "fp16" else onnx.TensorProto.BFLOAT16
            pair = [helper.make_node("Cast", [name], [low], to=half),
                    helper.make_node("Cast", [low], [high], to=onnx.TensorProto.FLOAT)]  # fmt: skip
        for node in nodes:
            if kind != "int8" or node.op_type in QUANTIZED:
                node.input[:] = [high if value == name else value for value in node.input]
        at = next((i + 1 for i, node in enumerate(nodes) if name in node.output), 0)
        nodes[at:at] = pair
    del graph.node[:]
    graph.node.extend(nodes)


def within(net: Net, found: Arrays, limits: Mapping[str, float], step: float, what: str) -> None:
    """Assert that the errors do not exceed the yardstick's by much; `step` is the relative error of one rounding."""
    largest = max(float(np.abs(array).max()) for array in net.tensors.values())
    for name, error in errors(net, found).items():
        limit = MARGIN * limits[name] + step * max(np.abs(net.tensors[name]).max(), 0.01 * largest)
        assert error <= limit, f"{what}: the error of {name} is {error:.3g}, more than {limit:.3g}"


def observed(path: Path, net: Net) -> tuple[dict[str, float], dict[str, Array]]:
    """Return the absmax and the values of all floating-point tensors of a graph."""
    model = ir.load(path)
    names = [value.name or "" for node in float_nodes(model.graph) for value in node.outputs if is_float(value)]
    names = [name for name in names if name]
    tap(describe(path), names, path.with_name("tapped.onnx"))
    feed = net.inputs()
    values = {**feed, **open_runner(path.with_name("tapped.onnx")).run(feed)}
    floating = {name: array for name, array in values.items() if array.dtype.kind == "f"}
    return {name: float(np.abs(array.astype(np.float64)).max()) for name, array in floating.items()}, values


def equalized(source: Path, path: Path, net: Net) -> None:
    model = ir.load(source)
    found = links(model)
    _, values = observed(source, net)
    ranges = ChannelRanges({link.name: link.axis for link in found})
    ranges.add(values)
    equalize(model, found, ranges.result(), WAYS[net.rng.integers(len(WAYS))])
    infer_shapes(model)
    save(model, path)
    check_types(path)


def folded(source: Path, path: Path) -> None:
    model = ir.load(source)
    infer_shapes(model)
    fold(model)
    save(model, path)


def typed(source: Path, path: Path, name: str, request: Request) -> None:
    model = ir.load(source)
    precision(name).apply(model, request)
    save(model, path)
    check_types(path)


def table(path: Path, ranges: Mapping[str, float]) -> CalibrationTable:
    """Return minmax scales."""
    return CalibrationTable(
        method="minmax",
        scales={name: max(ranges[name], 1e-6) / qdq.INT8.max for name in place(ir.load(path)).tensors()},
    )


def check_net(net: Net, kind: str) -> None:
    """Assert it for all steps, and for the type `kind`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.onnx"
        onnx.save(net.model(), source)
        exact = yardstick(net, folder, "fp32")
        narrow = 2.0**-10 if net.dtype == np.float16 else 1e-4  # outputs of a float16 network are cast to float16
        if not is_in_fp32(source):
            source = folder / "widened.onnx"
            in_fp32(folder / "model.onnx", source)
            within(net, run(source, net), exact, narrow, "widened")
        folded(source, folder / "folded.onnx")
        within(net, run(folder / "folded.onnx", net), exact, narrow, "folded")
        prepared = prepare(source, folder, min_opset=19, profile=()).path
        within(net, run(prepared, net), exact, narrow, "prepared")
        equalized(prepared, folder / "equalized.onnx", net)
        within(net, run(folder / "equalized.onnx", net), exact, narrow, "equalized")
        ranges, _ = observed(prepared, net)
        scales = table(prepared, ranges) if kind == "int8" else None
        typed(prepared, folder / "typed.onnx", kind, Request(rest="fp32", ranges=ranges, table=scales))
        within(net, run(folder / "typed.onnx", net), yardstick(net, folder, kind), max(STEP[kind], narrow), kind)


@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(sorted(STEP)))
def test_every_step_keeps_the_function(net: Net, kind: str) -> None:
    check_net(net, kind)


@pytest.mark.nightly
@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
@given(nets(), st.sampled_from(sorted(STEP)))
def test_every_step_keeps_the_function_of_many(net: Net, kind: str) -> None:
    check_net(net, kind)
