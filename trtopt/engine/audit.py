"""The precision that was achieved, read back from TensorRT and held against what was decided; never from a flag.

The parser keeps, with each layer, the name of the ONNX node that it comes from; a strongly typed network computes in
exactly the types of its tensors. So the parsed network tells the precision of every node, without a GPU too.

Touches: nothing on disk.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtopt.engine.diagnosis import logger, onnx_node
from trtopt.engine.locate import TensorRT
from trtopt.errors import AuditError
from trtopt.types import Decision, TypedModel

NOT_FOUND = "folded"
"""The count of nodes that left no layer: TensorRT's parser computed them, or dropped them as unused."""

_FLOATS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_CODES = {"int8": "INT8", "fp8": "FP8"}
_WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_NEVER_FOLDED = frozenset("Conv ConvTranspose Gemm MatMul".split())
_NO_ARITHMETIC = ("CONSTANT", "CAST", "QUANTIZE", "DEQUANTIZE", "SHAPE")
_SHOWN = 4
_INSPECTED = (  # the order matters: "BF16" holds "F16", "BFloat16" holds "Float"
    ("int8", r"int8"),
    ("fp8", r"fp8|e4m3"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("fp32", r"fp32|float"),
)


def audit_network(trt: TensorRT, network: Any, typed: TypedModel) -> Mapping[str, int]:
    """Check every decision of `typed` against the parsed network; return the number of nodes by precision found.

    A node decided in 16 bits is counted as `fp32`, and is no fault, when TensorRT's parser computes it in FP32 between
    casts of its own (ReduceL2, RMSNormalization and others whose sums overflow): no graph could change that. `folded`
    counts nodes that left no layer; a convolution or product always leaves one.

    Raises:
        AuditError: a node computes in another type than was decided, or a convolution, a product or every node is not
            found.
    """
    parsed = _read(trt, network)
    counts: Counter[str] = Counter()
    faults = []
    for decision in typed.decisions:
        found = _precision(parsed, decision)
        counts[found] += 1
        if found == NOT_FOUND:
            if decision.op in _NEVER_FOLDED:
                faults.append(f"{decision.op} node {decision.node} is not in the network, to be {decision.precision}")
        elif found != decision.precision and not _widened(parsed, decision, found):
            faults.append(f"{decision.op} node {decision.node} is {found}, not {decision.precision}")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise AuditError(
            f"{len(faults)} of {len(typed.decisions)} nodes are not in the precision that was decided",
            why="; ".join(faults[:_SHOWN]) + more,
            fix="Nothing was built. Convert again from the FP32 model, with --precision fp32 if it stays",
        )
    if typed.decisions and counts[NOT_FOUND] == len(typed.decisions):
        raise AuditError(
            "the precision of the engine cannot be audited",
            why="none of the model's nodes is found in the network that TensorRT parsed",
            fix="Give the model's nodes names, and convert again",
        )
    return dict(sorted(counts.items()))


def audit_engine(trt: TensorRT, plan: Any) -> Mapping[str, int] | None:
    """Number of layers of a serialized engine by the type that they read, as the engine inspector tells it.

    A fused layer counts once. None where the engine cannot be loaded: no driver, or a GPU it was not built for.
    """
    collector = logger(trt.module.__name__)
    runtime = trt.module.Runtime(collector)
    engine = runtime.deserialize_cuda_engine(plan)
    collector.errors.clear()
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.module.LayerInformationFormat.JSON)
    return count_inspected(text)


def count_inspected(text: str) -> Mapping[str, int]:
    """Count the layers in the engine inspector's JSON by precision (empty when it holds no types).

    TensorRT 10 writes `Format/Datatype`, one sentence such as "Row major linear FP16 format"; 11 writes the type on
    its own. Engine inputs and outputs (`Bindings` in 10, `I/O Tensors` in 11) are not layers.
    """
    layers = json.loads(text).get("Layers", [])
    counts: Counter[str] = Counter()
    for layer in layers:
        if isinstance(layer, dict):
            tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
            names = [name for tensor in tensors if (name := _inspected(tensor))]
            counts.update(names[:1])
    return dict(sorted(counts.items()))


def _inspected(tensor: Mapping[str, Any]) -> str:
    text = " ".join(str(value) for key, value in tensor.items() if "datatype" in key.lower())
    return next((name for name, pattern in _INSPECTED if re.search(pattern, text, re.IGNORECASE)), "")


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    node: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """The parsed network: the layers of each ONNX node, and the layer that makes each tensor."""

    by_node: Mapping[str, list[_Layer]]
    makers: Mapping[str, _Layer]

    def before(self, tensors: Iterable[_Tensor], node: str) -> Iterator[_Layer]:
        """Layers upstream of the tensors: those of `node` or of no node, and the first ones of any other."""
        pending, seen = [tensor.name for tensor in tensors], set()
        while pending:
            layer = self.makers.get(pending.pop())
            if layer is None or id(layer) in seen:
                continue
            seen.add(id(layer))
            yield layer
            if layer.node in ("", node):
                pending.extend(tensor.name for tensor in layer.inputs)


def _read(trt: TensorRT, network: Any) -> _Parsed:
    dtypes = {value: name for name, value in trt.module.DataType.__members__.items()}
    kinds = {value: name for name, value in trt.module.LayerType.__members__.items()}
    by_node: dict[str, list[_Layer]] = {}
    makers: dict[str, _Layer] = {}

    def tensor(value: Any) -> _Tensor:
        return _Tensor(value.name, dtypes.get(value.dtype, str(value.dtype)))

    for index in range(network.num_layers):
        raw = network.get_layer(index)
        inputs = (raw.get_input(i) for i in range(raw.num_inputs))
        layer = _Layer(
            kind=kinds.get(raw.type, str(raw.type)),
            node=onnx_node(raw),
            inputs=tuple(tensor(value) for value in inputs if value is not None),
            outputs=tuple(tensor(raw.get_output(i)) for i in range(raw.num_outputs)),
        )
        by_node.setdefault(layer.node, []).append(layer)
        makers.update((value.name, layer) for value in layer.outputs)
    return _Parsed(by_node, makers)


def _precision(parsed: _Parsed, decision: Decision) -> str:
    layers = [layer for layer in parsed.by_node.get(decision.node, []) if layer.kind not in _NO_ARITHMETIC]
    if not decision.node or not layers:
        return NOT_FOUND
    if decision.precision in _CODES and _reads_codes(parsed, layers, decision):
        return decision.precision
    found = {value.dtype for layer in layers for value in layer.outputs} & _FLOATS.keys()
    # A comparison gives booleans: what it reads is what it computes in.
    found = found or {value.dtype for layer in layers for value in layer.inputs} & _FLOATS.keys()
    # The type that differs from the decision decides.
    names = [name for dtype, name in _FLOATS.items() if dtype in found] or [NOT_FOUND]
    return names[-1] if decision.precision == "fp32" else names[0]


def _reads_codes(parsed: _Parsed, layers: list[_Layer], decision: Decision) -> bool:
    """Whether a node's operands come from DEQUANTIZE layers: both of a product or convolution, else at least one."""
    products = [layer for layer in layers if layer.kind in _WEIGHTED]
    code = _CODES[decision.precision]

    def dequantized(value: _Tensor) -> bool:
        return any(
            layer.kind == "DEQUANTIZE" and layer.inputs[0].dtype == code
            for layer in parsed.before([value], decision.node)
        )

    # A kernel that is no tensor is a constant in the layer itself, so not quantized; the third operand is the bias.
    if products:
        return all(len(layer.inputs) > 1 and all(map(dequantized, layer.inputs[:2])) for layer in products)
    return any(dequantized(value) for layer in layers for value in layer.inputs)


def _widened(parsed: _Parsed, decision: Decision, found: str) -> bool:
    """Whether the parser itself cast this node's 16-bit operands up to FP32."""
    half = next((dtype for dtype, name in _FLOATS.items() if name == decision.precision), "")
    if found != "fp32" or half in ("", "FLOAT"):
        return False
    operands = [value for layer in parsed.by_node[decision.node] for value in layer.inputs]
    return any(
        layer.kind == "CAST" and not layer.node and layer.inputs[0].dtype == half and layer.outputs[0].dtype == "FLOAT"
        for layer in parsed.before(operands, decision.node)
    )
