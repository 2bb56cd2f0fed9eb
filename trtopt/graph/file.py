"""Reading, validating, describing and copying ONNX files, which are untrusted input.

Touches: reads the model and the external data that it names; `copy` writes both to another folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.graph import parsed
from trtopt.graph.containers import container
from trtopt.graph.validity import bits, check_inline, check_names, root_line
from trtopt.types import Dim, OnnxModel, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_CHUNK = 1 << 22
_MAX_ELEMENTS = 2**31 - 1  # of a tensor in TensorRT
_MAPPED_BYTES = 1_000_000_000  # external data above this stays on disk, memory-mapped

_CONTAINERS = {
    "sequence_type": "a sequence",
    "optional_type": "an optional",
    "map_type": "a map",
    "sparse_tensor_type": "a sparse tensor",
}


def digest(path: Path) -> str:
    """Return the SHA-256 (hex) of the model file followed by its external data files, in the order of their names."""
    sha = hashlib.sha256()
    proto = load_proto(path)
    for file in [path, *(path.parent / name for name in external_files(proto))]:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                sha.update(chunk)
    return sha.hexdigest()


def load_proto(path: Path) -> onnx.ModelProto:
    """Return the parsed model without its external data, which is checked but not loaded.

    The message is shared by all callers: change only a copy (`parsed.own`).

    Raises:
        ModelError: the file is missing, is not an ONNX model, or is truncated; a tensor has too much or too little
            data; or external data is missing, truncated, or outside the model's folder.
    """
    import onnx

    _check_file(path)
    try:
        proto = parsed.parse(path)
    except Exception as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated", why=f"it does not parse ({error})", fix="Export it again"
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated",
            why="it contains no graph with outputs",
            fix="Export it again",
        )
    check_names(path, proto.graph)
    sizes = {name: _external_size(path, name) for name in external_files(proto)}
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_extent(path, tensor, sizes)
        else:
            check_inline(path, tensor)
    return proto


def _check_file(path: Path) -> None:
    """Raise ModelError unless the path is a regular file that is not an archive."""
    try:
        if not path.exists():
            raise ModelError(f"{path} does not exist", fix="Give the path of an .onnx file")
        # Opening a pipe would block until someone writes to it.
        if not path.is_file():
            problem = "a folder" if path.is_dir() else "not a regular file"
            raise ModelError(f"{path} is {problem}", why="an .onnx file is needed", fix="Name the file itself")
        container_name, fix = container(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    if container_name:
        raise ModelError(f"{path} is {container_name}, not an ONNX model", fix=fix)


def external_files(proto: onnx.ModelProto) -> list[str]:
    """Return the names of the model's external data files, sorted, relative to the model's folder."""
    return sorted({_entries(tensor).get("location", "") for tensor in _external_tensors(proto)})


def _external_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    import onnx

    return [tensor for tensor in _tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return all tensors of the model: initializers and attributes, those of subgraphs and functions too."""
    from onnx.external_data_helper import _get_all_tensors

    return list(_get_all_tensors(proto))


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_size(path: Path, name: str) -> int:
    """Return the size in bytes of an external data file.

    Raises:
        ModelError: the file is missing, or is not in the model's folder.
    """
    # A model is untrusted input: a location such as ../../etc/passwd, or a link to it, must not be read.
    try:
        folder, file = path.parent.resolve(), (path.parent / name).resolve()
        inside, exists = folder in file.parents, file.is_file()
    except (OSError, ValueError) as error:  # too long a name, or one with a null byte
        raise ModelError(f"{path} names external data that cannot exist", why=str(error)[:80]) from error
    if not inside:
        raise ModelError(
            f"{path} names external data outside its folder", why=name or "an empty name", fix="Export the model again"
        )
    if not exists:
        raise ModelError(
            f"external data of {path} is missing", why=f"{name} is not beside it", fix="Copy it next to the model"
        )
    return file.stat().st_size


def _check_extent(path: Path, tensor: onnx.TensorProto, sizes: dict[str, int]) -> None:
    """Raise ModelError if the external data does not contain the whole tensor.

    Libraries read a truncated file as far as it goes, without an error.
    """
    entries = _entries(tensor)
    name, offset, length = (entries.get(key, "") for key in ("location", "offset", "length"))
    try:
        needed = math.ceil(math.prod(tensor.dims) * bits(tensor.data_type) / 8)
        begin, stated = int(offset or 0), int(length or needed)
    except ValueError as error:  # not a number, or a data type without a size
        raise ModelError(f"{path} describes its external data wrongly", why=f"{tensor.name}: {error}") from error
    if begin < 0 or stated != needed or begin + needed > sizes[name]:
        raise ModelError(
            f"external data of {path} is truncated, or belongs to another model",
            why=f"{tensor.name} needs {needed} bytes at {offset or 0} of {name}, which has {sizes[name]}",
            fix="Copy the file again, or export the model again",
        )


def copy(path: Path, target: Path) -> None:
    """Copy a model to `target`, and its external data into the same folder.

    Raises:
        ModelError: the model cannot be read, or the target cannot be written.
    """
    names = external_files(load_proto(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The model itself comes last, by a rename: a copy that was interrupted leaves no model without its data.
        for name in names:
            shutil.copyfile(path.parent / name, target.parent / name)
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.copyfile(path, temporary)
        temporary.replace(target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written", why=error.strerror or str(error)) from error


def link(path: Path, target: Path) -> bool:
    """Give a model a second name in the same file system, without a copy of its weights, and return whether it worked.

    External data keeps its names, by which the model refers to it, and gets them in the folder of `target` too.
    """
    names = [] if path.parent == target.parent else external_files(load_proto(path))
    try:
        for name in names:
            (target.parent / name).hardlink_to(path.parent / name)
        target.hardlink_to(path)
    except OSError:  # another file system, or one without hard links
        for name in names:
            (target.parent / name).unlink(missing_ok=True)
        return False
    return True


def load_ir(path: Path) -> ir.Model:
    """Return the model as an onnx-ir graph. External data of more than 1 GB stays on disk, memory-mapped.

    Raises:
        ModelError: as `load_proto`; or the graph is malformed.
    """
    import onnx_ir as ir

    proto = load_proto(path)
    try:
        with quiet():
            model = ir.from_proto(proto)
            ir.external_data.set_base_dir(model.graph, path.parent)
    except Exception as error:  # for example a name that is not UTF-8, or an attribute without a type
        raise ModelError(f"{path} is damaged", why=root_line(error), fix="Export it again") from error
    # onnx-ir maps the whole file once for each tensor. Smaller data is loaded instead, to save address space.
    if sum((path.parent / name).stat().st_size for name in external_files(proto)) <= _MAPPED_BYTES:
        ir.external_data.load_to_model(model)
    return model


def describe(path: Path, notes: tuple[str, ...] = ()) -> OnnxModel:
    """Return the `OnnxModel` of a file: its digest, opset, inputs and outputs.

    Initializers that are listed among the inputs, as in old models, are left out.

    Raises:
        ModelError: as `load_proto`; or an input has no shape, or an input or output is not a tensor.
    """
    proto = load_proto(path)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    return OnnxModel(
        path=path,
        digest=digest(path),
        opset=opset(proto),
        inputs=tuple(_input(path, value) for value in proto.graph.input if value.name not in initializers),
        outputs=tuple(_spec(path, value) for value in proto.graph.output),
        notes=notes,
    )


def opset(proto: onnx.ModelProto) -> int:
    """Return the version of the default operator set; 1 if the model imports none."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _input(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    spec = _spec(path, value)
    if not value.type.tensor_type.HasField("shape"):
        raise ModelError(
            f"input {value.name} of {path} has no shape",
            why="TensorRT needs to know its number of dimensions",
            fix="Export the model with shapes; dimensions may be dynamic",
        )
    if math.prod(dim for dim in spec.shape if isinstance(dim, int)) > _MAX_ELEMENTS:
        raise ModelError(
            f"input {value.name} of {path} is too large",
            why=f"its shape is [{', '.join(map(str, spec.shape))}], and TensorRT's limit is {_MAX_ELEMENTS} elements",
        )
    return spec


def _spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    """Return name, dtype and shape of an input or output; a dynamic dimension is its name, or `?` without one."""
    import onnx

    if not value.type.HasField("tensor_type"):
        onnx_type = value.type.WhichOneof("value")
        raise ModelError(
            f"{value.name} of {path} is {_CONTAINERS.get(onnx_type or '', 'not a tensor')}",
            why="the inputs and outputs of an engine are tensors",
            fix="Export the model with tensors there",
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        raise ModelError(
            f"{value.name} of {path} is a string tensor",
            why="TensorRT supports numbers only",
            fix="Convert strings to numbers outside of the model",
        )
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        # Some exporters write 0 or -1 for a dynamic size.
        fixed = dim.HasField("dim_value") and dim.dim_value > 0
        dims.append(dim.dim_value if fixed else dim.dim_param or "?")
    if tensor.elem_type not in onnx.TensorProto.DataType.values():
        raise ModelError(
            f"{path} is damaged", why=f"the data type of {value.name} is {tensor.elem_type}", fix="Export it again"
        )
    # ONNX calls the types FLOAT and DOUBLE; the others have NumPy's names.
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(dims))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' warnings, which are about their own fallbacks and not about the model."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "ONNXSlim", "onnxslim")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
