"""TensorFlow and Keras to ONNX, through a SavedModel and tf2onnx.

A Keras file is loaded and exported as a SavedModel first, so that there is one way. Inputs and outputs keep their
names, their order in the signature, and their layout: an NHWC input stays NHWC.

Touches: runs the source's graph, and so runs in a child process (`trtopt.export.child`); writes `source.onnx`, and a
SavedModel into a temporary folder.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.errors import DataError, ModelError, UsageError
from trtopt.export.names import name_dims
from trtopt.export.request import Exported, Request
from trtopt.export.text import brief
from trtopt.requires import require

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

FILE = "source.onnx"
_OPSET = 17  # at 18 tf2onnx 1.17 turns a GlobalAveragePool into a ReduceMean between Transposes
_DEFAULT_SIGNATURE = "serving_default"
_CALLS = r"^((Stateful)?PartitionedCall(_\d+)?/)+"
_LARGE_BYTES = 1_800_000_000


@dataclass(frozen=True, slots=True)
class _Opened:
    """A signature: the function, its inputs by name, the names of its outputs in order; `keep` holds the variables."""

    function: Any
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    keep: Any


def name() -> str:
    """Return `TensorFlow` and its version."""
    return f"TensorFlow {_tensorflow().__version__}"


def export(request: Request, folder: Path) -> Exported:
    """Write `folder/source.onnx`.

    Raises:
        ModelError: the source cannot be loaded, or tf2onnx cannot convert it.
        UsageError: it has no such signature.
        MissingDependencyError: tensorflow or tf2onnx is not installed.
    """
    tf = _tensorflow()
    require("tf2onnx")
    source = request.source
    path = folder / FILE
    with tempfile.TemporaryDirectory(prefix="trtopt-") as temporary:
        place = source.text
        if source.kind == "keras":
            place = temporary
            _save(_load_keras(source.text), place, source.text)
        opened = _open(place, request)
        _check_types(tf, opened, source.text)
        _convert(opened, path, source.text)
        layout = _layout(opened)
    name_dims(path)
    return Exported(path=path, framework=name(), notes=layout)


def run(request: Request, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> list[list[NDArray[np.generic]]]:
    """Return the outputs of the source itself for each feed, in the order of the exported model's.

    Raises:
        DataError: it fails on a feed; otherwise as `export`.
    """
    tf = _tensorflow()
    call = _caller(tf, request)
    results = []
    for feed in feeds:
        try:
            results.append(call({key: tf.constant(array) for key, array in feed.items()}))
        except Exception as error:
            shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in feed.items())
            raise DataError(f"{request.source.text} cannot be run on {shapes}", why=brief(error)) from error
    return results


def _caller(tf: Any, request: Request) -> Callable[[Mapping[str, Any]], list[NDArray[np.generic]]]:
    """What runs the source: a Keras model itself, not the SavedModel that is made from it."""
    if request.source.kind != "keras":
        opened = _open(request.source.text, request)

        def by_name(feed: Mapping[str, Any]) -> list[NDArray[np.generic]]:
            made = opened.function(**feed)
            return [made[key].numpy() for key in opened.outputs]

        return by_name
    model = _load_keras(request.source.text)

    def by_place(feed: Mapping[str, Any]) -> list[NDArray[np.generic]]:
        # An export calls its inputs as the model does, or keeps at least their order.
        named = all(tensor.name in feed for tensor in model.inputs)
        flat = [feed[tensor.name] for tensor in model.inputs] if named else list(feed.values())
        packed = flat[0] if len(flat) == 1 else tf.nest.pack_sequence_as(model.input, flat)
        made = model(packed, training=False)
        return [tensor.numpy() for tensor in tf.nest.flatten(made)]

    return by_place


def _tensorflow() -> Any:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    tf = require("tensorflow")
    tf.get_logger().setLevel("ERROR")
    return tf


def _load_keras(text: str) -> Any:
    keras = require("keras")
    try:
        model = keras.models.load_model(text, compile=False)
    except Exception as error:  # any layer's own code may fail
        raise ModelError(
            f"{text} cannot be loaded as a Keras model",
            why=brief(error),
            fix="Save it again with Keras 3, without Lambda layers or custom classes, or give a SavedModel",
        ) from error
    if not getattr(model, "inputs", None):
        raise ModelError(f"{text} has no inputs", why="it was never built", fix="Call it once on data before saving it")
    return model


def _save(model: Any, place: str, text: str) -> None:
    try:
        model.export(place, verbose=False)
    except Exception as error:  # any layer's own code may fail
        raise ModelError(f"{text} cannot be exported as a SavedModel", why=brief(error)) from error


def _open(place: str, request: Request) -> _Opened:
    tf = _tensorflow()
    try:
        loaded = tf.saved_model.load(place)
        signatures = dict(loaded.signatures)
    except Exception as error:
        raise ModelError(
            f"{request.source.text} cannot be loaded as a SavedModel", why=brief(error), fix="Save it again"
        ) from error
    wanted = request.signature or _DEFAULT_SIGNATURE
    if request.signature is None and wanted not in signatures and len(signatures) == 1:
        wanted = next(iter(signatures))
    if wanted not in signatures:
        there = f"it has {', '.join(sorted(signatures))}" if signatures else "it has none"
        fix = "Choose one with --signature" if signatures else "Save it with signatures=, or with Keras' model.export"
        raise UsageError(f"{request.source.text} has no signature {wanted}", why=there, fix=fix)
    function = signatures[wanted]
    return _Opened(
        function,
        dict(sorted(function.structured_input_signature[1].items())),  # a map in the file: its order is by chance
        tuple(sorted(function.structured_outputs, key=_place)),
        loaded,
    )


def _place(output: str) -> tuple[str, int]:
    """Keras calls the outputs output_0 to output_10: these are in the order of the numbers."""
    word, number = re.fullmatch(r"(.*?)(\d*)", output, re.DOTALL).groups()  # type: ignore[union-attr]
    return word, int(number or 0)


def _layout(opened: _Opened) -> tuple[str, ...]:
    """Say which inputs are pictures with their channels last: a recipe must feed them so."""
    return tuple(
        f"input {key} stays NHWC: {spec.shape.as_list()}"
        for key, spec in opened.inputs.items()
        if spec.shape.rank == 4 and spec.shape[3] in (1, 3, 4)
    )


def _check_types(tf: Any, opened: _Opened, text: str) -> None:
    for key, spec in opened.inputs.items():
        if spec.dtype == tf.string:
            raise ModelError(
                f"input {key} of {text} holds strings",
                why="TensorRT takes numbers only",
                fix="Choose a signature that takes tensors (--signature), or take the preprocessing out of the model",
            )
        if spec.shape.rank is None:
            raise ModelError(f"input {key} of {text} has no shape", why="TensorRT needs its number of dimensions")


def _convert(opened: _Opened, path: Path, text: str) -> None:
    import onnx

    tf = _tensorflow()
    convert = require("tf2onnx.convert")
    names = list(opened.inputs)
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=f"in{i}") for i, spec in enumerate(opened.inputs.values())]
    size = sum(variable.shape.num_elements() * variable.dtype.size for variable in opened.function.variables)
    if size > _LARGE_BYTES:
        raise ModelError(
            f"{text} has {size / 1e9:.1f} GB of weights", why="tf2onnx writes at most 2 GB", fix="Give an ONNX file"
        )

    # A list, not the dict: tf2onnx keeps the order of one and not of the other.
    def flat(*tensors: Any) -> list[Any]:
        made = opened.function(**dict(zip(names, tensors, strict=True)))
        return [tf.identity(made[key], name=f"out{i}") for i, key in enumerate(opened.outputs)]

    try:
        model, _ = convert.from_function(tf.function(flat), input_signature=specs, opset=_OPSET)
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"tf2onnx cannot convert {text}", why=brief(error), fix="Replace what it names, or give an ONNX file"
        ) from error
    _refuse_unknown(model, text)
    onnx.save(_named(model, opened), str(path))


def _refuse_unknown(model: onnx.ModelProto, text: str) -> None:
    """An operator that tf2onnx does not know stays in the graph as TensorFlow has it: find those."""
    import onnx

    unknown: dict[str, str] = {}
    for graph in _graphs(model.graph):
        for node in graph.node:
            if not onnx.defs.has(node.op_type, node.domain) and node.op_type not in unknown:
                unknown[node.op_type] = node.name
    if unknown:
        shown = ", ".join(f"{operator} ({node})" for operator, node in list(unknown.items())[:4])
        raise ModelError(
            f"tf2onnx cannot convert {text}",
            why=f"ONNX has no operator for TensorFlow's {shown}",
            fix="Take these out of the model, or replace them by layers that ONNX has",
        )


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(found for each in inner for found in _graphs(each))]


def _named(model: onnx.ModelProto, opened: _Opened) -> onnx.ModelProto:
    """The model with the signature's inputs and outputs, by its names and in its order."""
    import onnx_ir as ir

    graph = ir.from_proto(model)
    values = [value for node in graph.graph.all_nodes() for value in node.outputs]
    taken = {*opened.inputs, *opened.outputs}
    for value in values:
        if value.name in taken:
            value.name = f"{value.name}_inner"
    for value, wanted in zip(graph.graph.outputs, opened.outputs, strict=True):
        value.name = wanted
    found = {value.name: value for value in graph.graph.inputs}
    graph.graph.inputs.clear()
    for i, (wanted, spec) in enumerate(opened.inputs.items()):
        # An input that nothing reads is gone from tf2onnx's graph, and is still one of the signature's.
        value = found.get(f"in{i}") or ir.Value(
            type=ir.TensorType(ir.DataType.from_numpy(spec.dtype.as_numpy_dtype)), shape=ir.Shape(spec.shape.as_list())
        )
        value.name = wanted
        graph.graph.inputs.append(value)
    _shorten(graph)
    return ir.to_proto(graph)


def _shorten(model: ir.Model) -> None:
    """Take away the calls that TensorFlow puts in front of every name, where the rest is a name of its own."""
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        if re.fullmatch(r"\w+__\d+", node.name or ""):  # tf2onnx's own; its output is called after the layer
            node.name = (node.outputs[0].name or "").partition(":")[0]
    values = [*model.graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
    for named in (nodes, values):
        short = {each.name: re.sub(_CALLS, "", each.name or "") for each in named}
        counts = Counter(short.values())
        for each in named:
            if counts[short[each.name]] == 1 and short[each.name]:
                each.name = short[each.name]
