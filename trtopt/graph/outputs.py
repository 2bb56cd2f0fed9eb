"""Types and shapes of outputs that a file leaves out, as tools write them that add an output to a graph.

ONNX's checker asks for both; onnxruntime and TensorRT infer them.

Touches: nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def completed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the types and shapes of its outputs: a copy, or the model itself if they are complete.

    An output of unknown rank gets the shape of a scalar, and one that ONNX cannot infer stays as it is. Weights that
    are outside of the file are empty in the copy, which can so be checked without them.
    """
    import onnx
    from onnx.external_data_helper import _get_all_tensors

    from trtopt.graph.defaults import with_defaults
    from trtopt.graph.parsed import own

    if not any(map(_lacks, proto.graph.output)):
        return proto
    copied = own(proto)
    with contextlib.suppress(Exception):  # it has several kinds for a malformed graph, which the checker explains
        inferred = onnx.shape_inference.infer_shapes(with_defaults(proto)).graph.output
        for output, found in zip(copied.graph.output, inferred, strict=True):
            output.CopyFrom(found)
    for output in copied.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.shape.SetInParent()
    for tensor in _get_all_tensors(copied):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.dims[:] = [0]
    return copied


def _lacks(output: onnx.ValueInfoProto) -> bool:
    """Return whether an output has no type, or is a tensor without a shape."""
    kind = output.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not output.type.tensor_type.HasField("shape"))
