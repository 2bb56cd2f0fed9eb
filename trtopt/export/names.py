"""Readable names for the dynamic dimensions of an exported model, which frameworks call s77 or unk__12.

Touches: rewrites the ONNX file in place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.graph.file import load_proto
from trtopt.graph.parsed import own

if TYPE_CHECKING:
    import onnx


def name_dims(path: Path) -> None:
    """Rename the dynamic dimensions: the first axis becomes `batch`, others `<input>_dim<axis>` (`mask_dim1`).

    Dimensions that share a symbol, because the framework knows that they are equal, share the new name too. If the
    first axes of two inputs have different symbols, only the first of them becomes `batch`.
    """
    import onnx

    model = own(load_proto(path))
    new_names: dict[str, str] = {}  # by symbol
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            symbol = dim.dim_param
            if symbol and symbol not in new_names:
                is_batch = axis == 0 and "batch" not in new_names.values()
                new_names[symbol] = "batch" if is_batch else f"{value.name}_dim{axis}"
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            # tf2onnx writes unk__N for a size that it does not know: leave it to shape inference.
            if dim.dim_param.startswith("unk__") and dim.dim_param not in new_names:
                dim.ClearField("dim_param")
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        _rename(value, new_names)
    onnx.save(model, str(path))


def _rename(value: onnx.ValueInfoProto, new_names: dict[str, str]) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_param"):
            # Rename every word, as a symbol may be part of an expression: 2*s77.
            dim.dim_param = re.sub(r"\w+", lambda word: new_names.get(word.group(), word.group()), dim.dim_param)
