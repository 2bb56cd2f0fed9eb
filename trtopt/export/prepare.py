"""Make an FP32 ONNX model ready: shapes frozen, constants folded, batch norms folded, opset raised, nodes named.

The work is done by libraries: onnxslim folds and fuses (on the models that this was tried on it leaves fewer nodes than
onnxscript's optimizer, and it folds the Pad chains of older PyTorch exports); onnxscript converts opsets, and optimizes
the models that are too large for onnxslim, which keeps several copies of the weights in memory.

Touches: reads the source model; writes `fp32.onnx` (and `fp32.onnx.data`) into the folder it is given.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.export.onnx import describe, external_files, load_proto, opset
from trtopt.types import OnnxModel, ShapeRange

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGE_BYTES = 1_500_000_000
"""Weights above this stay on disk, memory-mapped, and go into an external data file (protobuf ends at 2 GiB)."""

_INLINE_BYTES = 1_000_000_000
BETWEEN_STAGES = 16 << 20
"""Bytes of weights that stay inside a file which only stages read: they read its graph more often than its weights."""
_RESIZE_HAS_MODES = 11
_MEANING_CHANGED = {"Scan": 9, "Hardmax": 13}
"""Operators whose meaning changed in that opset, and which the converters pass through as if it had not."""
_MAX_OPSET = 23  # what TensorRT 10.12's parser is documented to take


def prepare(source: Path, folder: Path, *, min_opset: int, profile: Sequence[ShapeRange]) -> OnnxModel:
    """Write the prepared model to `folder/fp32.onnx` and return its description.

    A dimension whose minimum and maximum in `profile` are equal becomes fixed. The opset is raised to `min_opset` when
    it is lower, never lowered.

    Raises:
        ModelError: the model is invalid, or its opset cannot be converted.
    """

    proto = load_proto(source)
    _check(source)
    notes = []
    weights = _weight_bytes(source, proto)
    nodes = len(proto.graph.node)
    with _quiet():
        if weights > LARGE_BYTES:
            model = _optimize_large(source, profile)
            notes.append(f"{weights / 1e9:.1f} GB of weights: optimized in place, without onnxslim")
        else:
            try:
                model = _optimize(source, profile)
            except Exception as error:  # noqa: BLE001 - whatever onnxslim stumbles over, the model is valid
                model = _optimize_large(source, profile)
                notes.append(f"optimized without onnxslim, which failed: {_first_line(error)}")
        was = opset(proto)
        if was < min_opset:
            _raise_opset(model, was, min_opset)
            notes.append(f"opset {was} raised to {min_opset}")
        elif was > _MAX_OPSET:
            notes.append(f"opset {was} is newer than TensorRT 10.12 takes ({_MAX_OPSET})")
        _finish(model)
    notes.insert(0, f"{nodes} nodes become {model.graph.num_nodes()}")
    unread = sorted(_input_names(proto) - {value.name or "" for value in model.graph.inputs})
    if unread:
        notes.append(f"dropped inputs that no output depends on: {', '.join(unread)}")
    path = folder / "fp32.onnx"
    save(model, path, inline=BETWEEN_STAGES)
    return describe(path, tuple(notes))


def _input_names(proto: onnx.ModelProto) -> set[str]:
    return {value.name for value in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}


def save(model: ir.Model, path: Path, *, inline: int = _INLINE_BYTES) -> None:
    """Write the model to `path`; weights of more than `inline` bytes in sum go to `path` + `.data` beside it."""
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > inline:
        ir.save(model, path, external_data=path.name + ".data")
    else:
        ir.external_data.load_to_model(model)
        ir.save(model, path)


def infer_shapes(model: ir.Model) -> None:
    """Add the types and shapes of all intermediate tensors in place, where onnx can infer them."""
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(data_prop=True)(model)


def check_types(path: Path) -> None:
    """Let onnx check a graph that trtopt wrote, every operator's types included: a wrong one is our defect.

    Raises:
        ModelError: the checker refuses it.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ModelError(
            f"{path.name} does not pass ONNX's checker", why=_first_line(error), fix="Please report it with the model"
        ) from error


def _check(source: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(source))
    except Exception as error:
        raise ModelError(
            f"{source} is not a valid ONNX model", why=_first_line(error), fix="Export it again"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip(" .\t") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _weight_bytes(source: Path, proto: onnx.ModelProto) -> int:
    files = [source, *(source.parent / name for name in external_files(proto))]
    return sum(file.stat().st_size for file in files)


def _optimize(source: Path, profile: Sequence[ShapeRange]) -> ir.Model:
    import onnx
    import onnx_ir as ir
    import onnxslim

    model = onnx.load(str(source))
    _freeze(model, profile)
    # Folding may not blow a small graph up into a large file: a folded constant is at most 1 MiB.
    slim: onnx.ModelProto = onnxslim.slim(model, size_threshold=1 << 20)
    return ir.from_proto(slim)


def _optimize_large(source: Path, profile: Sequence[ShapeRange]) -> ir.Model:
    import onnx
    import onnx_ir as ir
    from onnxscript import optimizer

    proto = onnx.load(str(source), load_external_data=False)
    _freeze(proto, profile)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, source.parent)
    optimizer.optimize_ir(model)
    return model


def _freeze(model: onnx.ModelProto, profile: Sequence[ShapeRange]) -> None:
    ranges = {entry.name: entry for entry in profile}
    frozen: dict[str, int] = {}
    for value in model.graph.input:
        entry = ranges.get(value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") or dim.dim_value < 1:
                if entry and entry.min[axis] == entry.max[axis]:
                    if dim.dim_param:
                        frozen[dim.dim_param] = entry.max[axis]
                    dim.dim_value = entry.max[axis]
                elif not dim.dim_param:
                    # An unnamed or -1 dimension: name it, so that shape inference can follow it.
                    dim.dim_param = f"{value.name}_dim{axis}"
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in frozen:
                dim.dim_value = frozen[dim.dim_param]
            elif dim.HasField("dim_value") and dim.dim_value < 1:
                dim.ClearField("dim_value")


def _raise_opset(model: ir.Model, was: int, target: int) -> None:
    from onnxscript import version_converter

    for node in model.graph.all_nodes():
        if was < _MEANING_CHANGED.get(node.op_type, 0):
            raise ModelError(
                f"opset {was} cannot be raised to {target}",
                why=f"{node.op_type} changed its meaning in opset {_MEANING_CHANGED[node.op_type]}",
                fix=f"Export the model at opset {target}",
            )
    try:
        version_converter.convert_version(model, target, fallback=True)
    except Exception as error:
        raise ModelError(
            f"opset {was} cannot be raised to {target}",
            why=_first_line(error),
            fix=f"Export the model at opset {target}",
        ) from error
    if model.opset_imports.get("", 0) != target:
        raise ModelError(
            f"opset {was} cannot be raised to {target}",
            why="the converter left it as it was",
            fix=f"Export the model at opset {target}",
        )
    if was < _RESIZE_HAS_MODES:
        _keep_old_sampling(model)


def _keep_old_sampling(model: ir.Model) -> None:
    """Resize and Upsample of opset 10 and before sample at `x_resized / scale`, which is no longer the default."""
    import onnx_ir as ir

    for node in model.graph.all_nodes():
        if node.op_type == "Resize":
            for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attributes[name] = ir.AttrString(name, value)


def _distinguish_nodes(model: ir.Model) -> None:
    """Give every node a name of its own, those of inner graphs included: TensorRT tells layers of both by that name."""
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        name, number = node.name or node.op_type, 1
        while name in taken:
            name, number = f"{node.name or node.op_type}_{number}", number + 1
        taken.add(name)
        node.name = name


def _finish(model: ir.Model) -> None:
    from onnx_ir.passes.common import (
        ClearMetadataAndDocStringPass,
        LiftConstantsToInitializersPass,
        NameFixPass,
        RemoveUnusedNodesPass,
        TopologicalSortPass,
    )

    # Names come last: TensorRT's layers, the report and the calibration table all speak of nodes and tensors by name.
    for step in (
        ClearMetadataAndDocStringPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        NameFixPass(),
    ):
        step(model)
    _distinguish_nodes(model)
    model.ir_version = max(model.ir_version, 10)  # the first that carries FP16 scales and INT4; TensorRT reads it
    infer_shapes(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the libraries log below errors: their remarks are about their own fallbacks, not the model."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "ONNXSlim", "onnxslim")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
