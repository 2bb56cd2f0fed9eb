"""Audit of the achieved precision: read back from TensorRT and compared with the decisions, never assumed from a flag.

The parser records for each layer the ONNX node that it comes from, and a strongly typed network computes in exactly the
types of its tensors. So the parsed network tells the precision of every node, even without a GPU.

Touches: nothing on disk.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtopt.engine.trt.diagnosis import logger, onnx_node
from trtopt.engine.trt.locate import TensorRT
from trtopt.errors import AuditError
from trtopt.types import Decision, TypedModel

NOT_FOUND = "folded"
"""Key for the number of nodes without a layer: TensorRT's parser evaluated them as constants or dropped them."""

# TensorRT's types and trtopt's names for them. `_precision` needs FP32 first.
_FLOATS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
_QUANTIZED = {"int8": "INT8", "fp8": "FP8"}
# Layer types with two quantized operands, and the ONNX operators of which one layer at least must remain.
_WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_NEVER_FOLDED = frozenset("Conv ConvTranspose Gemm MatMul".split())
_NO_ARITHMETIC = ("CONSTANT", "CAST", "QUANTIZE", "DEQUANTIZE", "SHAPE")
_MOVES = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE")
"""Layers across which TensorRT moves DEQUANTIZE."""
_SHOWN = 4
# Patterns of the types in the engine inspector's JSON. The order matters: "BFloat16" contains "Float16" and "Float".
_INSPECTED = (
    ("int8", r"int8"),
    ("fp8", r"fp8|e4m3"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("fp32", r"fp32|float"),
)


def audit_network(trt: TensorRT, network: Any, typed: TypedModel) -> Mapping[str, int]:
    """Compare every decision of `typed` with the parsed network, and return the number of nodes by achieved precision.

    A node decided in 16 bits counts as `fp32`, without an error, if TensorRT's parser computes it in FP32 between casts
    of its own. It does so for ReduceL2, RMSNormalization and others whose sums overflow, and no graph can change that.
    The key `folded` counts nodes without a layer. A convolution or matrix product always has one.

    Raises:
        AuditError: a node computes in another type than decided; a convolution or product is missing in the network; or
            no node is found in it at all.
    """
    parsed = _read(trt, network, typed)
    counts: Counter[str] = Counter()
    faults = []
    for decision in typed.decisions:
        achieved = _precision(parsed, decision)
        counts[achieved] += 1
        if achieved == NOT_FOUND:
            if decision.op in _NEVER_FOLDED:
                faults.append(f"{decision.op} node {decision.node}, decided as {decision.precision}, is missing")
        elif not trt.can.strong_typing and decision.precision not in _QUANTIZED:
            pass  # a weakly typed network is in FP32: only the built engine tells
        elif achieved != decision.precision and not _widened(parsed, decision, achieved):
            faults.append(f"{decision.op} node {decision.node} is {achieved}, not {decision.precision}")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise AuditError(
            f"{len(faults)} of {len(typed.decisions)} nodes do not have the decided precision in TensorRT's network",
            why="; ".join(faults[:_SHOWN]) + more,
            fix="No engine was built. Convert the FP32 model again, and use --precision fp32 if the error persists",
        )
    if typed.decisions and counts[NOT_FOUND] == len(typed.decisions):
        raise AuditError(
            "the precision of the engine cannot be audited",
            why="the network that TensorRT parsed contains none of the model's nodes",
            fix="Give the model's nodes names, and convert again",
        )
    return dict(sorted(counts.items()))


def inspect_engine(trt: TensorRT, plan: Any) -> list[Mapping[str, Any]] | None:
    """Return the layers of a serialized engine, as the engine inspector describes them. A fused layer is one layer.

    The result is None if the engine cannot be loaded here: without a driver, or on another GPU than it was built for.
    """
    collector = logger(trt.module.__name__)
    runtime = trt.module.Runtime(collector)
    engine = runtime.deserialize_cuda_engine(plan)
    collector.errors.clear()  # a failure is expected on machines without a GPU, and must not appear in later errors
    return None if engine is None else layers_of(trt, engine)


def layers_of(trt: TensorRT, engine: Any) -> list[Mapping[str, Any]]:
    """Return the layers of a loaded engine, as `inspect_engine`."""
    return described(engine.create_engine_inspector().get_engine_information(trt.module.LayerInformationFormat.JSON))


def described(text: str) -> list[Mapping[str, Any]]:
    """Return the layers in the engine inspector's JSON, without those that are only a name (low verbosity)."""
    return [layer for layer in json.loads(text).get("Layers", []) if isinstance(layer, dict)]


def count_inspected(layers: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
    """Return the number of layers by precision, from the engine inspector's layers; empty if they have no types.

    TensorRT 10 writes a sentence such as "Row major linear FP16 format" under `Format/Datatype`; 11 writes the type
    alone. Inputs and outputs of the engine (`Bindings` in 10, `I/O Tensors` in 11) are not layers.
    """
    counts: Counter[str] = Counter()
    for layer in layers:
        tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
        precisions = [precision for tensor in tensors if (precision := inspected(tensor))]
        # The first input decides; a layer without inputs, such as a constant, counts by its output.
        counts.update(precisions[:1])
    return dict(sorted(counts.items()))


def inspected(tensor: Mapping[str, Any]) -> str:
    """Return the precision of a tensor in the inspector's JSON, or "" if it is unknown."""
    text = " ".join(str(value) for key, value in tensor.items() if "datatype" in key.lower())
    return next((name for name, pattern in _INSPECTED if re.search(pattern, text, re.IGNORECASE)), "")


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Layer:
    type: str
    node: str
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Parsed:
    """Parsed network: the layers of each ONNX node, and the layer that produces each tensor.

    In a weakly typed network all tensors are FLOAT: `typed` is false.
    """

    by_node: Mapping[str, list[_Layer]]
    producers: Mapping[str, _Layer]
    typed: bool

    def upstream(self, tensors: Iterable[_Tensor], node: str) -> Iterator[_Layer]:
        """Yield the layers upstream of `tensors`, up to and including the first layer of another node on each path.

        Layers that only move values are passed, whatever node they are of.
        """
        pending, visited = [tensor.name for tensor in tensors], set()
        while pending:
            layer = self.producers.get(pending.pop())
            if layer is None or id(layer) in visited:
                continue
            visited.add(id(layer))
            yield layer
            # Layers that the parser added on its own belong to no node: look through them.
            if layer.node in ("", node) or layer.type in _MOVES:
                pending.extend(tensor.name for tensor in layer.inputs)


def layers_by_node(network: Any, typed: TypedModel) -> dict[str, list[Any]]:
    """Return the layers of a parsed network by the ONNX node that each comes from."""
    names = {decision.node for decision in typed.decisions}
    layers: dict[str, list[Any]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        layers.setdefault(onnx_node(layer, names), []).append(layer)
    return layers


def _read(trt: TensorRT, network: Any, typed: TypedModel) -> _Parsed:
    """Copy the layers of TensorRT's network into plain values, with the names of types instead of enumerators."""
    dtypes = {value: name for name, value in trt.module.DataType.__members__.items()}
    layer_types = {value: name for name, value in trt.module.LayerType.__members__.items()}
    names = {decision.node for decision in typed.decisions}
    by_node: dict[str, list[_Layer]] = {}
    producers: dict[str, _Layer] = {}

    def tensor(value: Any) -> _Tensor:
        return _Tensor(value.name, dtypes.get(value.dtype, str(value.dtype)))

    for index in range(network.num_layers):
        raw = network.get_layer(index)
        inputs = (raw.get_input(i) for i in range(raw.num_inputs))
        layer = _Layer(
            type=layer_types.get(raw.type, str(raw.type)),
            node=onnx_node(raw, names),
            inputs=tuple(tensor(value) for value in inputs if value is not None),
            outputs=tuple(tensor(raw.get_output(i)) for i in range(raw.num_outputs)),
        )
        by_node.setdefault(layer.node, []).append(layer)
        producers.update((value.name, layer) for value in layer.outputs)
    return _Parsed(by_node, producers, trt.can.strong_typing)


def _precision(parsed: _Parsed, decision: Decision) -> str:
    """Return the precision in which the network computes the node of a decision, or `NOT_FOUND`."""
    layers = [layer for layer in parsed.by_node.get(decision.node, []) if layer.type not in _NO_ARITHMETIC]
    if not decision.node or not layers:
        return NOT_FOUND
    if decision.precision in _QUANTIZED and _is_quantized(parsed, layers, decision):
        return decision.precision
    dtypes = {value.dtype for layer in layers for value in layer.outputs} & _FLOATS.keys()
    if not dtypes:  # such as a comparison, whose outputs are booleans: it computes in the type of its inputs
        dtypes = {value.dtype for layer in layers for value in layer.inputs} & _FLOATS.keys()
    # If the layers of a node differ in type, report the one that contradicts the decision. `_FLOATS` lists FP32 first.
    precisions = [name for dtype, name in _FLOATS.items() if dtype in dtypes] or [NOT_FOUND]
    return precisions[-1] if decision.precision == "fp32" else precisions[0]


def _is_quantized(parsed: _Parsed, layers: list[_Layer], decision: Decision) -> bool:
    """Return whether a node's operands come from DEQUANTIZE layers of the decided type.

    A convolution or product needs two such operands, any other node one.
    """
    products = [layer for layer in layers if layer.type in _WEIGHTED]
    quantized_dtype = _QUANTIZED[decision.precision]

    def is_dequantized(value: _Tensor) -> bool:
        return any(
            layer.type == "DEQUANTIZE" and (not parsed.typed or layer.inputs[0].dtype == quantized_dtype)
            for layer in parsed.upstream([value], decision.node)
        )

    # A layer with one input has its weights as a constant of its own, which is not quantized. A third input is the
    # bias, which stays in floating point.
    if products:
        return all(len(layer.inputs) > 1 and all(map(is_dequantized, layer.inputs[:2])) for layer in products)
    return any(is_dequantized(value) for layer in layers for value in layer.inputs)


def _widened(parsed: _Parsed, decision: Decision, achieved: str) -> bool:
    """Return whether the parser itself cast this node's 16-bit operands to FP32."""
    half = next((dtype for dtype, name in _FLOATS.items() if name == decision.precision), "")
    if achieved != "fp32" or half in ("", "FLOAT"):
        return False
    operands = [value for layer in parsed.by_node[decision.node] for value in layer.inputs]
    # Casts of the ONNX graph belong to a node. Those that the parser adds do not.
    return any(
        layer.type == "CAST" and not layer.node and layer.inputs[0].dtype == half and layer.outputs[0].dtype == "FLOAT"
        for layer in parsed.upstream(operands, decision.node)
    )
