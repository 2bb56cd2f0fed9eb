"""Export of TensorFlow and Keras models to ONNX, through a SavedModel and tf2onnx.

A Keras file is first converted to a SavedModel, so that one path serves both. Inputs and outputs keep their names,
their order in the signature and their layout: an NHWC input stays NHWC.

Touches: runs the source's graph, and so runs in a child process (`trtopt.export.child`); writes `source.onnx`, and a
SavedModel into a temporary folder.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.errors import DataError, ModelError
from trtopt.export.names import name_dims
from trtopt.export.request import Exported, Request
from trtopt.export.saved_model import Opened, check_inputs, load_keras, open_signature, save, tensorflow
from trtopt.export.text import brief
from trtopt.requires import require

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

FILE = "source.onnx"
_OPSET = 17  # at 18 tf2onnx 1.17 turns a GlobalAveragePool into a ReduceMean between Transposes
_CALL_PREFIX = r"^((Stateful)?PartitionedCall(_\d+)?/)+"
_MAX_WEIGHT_BYTES = 1_800_000_000  # tf2onnx writes one protobuf message, which is limited to 2 GiB


def name() -> str:
    """Return `TensorFlow` and its version."""
    return f"TensorFlow {tensorflow().__version__}"


def export(request: Request, folder: Path) -> Exported:
    """Export the source to `folder/source.onnx`.

    Raises:
        ModelError: the source cannot be loaded, or tf2onnx cannot convert it.
        UsageError: the source does not have the requested signature.
        MissingDependencyError: tensorflow or tf2onnx is not installed.
    """
    tf = tensorflow()
    require("tf2onnx")
    source = request.source
    path = folder / FILE
    with tempfile.TemporaryDirectory(prefix="trtopt-") as temporary:
        saved_model = source.text
        if source.kind == "keras":
            saved_model = temporary
            save(load_keras(source.text), saved_model, source.text)
        opened = open_signature(saved_model, request)
        check_inputs(tf, opened, source.text)
        _convert(opened, path, source.text)
        notes = _layout_notes(opened)
    name_dims(path)
    return Exported(path=path, framework=name(), notes=notes)


def run(request: Request, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> list[list[NDArray[np.generic]]]:
    """Run the source in TensorFlow and return its outputs for each feed, in the order of the exported model's outputs.

    Raises:
        DataError: the source fails on a feed.
        ModelError, UsageError: as `export`.
    """
    tf = tensorflow()
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
    """Return a function that runs the source on one feed and returns its outputs in order.

    A Keras model runs itself, not as the SavedModel that it is exported through, so that the comparison covers both
    conversions.
    """
    if request.source.kind != "keras":
        opened = open_signature(request.source.text, request)

        def call_signature(feed: Mapping[str, Any]) -> list[NDArray[np.generic]]:
            outputs = opened.function(**feed)
            return [outputs[key].numpy() for key in opened.outputs]

        return call_signature
    model = load_keras(request.source.text)

    def call_keras(feed: Mapping[str, Any]) -> list[NDArray[np.generic]]:
        # The exported inputs have the model's names, or at least its order.
        named = all(tensor.name in feed for tensor in model.inputs)
        flat = [feed[tensor.name] for tensor in model.inputs] if named else list(feed.values())
        packed = flat[0] if len(flat) == 1 else tf.nest.pack_sequence_as(model.input, flat)
        outputs = model(packed, training=False)
        return [tensor.numpy() for tensor in tf.nest.flatten(outputs)]

    return call_keras


def _layout_notes(opened: Opened) -> tuple[str, ...]:
    """Return a note for each image input in NHWC layout, as its data must be in that layout, too."""
    return tuple(
        f"input {key} stays NHWC: {spec.shape.as_list()}"
        for key, spec in opened.inputs.items()
        if spec.shape.rank == 4 and spec.shape[3] in (1, 3, 4)
    )


def _convert(opened: Opened, path: Path, text: str) -> None:
    """Convert the signature with tf2onnx and write it to `path`."""
    import onnx

    tf = tensorflow()
    convert = require("tf2onnx.convert")
    names = list(opened.inputs)
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name=f"in{i}") for i, spec in enumerate(opened.inputs.values())]
    size = sum(variable.shape.num_elements() * variable.dtype.size for variable in opened.function.variables)
    if size > _MAX_WEIGHT_BYTES:
        raise ModelError(
            f"{text} has {size / 1e9:.1f} GB of weights", why="tf2onnx writes at most 2 GB", fix="Give an ONNX file"
        )

    # Convert a function that takes and returns lists: tf2onnx keeps the order of a list, and not that of a dict.
    def flat(*tensors: Any) -> list[Any]:
        outputs = opened.function(**dict(zip(names, tensors, strict=True)))
        return [tf.identity(outputs[key], name=f"out{i}") for i, key in enumerate(opened.outputs)]

    try:
        model, _ = convert.from_function(tf.function(flat), input_signature=specs, opset=_OPSET)
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"tf2onnx cannot convert {text}",
            why=brief(error),
            fix="Replace the operation that it names, or give an ONNX file",
        ) from error
    _check_operators(model, text)
    onnx.save(_renamed(model, opened), str(path))


def _check_operators(model: onnx.ModelProto, text: str) -> None:
    """Raise ModelError if the model contains operators that ONNX does not have.

    tf2onnx leaves a TensorFlow operator that it does not support in the graph, with a warning only.
    """
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
            fix="Remove these from the model, or replace them with layers that ONNX supports",
        )


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return the graph and all its subgraphs."""
    graphs = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                graphs += _graphs(attribute.g)
    return graphs


def _renamed(model: onnx.ModelProto, opened: Opened) -> onnx.ModelProto:
    """Return the model with the inputs and outputs of the signature, by its names and in its order."""
    import onnx_ir as ir

    renamed = ir.from_proto(model)
    graph = renamed.graph
    # Free the names of the signature, which intermediate tensors may have.
    reserved = {*opened.inputs, *opened.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in reserved:
                value.name = f"{value.name}_inner"
    for value, output in zip(graph.outputs, opened.outputs, strict=True):
        value.name = output
    converted = {value.name: value for value in graph.inputs}
    graph.inputs.clear()
    for i, (input_name, spec) in enumerate(opened.inputs.items()):
        # tf2onnx drops an input that no node reads: add it again, as feeds contain it.
        value = converted.get(f"in{i}") or ir.Value(
            type=ir.TensorType(ir.DataType.from_numpy(spec.dtype.as_numpy_dtype)), shape=ir.Shape(spec.shape.as_list())
        )
        value.name = input_name
        graph.inputs.append(value)
    _shorten_names(renamed)
    return ir.to_proto(renamed)


def _shorten_names(model: ir.Model) -> None:
    """Remove the `StatefulPartitionedCall/` prefixes that TensorFlow adds to every name, in place.

    A name stays as it is if the shorter one would not be unique.
    """
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        # tf2onnx names the nodes that it adds `Transpose__12`, and their outputs after the layer.
        if re.fullmatch(r"\w+__\d+", node.name or ""):
            node.name = (node.outputs[0].name or "").partition(":")[0]
    values = [*model.graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
    for items in (nodes, values):
        short_names = {item.name: re.sub(_CALL_PREFIX, "", item.name or "") for item in items}
        counts = Counter(short_names.values())
        for item in items:
            short_name = short_names[item.name]
            if short_name and counts[short_name] == 1:
                item.name = short_name
