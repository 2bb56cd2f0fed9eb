"""The outcome of a node test in FP32, FP16 and INT8: what trtopt makes of it, judged against what ONNX expects.

FP32 must agree within the tolerances of the test, FP16 reach 45 dB in true 16-bit arithmetic, and INT8 20 dB with every
weighted operator quantized for which INT8 pays. What is refused must be refused in one line of trtopt's own errors.

Touches: temporary folders.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from node_cases import Array, Case

PRECISIONS = ("fp32", "fp16", "int8")
ENOUGH = {"fp16": 45.0, "int8": 20.0}
"""SQNR in dB that every floating-point output must have."""

MIN_CHANNELS, MIN_SIZE = 8, 16
"""Channels of a convolution, and inner and outer dimensions of a product, from which INT8 pays."""

_EPSILONS = {onnx.TensorProto.FLOAT16: 2.0**-10, onnx.TensorProto.BFLOAT16: 2.0**-7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a case in one precision.

    Attributes:
        status: `passed`; `refused` by one of trtopt's errors; `other` if onnxruntime itself computes something else
            than ONNX from the network as it is; `coarse` if the test means nothing in so few bits; or `fault`.
        reason: why it did not pass.
        quantized: the number of weighted operators in INT8.
    """

    status: str
    reason: str = ""
    quantized: int = 0


def outcomes(case: Case) -> dict[str, Outcome]:
    """Return the outcome of a case in each precision. Warnings of trtopt's own are faults."""
    found: dict[str, Outcome] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory(prefix="trtopt-operators-") as folder:
                found[precision] = _outcome(case, precision, Path(folder))
    return found


def _outcome(case: Case, precision: str, folder: Path) -> Outcome:
    from trtopt.commands.convert import convert
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.errors import TrtoptError
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan
    from trtopt.shapes import parse_shapes

    source = case.write(folder)
    data = DataPlan(source=str(folder / "samples"))
    plan = ConvertPlan(
        source=source,
        precision=precision,
        run_dir=folder / "run",
        data=data,
        calib=data if precision == "int8" else None,
        shapes=parse_shapes(case.shapes()),
        build=BuildPlan(backend="onnxruntime"),
    )
    try:
        _, unable = convert(plan)
        if unable is not None:
            raise unable
        result = open_runner(folder / "run/typed.onnx").run(case.feed)
    except TrtoptError as error:
        line = _without_paths(str(error), folder)
        # trtopt asks for a report where its own graph is wrong.
        return Outcome(
            status="fault" if "report it" in line or error.exit_code not in (2, 3) else "refused", reason=line
        )
    except Exception as error:  # noqa: BLE001 - whatever is not one of trtopt's errors is a fault
        return Outcome(status="fault", reason=f"internal error: {type(error).__name__}: {error}")
    widened = folder / "run/widened.onnx"  # what trtopt makes of a network in another type
    baseline = widened if widened.exists() else source
    if precision == "fp32":
        return _judged_exact(case, result, baseline)
    count, missing = quantized(folder / "run") if precision == "int8" else (0, [])
    if missing:
        return Outcome(status="fault", reason=f"not quantized: {', '.join(missing)}")
    return _judged_rounded(case, precision, result, baseline, count)


def _without_paths(line: str, folder: Path) -> str:
    line = re.sub(rf"{re.escape(str(folder))}/(run/|samples/)?", "", line)
    return re.sub(r" on (\w+ \[[^]]*\](, )?)+:", ":", line)


def _judged_exact(case: Case, result: Mapping[str, Any], baseline: Path) -> Outcome:
    why = _difference(case, result)
    if not why:
        return Outcome(status="passed")
    if _difference(case, _run(baseline, case.feed)):
        return Outcome(status="other", reason="onnxruntime itself computes something else than ONNX defines")
    return Outcome(status="fault", reason=why)


def _difference(case: Case, result: Mapping[str, Any]) -> str:
    """Return the first output that is not what ONNX expects, within the tolerances of the test; empty if none."""
    types = {value.name: value.type.tensor_type.elem_type for value in case.model.graph.output}
    for name, expected in case.expected.items():
        if expected is None:
            continue
        # FP32 is more exact than an expectation that was computed in 16 bits.
        rtol = max(case.rtol, 4 * _EPSILONS.get(types[name], 0.0))
        atol = max(case.atol, _EPSILONS.get(types[name], 0.0))
        found = np.asarray(result[name])
        if found.dtype.kind != expected.dtype.kind or found.shape != expected.shape:
            return f"{name} is {found.dtype} {found.shape}, not {expected.dtype} {expected.shape}"
        if expected.dtype.kind not in "fiub":
            if found.tobytes() != expected.tobytes():  # FP8, whose NaN would differ from itself
                return f"{name} differs"
        elif not np.allclose(found.astype(np.float64), expected.astype(np.float64), rtol, atol, equal_nan=True):
            return f"{name} differs"
    return ""


def _judged_rounded(case: Case, precision: str, result: Mapping[str, Any], baseline: Path, quantized: int) -> Outcome:
    """Compare with FP32 as onnxruntime computes it, whose own deviations from ONNX are counted under FP32."""
    reference = _run(baseline, case.feed)
    why = shortfall(reference, result, ENOUGH[precision])
    if not why:
        return Outcome(status="passed", quantized=quantized)
    rounded = shortfall(reference, _run(baseline, {name: _to_half(a) for name, a in case.feed.items()}), ENOUGH["fp16"])
    if rounded:
        return Outcome(status="coarse", reason="rounding the inputs to FP16 alone changes the result as much")
    return Outcome(status="fault", reason=why)


def _run(path: Path, feed: Mapping[str, Array]) -> dict[str, Any]:
    """Return the outputs of a network as it is, by plain onnxruntime without its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = {value.name: value.type for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {name: feed[name] for name in inputs}), strict=True))


def _to_half(array: Array) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(array.dtype) if array.dtype.kind == "f" else array


def shortfall(reference: Mapping[str, Any], result: Mapping[str, Any], enough: float) -> str:
    """Return why the outputs are not good enough; empty if they are.

    NaN and infinities must be where they are in the reference, and outputs that are not floating-point must be equal.
    """
    for name, exact in reference.items():
        found = result[name]
        if not isinstance(exact, np.ndarray):
            continue
        if found.shape != exact.shape:
            return f"{name} has the shape {found.shape}, not {exact.shape}"
        if exact.dtype.kind != "f":
            if not np.array_equal(found, exact):
                return f"{name} differs in {np.mean(found != exact):.0%} of the values"
            continue
        x, y = exact.astype(np.float64), found.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
            return f"{name} is NaN or infinite elsewhere"
        signal, error = np.square(x[finite]).sum(), np.square(x[finite] - y[finite]).sum()
        if error and (not signal or 10 * np.log10(signal / error) < enough):
            return f"{name} has {10 * np.log10(signal / error):.1f} dB" if signal else f"{name} is not 0"
    return ""


def quantized(run: Path) -> tuple[int, list[str]]:
    """Return how many weighted operators read quantized inputs, and those that should and do not."""
    prepared, typed = onnx.load(run / "fp32.onnx"), onnx.load(run / "typed.onnx")
    makers = {name: node.op_type for node in typed.graph.node for name in node.output}
    in_int8 = {
        node.name
        for node in typed.graph.node
        if len(node.input) > 1 and [makers.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
    }
    should = [node.name for node in prepared.graph.node if _pays(node, prepared.graph)]
    weighted = {
        node.name for node in prepared.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    }
    return len(in_int8 & weighted), [name for name in should if name not in in_int8]


def _pays(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Return whether rules 1 and 8 of `docs/placement.md` ask for INT8: written here again, independently of trtopt."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known = dict(shapes)
    for value in [*graph.input, *graph.value_info]:
        known[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    weight, x = shapes.get(node.input[1]), known.get(node.input[0])
    if weight is None or x is None or node.input[0] in shapes or len(weight) < 2 or len(x) < 2:
        return False
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type.startswith("Conv"):
        return min(weight[0], weight[1] * attributes.get("group", 1)) >= MIN_CHANNELS
    rows = x[-1] if attributes.get("transA") else x[-2]
    return rows != 1 and min(weight[-2:]) >= MIN_SIZE
