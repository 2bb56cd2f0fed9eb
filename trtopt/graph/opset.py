"""Conversion of a model to a newer opset.

onnxscript converts; what it does not adapt is refused, or mended here.

Touches: the onnx-ir model it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.graph.validity import root_line

if TYPE_CHECKING:
    import onnx_ir as ir

_RESIZE_HAS_MODES = 11  # the opset that added coordinate_transformation_mode and nearest_mode to Resize
_MEANING_CHANGED = {"Scan": 9, "Hardmax": 13}
"""Operators whose semantics changed in that opset, and which the version converters do not adapt."""


def raise_opset(model: ir.Model, source_opset: int, target: int) -> None:
    """Convert the model to the `target` opset in place.

    Raises:
        ModelError: an operator changed its semantics in between, or the converter fails.
    """
    from onnxscript import version_converter

    what = f"opset {source_opset} cannot be raised to {target}"
    fix = f"Export the model at opset {target}"
    for node in model.graph.all_nodes():
        changed_in = _MEANING_CHANGED.get(node.op_type, 0)
        if source_opset < changed_in:
            raise ModelError(what, why=f"{node.op_type} changed its meaning in opset {changed_in}", fix=fix)
    try:
        version_converter.convert_version(model, target, fallback=True)
    except Exception as error:
        raise ModelError(what, why=root_line(error), fix=fix) from error
    if model.opset_imports.get("", 0) != target:
        raise ModelError(what, why="the converter left it unchanged", fix=fix)
    if source_opset < _RESIZE_HAS_MODES:
        _keep_old_sampling(model)


def _keep_old_sampling(model: ir.Model) -> None:
    """Set the sampling points of every Resize to those of opset 10 and earlier, in place.

    Resize and Upsample then sampled at `x_resized / scale`, rounded down. Since opset 11 these are modes, and not the
    default ones; the converters leave them out.
    """
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        if node.op_type == "Resize":
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attributes[name] = ir.AttrString(name, value)
