"""Backend `tensorrt`: builds engines from typed ONNX graphs with TensorRT 10.12 and later, 11, and TensorRT for RTX.

The network is strongly typed: the graph alone determines the precision, and no builder flag changes it. The parsed
network is audited against the decisions before anything is built.

Touches: reads the model; writes the engine, and the timing cache if one is given.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.engine.trt.audit import audit_engine, audit_network
from trtopt.engine.trt.diagnosis import build_error, logger, onnx_node, rejected, rejections
from trtopt.engine.trt.locate import RTX, RTX_DEVICES, TensorRT, find
from trtopt.engine.trt.progress import build_serialized
from trtopt.errors import BuildError, EnvironmentUnableError, UsageError
from trtopt.events import Emit, Warned
from trtopt.types import Engine, OnnxModel, Rejection, ShapeRange, TensorSpec, TypedModel

__all__ = ["BuildOptions", "TensorRT", "build", "check", "find", "rejected"]

_NUMPY_NAMES = {"float": "float32", "half": "float16", "bf16": "bfloat16"}
_LEVELS = range(6)
_RTX_FP8_DEVICES = "portable: compute capability 8.9, 12.0 and later, which have FP8"
"""Devices of an FP8 engine of TensorRT-RTX: older GPUs do not support FP8 (NVIDIA's support matrix)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Options of TensorRT's builder. None and False leave TensorRT's default.

    `optimization_level` is 0 to 5. A `timing_cache` that does not exist yet is created.
    """

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class _Parsed:
    """Parsed model. The parser owns the network's weights, so it must be kept as long as the network."""

    parser: Any
    network: Any
    rejections: tuple[Rejection, ...]


def check(trt: TensorRT, model_path: Path) -> tuple[Rejection, ...]:
    """Parse a model and return the nodes that TensorRT rejects. Without any, the build may still fail.

    Raises:
        EnvironmentUnableError: this TensorRT needs a GPU, and this machine has none.
    """
    return _parse(trt, _builder(trt), model_path).rejections


def build(
    trt: TensorRT,
    typed: TypedModel,
    profile: tuple[ShapeRange, ...],
    options: BuildOptions,
    out: Path,
    *,
    emit: Emit,
) -> Engine:
    """Build an engine from `typed`, audit it, and write it to the file `out`.

    Args:
        trt: the TensorRT package to build with.
        typed: the typed graph and its decisions.
        profile: the range of shapes of each dynamic input.
        options: options of the builder.
        out: the engine file.
        emit: receives progress and warnings.

    Raises:
        UsageError: the profile does not fit the model, or this TensorRT does not support an option.
        EnvironmentUnableError: this TensorRT needs a GPU, and this machine has none.
        BuildError: TensorRT rejects the model; the message names the node.
        AuditError: the parsed network computes in another precision than decided.
        KeyboardInterrupt: Ctrl-C cancelled the build, and nothing was written.
        OSError: `out` cannot be written.
    """
    # All checks come before the build, which may take many minutes.
    _check_profile(typed.onnx.inputs, profile)
    _check_names(typed.onnx)
    _check_options(trt, options)
    builder = _builder(trt)
    parsed = _parse(trt, builder, typed.onnx.path)
    network = parsed.network
    if parsed.rejections:
        raise rejected(parsed.rejections)
    counts = audit_network(trt, network, typed)
    _warn_of_changed_types(network, typed.onnx, emit)
    config = _configure(trt, builder, options)
    if profile:  # one profile, number 0: the runner reads its shapes from there
        shapes = builder.create_optimization_profile()
        for entry in profile:
            shapes.set_shape(entry.name, entry.min, entry.opt, entry.max)
        config.add_optimization_profile(shapes)
    plan = build_serialized(trt, builder, network, config, emit)
    if plan is None:
        raise _failure(trt, network, typed.onnx.path)
    # Additional evidence, where the engine can be loaded. The audit of the parsed network is the one that decides.
    inspected = audit_engine(trt, plan)
    data = memoryview(plan)  # no copy: engines can have several GB
    _write(out, data)
    if options.timing_cache is not None:
        _save_timing_cache(options.timing_cache, config, emit)
    return Engine(
        path=out,
        digest=hashlib.sha256(data).hexdigest(),
        backend="tensorrt",
        builder=trt.title,
        device=_device(trt, counts),
        size_bytes=data.nbytes,
        audit=counts,
        audited="parsed network" + (f"; engine inspector: {_count_line(inspected)}" if inspected else ""),
    )


def _builder(trt: TensorRT) -> Any:
    """Return TensorRT's builder. The logger forgets the errors of earlier builds."""
    collector = logger(trt.module.__name__)
    collector.errors.clear()
    try:
        return trt.module.Builder(collector)
    except TypeError as error:  # raised by the bindings if the library returns a null pointer
        raise EnvironmentUnableError(
            f"{trt.title} cannot build here",
            why="; ".join(collector.errors) or "it needs an NVIDIA GPU and its driver",
            fix="Build on a machine with a GPU, or pip install 'trtopt[rtx]' and add --tensorrt tensorrt_rtx",
        ) from error


def _parse(trt: TensorRT, builder: Any, path: Path) -> _Parsed:
    """Parse an ONNX file into a strongly typed network."""
    collector = logger(trt.module.__name__)
    # Required by TensorRT 10. In 11 every network is strongly typed, and the flag is accepted.
    network = builder.create_network(1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.module.OnnxParser(network, collector)
    # From the file, not from memory, so that the parser finds external weights beside it.
    parsed = parser.parse_from_file(str(path))
    rejected_nodes = rejections(parser)
    if not rejected_nodes and (not parsed or network.num_outputs == 0):  # the parser accepts an empty file
        message = "; ".join(collector.errors) or "the model has no outputs"
        rejected_nodes = (Rejection(node="", op="", code="INVALID_GRAPH", message=message),)
    collector.errors.clear()
    return _Parsed(parser, network, rejected_nodes)


def _check_profile(inputs: tuple[TensorSpec, ...], profile: tuple[ShapeRange, ...]) -> None:
    """Raise a UsageError unless the profile has one valid range of shapes for every dynamic input.

    TensorRT's `set_shape` accepts anything; a mistake would cause another error much later.
    """
    specs = {spec.name: spec for spec in inputs}
    for entry in profile:
        spec = specs.get(entry.name)
        if spec is None:
            raise UsageError(
                f"--shape {entry.name}: the model has no such input", fix=f"Its inputs are: {', '.join(specs)}"
            )
        _check_range(spec, entry)
    ranged = [entry.name for entry in profile]
    for spec in inputs:
        dynamic = any(isinstance(dim, str) for dim in spec.shape)
        if ranged.count(spec.name) > 1 or (dynamic and spec.name not in ranged):
            raise UsageError(
                f"input {spec.name} has {'two ranges of shapes' if spec.name in ranged else 'no range of shapes'}",
                why=f"its shape is [{', '.join(map(str, spec.shape))}]",
                fix=f"Give one: --shape {spec.name}=SMALLEST:USUAL:LARGEST",
            )


def _check_range(spec: TensorSpec, entry: ShapeRange) -> None:
    """Raise a UsageError if a range of shapes does not fit its input."""
    what = f"the shapes of input {entry.name} do not fit"
    for shape in (entry.min, entry.opt, entry.max):
        if len(shape) != len(spec.shape):
            raise UsageError(what, why=f"{list(shape)} has rank {len(shape)}, the input has rank {len(spec.shape)}")
        for size, dim in zip(shape, spec.shape, strict=True):
            if size < 0 or (isinstance(dim, int) and size != dim):
                expected = ", ".join(map(str, spec.shape))
                raise UsageError(what, why=f"{list(shape)} was given, the model expects [{expected}]")
    if not all(low <= best <= high for low, best, high in zip(entry.min, entry.opt, entry.max, strict=True)):
        why = f"not in ascending order: {list(entry.min)}, {list(entry.opt)}, {list(entry.max)}"
        raise UsageError(what, why=why)


def _check_names(model: OnnxModel) -> None:
    """Raise a BuildError if a tensor is an input and an output at once: TensorRT renames such an input."""
    both = [spec.name for spec in model.outputs if spec.name in {entry.name for entry in model.inputs}]
    if both:
        raise BuildError(
            f"{both[0]} is an input and an output",
            why="the tensors of an engine have one role each",
            fix="Export the model with an Identity before that output, under a name of its own",
        )


def _check_options(trt: TensorRT, options: BuildOptions) -> None:
    """Raise a UsageError for an option that has an invalid value or that this TensorRT does not support."""
    unsupported = []
    # TensorRT-RTX 1.7 ignores --timing-cache and --hardware-compatible, and fails late on --version-compatible.
    if trt.name == RTX:
        if options.timing_cache is not None:
            unsupported.append(("--timing-cache", "it ignores the timing cache"))
        if options.version_compatible:
            unsupported.append(("--version-compatible", "it has no lean runtime to include in the engine"))
        if options.hardware_compatible:
            unsupported.append(("--hardware-compatible", f"its engines are always {RTX_DEVICES}"))
    if options.optimization_level is not None and options.optimization_level not in _LEVELS:
        unsupported.append(("--optimization-level", f"{options.optimization_level} is not between 0 and {_LEVELS[-1]}"))
    if options.workspace_bytes is not None and options.workspace_bytes <= 0:
        unsupported.append(("--workspace", f"{options.workspace_bytes} bytes are too few"))
    for flag, why in unsupported:
        raise UsageError(f"{trt.title} cannot use {flag}", why=why, fix=f"Omit {flag}")


def _configure(trt: TensorRT, builder: Any, options: BuildOptions) -> Any:
    module, config = trt.module, builder.create_builder_config()
    # With any lower verbosity, the engine inspector does not report the types of layers, which `audit_engine` needs.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:  # Ampere and later: the only level that covers several generations
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.timing_cache is not None:
        cache = config.create_timing_cache(_read_timing_cache(options.timing_cache))
        # False: do not ignore that a cache is from another version or GPU.
        if cache is None or not config.set_timing_cache(cache, False):
            raise UsageError(
                f"{options.timing_cache} is not a timing cache of {trt.title} on this GPU", fix="Name another file"
            )
    return config


def _read_timing_cache(path: Path) -> bytes:
    """Return the content of a timing cache; empty if it does not exist yet."""
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"the timing cache {path} cannot be read", why=error.strerror or str(error)) from error


def _save_timing_cache(path: Path, config: Any, emit: Emit) -> None:
    try:
        _write(path, memoryview(config.get_timing_cache().serialize()))
    except OSError as error:  # only a warning: the engine is complete, and the cache only makes later builds faster
        emit(Warned(f"the timing cache {path} cannot be written: {error.strerror or error}"))


def _failure(trt: TensorRT, network: Any, path: Path) -> BuildError:
    """Return the error for a network that TensorRT cannot build."""
    from trtopt.graph.file import load_proto

    # TensorRT's messages name layers. The network tells the ONNX node of each layer.
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    names = {layer.name: node for layer in layers if (node := onnx_node(layer))}
    ops = {node.name: node.op_type for node in load_proto(path).graph.node}
    return build_error(logger(trt.module.__name__).errors, names, ops)


def _warn_of_changed_types(network: Any, model: OnnxModel, emit: Emit) -> None:
    """Warn of inputs and outputs whose type TensorRT has changed: it silently turns float64 into float32."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    declared = {spec.name: spec.dtype for spec in (*model.inputs, *model.outputs)}
    for tensor in tensors:
        dtype = str(tensor.dtype).rpartition(".")[2].lower()  # "DataType.HALF" is "half"
        dtype = _NUMPY_NAMES.get(dtype, dtype)
        if tensor.name in declared and declared[tensor.name] != dtype:
            emit(Warned(f"the engine's {tensor.name} is {dtype}: TensorRT changed it from {declared[tensor.name]}"))


def _device(trt: TensorRT, counts: Mapping[str, int]) -> str:
    """Return the devices that the engine runs on: many for TensorRT-RTX, else the GPU that it is built on."""
    if trt.name == RTX:
        return _RTX_FP8_DEVICES if "fp8" in counts else RTX_DEVICES
    return _gpu()


def _gpu() -> str:
    """Return the GPU models of this machine; TensorRT does not tell which of several it has used."""
    from trtopt.engine.driver import read_driver

    names = dict.fromkeys(f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in read_driver().gpus)
    return " or ".join(names) or "the GPU of the machine that built it"


def _write(path: Path, data: memoryview) -> None:
    """Write a file under a temporary name and rename it, so that it is never incomplete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _count_line(counts: Mapping[str, int]) -> str:
    """Return counts as in "12 layers int8, 3 layers fp16"."""
    return ", ".join(f"{count} layers {name}" for name, count in counts.items())
