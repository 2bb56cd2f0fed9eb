"""Read an ONNX file that nobody vouches for, and describe it.

Touches: reads the model and the external data that it names; writes nothing.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.errors import ModelError
from trtopt.export.containers import container
from trtopt.types import Dim, OnnxModel, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_CONTAINERS = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"7z\xbc\xaf": "a 7-zip archive"}
_CHUNK = 1 << 22
_MAPPED_BYTES = 1_000_000_000


def digest(path: Path) -> str:
    """SHA-256 (hex) of the model file, followed by that of every external data file it names, in name order."""
    sha = hashlib.sha256()
    proto = load_proto(path)
    for file in [path, *(path.parent / name for name in external_files(proto))]:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                sha.update(chunk)
    return sha.hexdigest()


def load_proto(path: Path) -> onnx.ModelProto:
    """Return the parsed model without its external data.

    Raises:
        ModelError: the file is missing, is no ONNX model, is truncated, or names external data outside its folder.
    """
    import onnx

    _refuse(path)
    try:
        proto = onnx.load(str(path), load_external_data=False, format="protobuf")
    except Exception as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated", why=f"it does not parse ({error})", fix="Export it again"
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated", why="it holds no graph with outputs", fix="Export it again"
        )
    sizes = {name: _external_size(path, name) for name in external_files(proto)}
    for tensor in _external_tensors(proto):
        _check_extent(path, tensor, sizes)
    return proto


def _refuse(path: Path) -> None:
    """Refuse what is no regular file, and what a model is packed in."""
    try:
        if not path.exists():
            raise ModelError(f"{path} does not exist", fix="Give the path of an .onnx file")
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise ModelError(f"{path} is {kind}", why="an .onnx file is needed", fix="Name the file itself")
        what, fix = container(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    if what:
        raise ModelError(f"{path} is {what}, not an ONNX model", fix=fix)


def external_files(proto: onnx.ModelProto) -> list[str]:
    """Names of the external data files of a model, sorted, relative to the model's folder."""
    return sorted({_entries(tensor).get("location", "") for tensor in _external_tensors(proto)})


def _external_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    return [tensor for tensor in _get_all_tensors(proto) if uses_external_data(tensor)]


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_size(path: Path, name: str) -> int:
    """Size in bytes of an external data file, once it is known to lie in the model's folder."""
    # A model is untrusted input: a location such as ../../etc/passwd must not be read.
    try:
        folder, file = path.parent.resolve(), (path.parent / name).resolve()
        inside, found = folder in file.parents, file.is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ModelError(f"{path} names external data that cannot exist", why=str(error)[:80]) from error
    if not inside:
        raise ModelError(
            f"{path} names external data outside its folder", why=name or "an empty name", fix="Export the model again"
        )
    if not found:
        raise ModelError(
            f"external data of {path} is missing", why=f"{name} is not beside it", fix="Copy it next to the model"
        )
    return file.stat().st_size


def _check_extent(path: Path, tensor: onnx.TensorProto, sizes: dict[str, int]) -> None:
    """Refuse a tensor that its external file does not hold in full: libraries load what is there and go on."""
    import onnx_ir as ir

    entries = _entries(tensor)
    name, offset, length = (entries.get(key, "") for key in ("location", "offset", "length"))
    try:
        needed = math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
        begin, given = int(offset or 0), int(length or needed)
    except (TypeError, ValueError) as error:  # no number, or no type that has a size
        raise ModelError(f"{path} describes its external data wrongly", why=f"{tensor.name}: {error}") from error
    if begin < 0 or given != needed or begin + needed > sizes[name]:
        raise ModelError(
            f"external data of {path} is truncated, or belongs to another model",
            why=f"{tensor.name} needs {needed} bytes at {offset or 0} of {name}, which has {sizes[name]}",
            fix="Copy the file again, or export the model again",
        )


def copy(path: Path, target: Path) -> None:
    """Copy a model, and the external data that it names, to `target` and beside it.

    Raises:
        ModelError: the target cannot be written.
    """
    names = external_files(load_proto(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(path.parent / name, target.parent / name)
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.copyfile(path, temporary)
        temporary.replace(target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written", why=error.strerror or str(error)) from error


def load_ir(path: Path) -> ir.Model:
    """Return the model as onnx-ir sees it; external data of more than 1 GB stays on disk, memory-mapped.

    Raises:
        ModelError: as `load_proto`.
    """
    import onnx_ir as ir

    proto = load_proto(path)
    model = ir.load(path)
    # Each tensor would map the whole file again: hundreds of times, in a process that may not have the addresses.
    if sum((path.parent / name).stat().st_size for name in external_files(proto)) <= _MAPPED_BYTES:
        ir.external_data.load_to_model(model)
    return model


def describe(path: Path, notes: tuple[str, ...] = ()) -> OnnxModel:
    """Return the `OnnxModel` of a file: digest, opset, inputs (initializers left out) and outputs."""
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
    """Version of the default operator set; 1 when the model does not say."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _input(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    spec = _spec(path, value)
    if not value.type.tensor_type.HasField("shape"):
        raise ModelError(
            f"input {value.name} of {path} has no shape",
            why="TensorRT needs to know its number of dimensions",
            fix="Export the model with shapes; dimensions may be dynamic",
        )
    return spec


def _spec(path: Path, value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value")
        raise ModelError(f"{value.name} of {path} is a {kind}", why="TensorRT takes and gives tensors only")
    tensor = value.type.tensor_type
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        fixed = dim.HasField("dim_value") and dim.dim_value > 0
        dims.append(dim.dim_value if fixed else dim.dim_param or "?")
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(dims))
