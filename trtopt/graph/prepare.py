"""Preparation of an FP32 ONNX model: shapes frozen, constants and batch norms folded, opset raised, nodes named.

Libraries do the work:
    onnxslim    folds and fuses. On the models tried it leaves fewer nodes than onnxscript's optimizer, and it folds
                the Pad chains of older PyTorch exports.
    onnxscript  converts opsets. It also optimizes the models that are too large for onnxslim, which keeps several
                copies of the weights in memory.
What exporters write in several ways gets one form: see `sums`, `einsum`, `attention`, `softmax`, `affine` and `clips`.

Touches: reads the source model; writes `fp32.onnx` (and `fp32.onnx.data`) into the folder it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.graph.affine import fold_affine
from trtopt.graph.attention import expand_attention
from trtopt.graph.clips import merge_limits
from trtopt.graph.defaults import state_defaults, with_defaults
from trtopt.graph.einsum import expand_einsums
from trtopt.graph.file import describe, external_files, load_proto, opset, quiet
from trtopt.graph.fold import fold
from trtopt.graph.foreign import infer_foreign
from trtopt.graph.opset import raise_opset
from trtopt.graph.parsed import own
from trtopt.graph.softmax import unflatten_softmax
from trtopt.graph.spelled import spell_out
from trtopt.graph.sums import expand_sums
from trtopt.graph.validity import check, contradiction, root_line
from trtopt.types import OnnxModel, ShapeRange
from trtopt.wording import counted

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

LARGE_BYTES = 1_500_000_000
"""Models with more weights than this are optimized with the weights on disk, memory-mapped.

Their weights are stored as external data: a protobuf message is limited to 2 GiB.
"""

_HARMFUL = ["FusionGemm", "FusionConvMul", "FusionConvTransposeMul"]
"""Rewrites of onnxslim that are left out.

The first would write a MatMul of fixed shapes as Reshape, Gemm and Reshape. The others would take a factor along the
width of an image for one per channel if there are as many; `fold_affine` does what they should.
"""
_INLINE_BYTES = 1_000_000_000
BETWEEN_STAGES = 16 << 20
"""Bytes of weights up to which a file passed from stage to stage stores them inline.

Stages read its graph more often than its weights, and parsing the graph alone is fast when they are external.
"""
_SEQUENCES = frozenset(
    "SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceMap SplitToSequence".split()
)
"""Operators that return a sequence of tensors."""
_MAX_OPSET = 23  # the newest that TensorRT 10.12's parser is documented to support


def prepare(
    source: Path, folder: Path, *, min_opset: int, profile: Sequence[ShapeRange], lacks: Collection[str] = ()
) -> OnnxModel:
    """Write the prepared model to `folder/fp32.onnx` and return its description, with notes on what was changed.

    Args:
        source: the model, which stays as it is.
        folder: where to write.
        min_opset: the opset is raised to this when it is lower, and never lowered.
        profile: shape ranges by input. A dimension whose minimum and maximum are equal becomes fixed.
        lacks: operators that the parser lacks; they are written out where `graph.spelled` can.

    Raises:
        ModelError: the model is invalid, or its opset cannot be converted.
    """
    proto = load_proto(source)
    check(source, proto)
    path, weight_bytes = folder / "fp32.onnx", _weight_bytes(source, proto)
    is_large = weight_bytes > LARGE_BYTES
    failure = why = ""
    # onnxslim gets some shapes wrong, and some subgraphs: that shows as a contradiction. Then it is used without its
    # shapes, and then not at all.
    for optimize in (_optimize_large,) if is_large else (_optimize, _optimize_with_onnx_shapes, _optimize_large):
        with quiet():
            try:
                model = optimize(source, profile)
            except Exception as error:  # noqa: BLE001 - the failures of these libraries have many kinds
                failure = failure or root_line(error)
                continue
            notes = _finish(source, proto, model, min_opset)
            if lacks:
                spell_out(model, lacks, profile)
                _clean_up(model)
        if is_large:
            notes.append(f"{weight_bytes / 1e9:.1f} GB of weights: optimized in place, without onnxslim")
        elif optimize is _optimize_large:
            notes.append(f"optimized without onnxslim, which failed: {failure or why}")
        save(model, path, inline=BETWEEN_STAGES)
        # Some contradictions only show when all shapes are known, and the passes of later stages rely on shapes.
        why = contradiction(path)
        if not why:
            return describe(path, tuple(notes))
    if why:
        raise ModelError(f"{source} is not a valid ONNX model", why=why, fix="Export it again")
    raise ModelError(f"{source} cannot be simplified", why=failure, fix="Export it again")


def _input_names(proto: onnx.ModelProto) -> set[str]:
    return {value.name for value in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}


def save(model: ir.Model, path: Path, *, inline: int = _INLINE_BYTES) -> None:
    """Write the model to `path`; if its weights exceed `inline` bytes in total, they go to `path` + `.data`."""
    import onnx_ir as ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > inline:
        ir.save(model, path, external_data=path.name + ".data")
    else:
        # Weights that are still memory-mapped would be written as references to the file that they come from.
        ir.external_data.load_to_model(model)
        ir.save(model, path)


def infer_shapes(model: ir.Model) -> None:
    """Infer the dtypes and shapes of all intermediate tensors, where onnx can, and add them to the model in place.

    A graph with contradictory shapes is left as it is.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    state_defaults(model)
    with quiet():
        ShapeInferencePass(data_prop=True)(model)
    # The pass takes a sequence of tensors for a tensor.
    for node in model.graph.all_nodes():
        if node.op_type in _SEQUENCES and isinstance(node.outputs[0].type, ir.TensorType):
            node.outputs[0].type, node.outputs[0].shape = ir.SequenceType(node.outputs[0].type), None


def check_types(path: Path) -> None:
    """Raise an error if a graph that trtopt wrote does not pass ONNX's full checker, which includes operator types.

    A failure is a defect of trtopt, not of the user's model.

    Raises:
        ModelError: the checker rejects the graph.
    """
    if why := contradiction(path):
        raise ModelError(f"{path.name} does not pass ONNX's checker", why=why, fix="Please report it with the model")


def _weight_bytes(source: Path, proto: onnx.ModelProto) -> int:
    files = [source, *(source.parent / name for name in external_files(proto))]
    return sum(file.stat().st_size for file in files)


def _optimize_with_onnx_shapes(source: Path, profile: Sequence[ShapeRange]) -> ir.Model:
    """Optimize with onnxslim, but without the shapes that it infers.

    It rounds down all sizes of an uneven Split, for example, and folds them into constants.
    """
    return _optimize(source, profile, slim_shapes=False)


def _optimize(source: Path, profile: Sequence[ShapeRange], *, slim_shapes: bool = True) -> ir.Model:
    import onnx_ir as ir
    import onnxslim
    from onnx.external_data_helper import load_external_data_for_model

    model = own(with_defaults(load_proto(source)))
    load_external_data_for_model(model, str(source.parent))
    _freeze(model, profile)
    # Folding an Expand or a Range can turn a small graph into a large file: fold constants of at most 1 MiB.
    slim: onnx.ModelProto = onnxslim.slim(
        model, size_threshold=1 << 20, skip_fusion_patterns=_HARMFUL, no_shape_infer=not slim_shapes
    )
    return ir.from_proto(slim)


def _optimize_large(source: Path, profile: Sequence[ShapeRange]) -> ir.Model:
    """Optimize with onnxscript, which leaves the weights memory-mapped."""
    import onnx_ir as ir
    from onnxscript import optimizer

    proto = own(with_defaults(load_proto(source)))
    _freeze(proto, profile)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, source.parent)
    optimizer.optimize_ir(model)
    return model


def _freeze(model: onnx.ModelProto, profile: Sequence[ShapeRange]) -> None:
    """Fix the dimensions that have one size in the profile, and name the dynamic ones that have no name."""
    ranges = {shape_range.name: shape_range for shape_range in profile}
    frozen: dict[str, int] = {}  # size by the name of the dimension
    for value in model.graph.input:
        shape_range = ranges.get(value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value >= 1:
                continue
            if shape_range and shape_range.min[axis] == shape_range.max[axis]:
                size = shape_range.max[axis]
                if dim.dim_param:
                    frozen[dim.dim_param] = size
                dim.dim_value = size
            elif not dim.dim_param:
                # Unnamed, or written as 0 or -1: name it, so that shape inference can track it.
                dim.dim_param = f"{value.name}_dim{axis}"
    # The same name is the same size wherever it appears: in other inputs, in outputs, and between the nodes.
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in frozen:
                dim.dim_value = frozen[dim.dim_param]
            elif dim.HasField("dim_value") and dim.dim_value < 1:
                dim.ClearField("dim_value")


def _distinguish_nodes(model: ir.Model) -> None:
    """Give every node a unique name, including those of subgraphs: TensorRT names layers of both after their nodes."""
    taken: set[str] = set()
    for node in model.graph.all_nodes():
        name, number = node.name or node.op_type, 1
        while name in taken:
            name, number = f"{node.name or node.op_type}_{number}", number + 1
        taken.add(name)
        node.name = name


def _finish(source: Path, proto: onnx.ModelProto, model: ir.Model, min_opset: int) -> list[str]:
    """Raise the opset of an optimized model and clean it up, in place; return notes on what was changed.

    Raises:
        ModelError: its opset cannot be raised, it cannot be simplified, or it computes nothing.
    """
    source_opset, notes = opset(proto), []
    if not any(entry.domain in ("", "ai.onnx") for entry in proto.opset_import):  # all operators are of other domains
        model.opset_imports[""] = min_opset
    elif source_opset < min_opset:
        raise_opset(model, source_opset, min_opset)
        notes.append(f"opset {source_opset} raised to {min_opset}")
    elif source_opset > _MAX_OPSET:
        notes.append(f"opset {source_opset} is newer than TensorRT 10.12 supports ({_MAX_OPSET})")
    try:
        _clean_up(model)
    except Exception as error:
        raise ModelError(f"{source} cannot be simplified", why=root_line(error), fix="Export it again") from error
    count = len(proto.graph.node)
    notes.insert(0, f"{counted(count, 'node')} become{'s' * (count == 1)} {model.graph.num_nodes()}")
    dropped = sorted(_input_names(proto) - {value.name or "" for value in model.graph.inputs})
    if dropped:
        notes.append(f"dropped inputs that no output depends on: {', '.join(dropped)}")
    if not model.graph.num_nodes():
        raise ModelError(f"{source} computes nothing", why="all of its outputs are constants or inputs")
    return notes


def _clean_up(model: ir.Model) -> None:
    """Clean up the optimized graph in place: constants as initializers, nodes sorted and named, shapes inferred."""
    from onnx_ir.passes.common import (
        ClearMetadataAndDocStringPass,
        LiftConstantsToInitializersPass,
        NameFixPass,
        RemoveUnusedNodesPass,
        TopologicalSortPass,
    )

    infer_shapes(model)
    if infer_foreign(model):
        infer_shapes(model)
    fold(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if expand_sums(model) | expand_einsums(model) | expand_attention(model):
        infer_shapes(model)
    unflatten_softmax(model)
    fold_affine(model)
    merge_limits(model)
    # Names are fixed last, as earlier passes add and remove nodes. TensorRT's layers, the report and the calibration
    # table all refer to nodes and tensors by name.
    for step in (
        ClearMetadataAndDocStringPass(),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
        NameFixPass(),
    ):
        step(model)
    _distinguish_nodes(model)
    model.ir_version = max(model.ir_version, 10)  # the first with FP16 scales and INT4; TensorRT reads it
    infer_shapes(model)
