"""Names for the dynamic dimensions of an exported model: frameworks call them s77 or unk__12.

Touches: rewrites the ONNX file in place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.export.onnx import load_proto

if TYPE_CHECKING:
    import onnx


def name_dims(path: Path) -> None:
    """Call the first axis `batch`, another one after its input and place (`mask_dim1`).

    Dimensions that the framework knows to be equal keep one name. A first axis of another size is named like the rest.
    """
    import onnx

    model = load_proto(path)
    names: dict[str, str] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            symbol = dim.dim_param
            if symbol and symbol not in names:
                batch = axis == 0 and "batch" not in names.values()
                names[symbol] = "batch" if batch else f"{value.name}_dim{axis}"
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__") and dim.dim_param not in names:
                dim.ClearField("dim_param")  # tf2onnx's word for not knowing; shape inference may know
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        _rename(value, names)
    onnx.save(model, str(path))


def _rename(value: onnx.ValueInfoProto, names: dict[str, str]) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_param"):
            # A symbol may stand inside an expression: 2*s77.
            dim.dim_param = re.sub(r"\w+", lambda found: names.get(found.group(), found.group()), dim.dim_param)
