"""Build a TensorRT engine from a typed ONNX graph: the backend `tensorrt`, on TensorRT 10.12+, 11 and TensorRT for RTX.

The network is strongly typed: precision stands in the graph, no builder flag changes it. What was parsed is audited
against what was decided before anything is built.

Touches: reads the model; writes the engine, and the timing cache where one is named.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.engine.audit import audit_engine, audit_network
from trtopt.engine.diagnosis import build_error, logger, onnx_node, rejected, rejections
from trtopt.engine.locate import RTX, RTX_DEVICES, TensorRT, find
from trtopt.engine.progress import build_serialized
from trtopt.errors import BuildError, EnvironmentUnableError, UsageError
from trtopt.events import Emit, Warned
from trtopt.types import Engine, OnnxModel, Rejection, ShapeRange, TensorSpec, TypedModel

__all__ = ["BuildOptions", "TensorRT", "build", "check", "find", "rejected"]

_NUMPY_NAMES = {"float": "float32", "half": "float16", "bf16": "bfloat16"}
_LEVELS = range(6)
_RTX_FP8_DEVICES = "portable: compute capability 8.9, 12.0 and later, which have FP8"
"""NVIDIA's support matrix of TensorRT for RTX: older GPUs multiply no FP8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What the builder is told besides the network. None and False leave TensorRT's own choice."""

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A parsed model. The parser owns weights of the network, and must live as long."""

    parser: Any
    network: Any
    rejections: tuple[Rejection, ...]


def check(trt: TensorRT, model_path: Path) -> tuple[Rejection, ...]:
    """Parse the model and return what TensorRT refuses in it; an empty tuple does not promise that it builds."""
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
    """Build `typed` into the file `out`, audited.

    Raises:
        UsageError: the profile does not fit the model, or this TensorRT cannot honour an option.
        EnvironmentUnableError: this TensorRT needs a GPU and there is none.
        BuildError: TensorRT refuses the model; the message names the node.
        AuditError: the parsed network computes in another precision than was decided.
        KeyboardInterrupt: Ctrl-C; the build was cancelled, nothing was written.
        OSError: `out` cannot be written.
    """
    _check_profile(typed.onnx.inputs, profile)
    _check_options(trt, options)
    builder = _builder(trt)
    parsed = _parse(trt, builder, typed.onnx.path)
    network = parsed.network
    if parsed.rejections:
        raise rejected(parsed.rejections)
    counts = audit_network(trt, network, typed)
    _warn_of_changed_types(network, typed.onnx, emit)
    config = _configure(trt, builder, options)
    if profile:
        shapes = builder.create_optimization_profile()
        for entry in profile:
            shapes.set_shape(entry.name, entry.min, entry.opt, entry.max)
        config.add_optimization_profile(shapes)
    plan = build_serialized(trt, builder, network, config, emit)
    if plan is None:
        raise _failure(trt, network, typed.onnx.path)
    inspected = audit_engine(trt, plan)
    data = memoryview(plan)
    _write(out, data)
    if options.timing_cache is not None:
        _keep_timing_cache(options.timing_cache, config, emit)
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
    collector = logger(trt.module.__name__)
    collector.errors.clear()
    try:
        return trt.module.Builder(collector)
    except TypeError as error:  # how the bindings say that the library returned no builder
        raise EnvironmentUnableError(
            f"{trt.title} cannot build here",
            why="; ".join(collector.errors) or "it needs an NVIDIA GPU and its driver",
            fix="Build on a machine with a GPU, or pip install 'trtopt[rtx]' and add --tensorrt tensorrt_rtx",
        ) from error


def _parse(trt: TensorRT, builder: Any, path: Path) -> _Parsed:
    collector = logger(trt.module.__name__)
    # TensorRT 11 accepts the flag and knows no other kind of network; 10 must be told.
    network = builder.create_network(1 << int(trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.module.OnnxParser(network, collector)
    accepted = parser.parse_from_file(str(path))
    found = rejections(parser)
    if not found and (not accepted or network.num_outputs == 0):  # an empty file is accepted
        said = "; ".join(collector.errors) or "it has no outputs"
        found = (Rejection(node="", op="", code="INVALID_GRAPH", message=said),)
    collector.errors.clear()
    return _Parsed(parser, network, found)


def _check_profile(inputs: tuple[TensorSpec, ...], profile: tuple[ShapeRange, ...]) -> None:
    # TensorRT's set_shape accepts anything, and what is wrong shows much later or as another error.
    specs = {spec.name: spec for spec in inputs}
    for entry in profile:
        spec = specs.get(entry.name)
        if spec is None:
            raise UsageError(f"--shape names {entry.name}, no input of the model", fix=f"Inputs: {', '.join(specs)}")
        what = f"the shapes of input {entry.name} do not fit"
        for shape in (entry.min, entry.opt, entry.max):
            if len(shape) != len(spec.shape):
                raise UsageError(what, why=f"{list(shape)} has rank {len(shape)}, the input {len(spec.shape)}")
            if any(
                size < 0 or (isinstance(dim, int) and size != dim) for size, dim in zip(shape, spec.shape, strict=True)
            ):
                raise UsageError(what, why=f"{list(shape)} is given, the model has [{', '.join(map(str, spec.shape))}]")
        if not all(low <= best <= high for low, best, high in zip(entry.min, entry.opt, entry.max, strict=True)):
            raise UsageError(what, why=f"{list(entry.min)} <= {list(entry.opt)} <= {list(entry.max)} does not hold")
    given = [entry.name for entry in profile]
    for spec in inputs:
        dynamic = any(isinstance(dim, str) for dim in spec.shape)
        if given.count(spec.name) > 1 or (dynamic and spec.name not in given):
            raise UsageError(
                f"input {spec.name} has {'two ranges of shapes' if spec.name in given else 'no range of shapes'}",
                why=f"its shape is [{', '.join(map(str, spec.shape))}]",
                fix=f"Give it once: --shape {spec.name}=SMALLEST:USUAL:LARGEST",
            )


def _check_options(trt: TensorRT, options: BuildOptions) -> None:
    refused = []
    if trt.name == RTX:  # seen with 1.7: the first and third are ignored, the second fails late
        if options.timing_cache is not None:
            refused.append(("--timing-cache", "its timing cache does nothing"))
        if options.version_compatible:
            refused.append(("--version-compatible", "it has no lean runtime to put into the engine"))
        if options.hardware_compatible:
            refused.append(
                ("--hardware-compatible", f"it ignores the level; its engines are {RTX_DEVICES} as they are")
            )
    if options.optimization_level is not None and options.optimization_level not in _LEVELS:
        refused.append(("--optimization-level", f"{options.optimization_level} is not between 0 and {_LEVELS[-1]}"))
    if options.workspace_bytes is not None and options.workspace_bytes <= 0:
        refused.append(("--workspace", f"{options.workspace_bytes} bytes are none"))
    for flag, why in refused:
        raise UsageError(f"{trt.title} cannot honour {flag}", why=why, fix=f"Leave {flag} out")


def _configure(trt: TensorRT, builder: Any, options: BuildOptions) -> Any:
    module, config = trt.module, builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # or the engine inspector knows no types
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.timing_cache is not None:
        cache = config.create_timing_cache(_stored(options.timing_cache))
        if cache is None or not config.set_timing_cache(cache, False):
            raise UsageError(f"{options.timing_cache} is no timing cache of {trt.title} here", fix="Name another file")
    return config


def _stored(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"the timing cache {path} cannot be read", why=error.strerror or str(error)) from error


def _keep_timing_cache(path: Path, config: Any, emit: Emit) -> None:
    try:
        _write(path, memoryview(config.get_timing_cache().serialize()))
    except OSError as error:  # the engine is built, and worth more than what the next build saves
        emit(Warned(f"the timing cache {path} cannot be written: {error.strerror or error}"))


def _failure(trt: TensorRT, network: Any, path: Path) -> BuildError:
    from trtopt.export.onnx import load_proto

    layers = [network.get_layer(index) for index in range(network.num_layers)]
    names = {layer.name: node for layer in layers if (node := onnx_node(layer))}
    ops = {node.name: node.op_type for node in load_proto(path).graph.node}
    return build_error(logger(trt.module.__name__).errors, names, ops)


def _warn_of_changed_types(network: Any, model: OnnxModel, emit: Emit) -> None:
    """Say where TensorRT reads or gives another type than the ONNX file declares (float64 silently becomes float32)."""
    real = [network.get_input(index) for index in range(network.num_inputs)]
    real += [network.get_output(index) for index in range(network.num_outputs)]
    declared = {spec.name: spec.dtype for spec in (*model.inputs, *model.outputs)}
    for tensor in real:
        dtype = str(tensor.dtype).rpartition(".")[2].lower()
        dtype = _NUMPY_NAMES.get(dtype, dtype)
        if tensor.name in declared and declared[tensor.name] != dtype:
            emit(Warned(f"the engine's {tensor.name} is {dtype}: TensorRT changed it from {declared[tensor.name]}"))


def _device(trt: TensorRT, counts: Mapping[str, int]) -> str:
    """What the engine runs on: TensorRT for RTX builds for many GPUs, TensorRT for the one that it builds on."""
    if trt.name == RTX:
        return _RTX_FP8_DEVICES if "fp8" in counts else RTX_DEVICES
    return _gpu()


def _gpu() -> str:
    from trtopt.engine.probe import read_driver

    names = dict.fromkeys(f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in read_driver().gpus)
    return " or ".join(names) or "the GPU of the machine that built it"


def _write(path: Path, data: memoryview) -> None:
    """Write beside the file first, so that it is never there by half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _count_line(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} layers {name}" for name, count in counts.items())
