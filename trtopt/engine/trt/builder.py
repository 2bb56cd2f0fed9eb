"""Engines built from typed ONNX graphs with TensorRT 8.5 to 11 and TensorRT for RTX.

From TensorRT 10 on the network is strongly typed: the graph alone determines the precision, and no builder flag changes
it. TensorRT 8.5 and 8.6 receive the same decisions as flags and constraints (`trt.weak`). The parsed network is audited
against the decisions before anything is built, and an engine that can be loaded here after it.

The functions run TensorRT in this process. A crash of its parser ends the process: the backend calls them through
`trt.apart`.

Touches: reads the model; writes the engine, and the timing cache if one is given; the GPU.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.engine import BuildPlan
from trtopt.engine.trt import weak
from trtopt.engine.trt.audit import audit_network, count_inspected, inspect_engine, layers_by_node
from trtopt.engine.trt.diagnosis import build_error, logger, onnx_node, rejected, rejections
from trtopt.engine.trt.fusion import engine_layers
from trtopt.engine.trt.locate import TensorRT, find
from trtopt.engine.trt.options import check_options, configure, save_timing_cache, write
from trtopt.engine.trt.profile import check_names, check_profile
from trtopt.engine.trt.progress import build_serialized
from trtopt.engine.trt.versions import PRODUCT, RTX, RTX_DEVICES
from trtopt.errors import BuildError, EnvironmentUnableError
from trtopt.events import Emit, Warned
from trtopt.graph.portable import write_for_tensorrt
from trtopt.types import Decision, Engine, OnnxModel, Rejection, ShapeRange, TypedModel
from trtopt.wording import counted

if TYPE_CHECKING:
    from trtopt.engine.runner.engine import EngineRunner

__all__ = ["BuildPlan", "TensorRT", "build", "check", "find", "open_runner", "rejected"]

_NUMPY_NAMES = {"float": "float32", "half": "float16", "bf16": "bfloat16"}
_RTX_FP8_DEVICES = "portable: compute capability 8.9, 12.0 and later, which have FP8"
"""Devices of an FP8 engine of TensorRT-RTX: older GPUs do not support FP8 (NVIDIA's support matrix)."""


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
    builder = _builder(trt)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        return _parse(trt, builder, _dialect(trt, model_path, Path(folder))).rejections


def build(
    trt: TensorRT,
    typed: TypedModel,
    profile: tuple[ShapeRange, ...],
    options: BuildPlan,
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
    check_profile(typed.onnx.inputs, profile)
    check_names(typed.onnx)
    check_options(trt, options)
    weak.check_precision(trt, typed)
    made = _attempt(trt, typed, profile, options, emit)
    changed: tuple[Decision, ...] = ()
    if not trt.can.strong_typing and made.layers is not None:
        changed = weak.raised(made.layers, typed, trt.title)
        if changed:
            typed = weak.with_decisions(typed, changed)
            made = _attempt(trt, typed, profile, options, emit)
    # The audit of the parsed network decides for a strongly typed network, and the engine's layers are additional
    # evidence where it can be loaded. A weakly typed network tells nothing before it is built.
    counts, audited = made.counts, "parsed network"
    if not trt.can.strong_typing and made.layers is not None:
        counts, audited = weak.audit(made.layers, typed, emit), "engine inspector"
    elif made.layers:
        audited += f"; engine inspector: {_count_line(count_inspected(made.layers))}"
    data = memoryview(made.plan)  # no copy: engines can have several GB
    write(out, data)
    if options.timing_cache is not None:
        save_timing_cache(options.timing_cache, made.config, emit)
    return Engine(
        path=out,
        digest=hashlib.sha256(data).hexdigest(),
        backend="tensorrt",
        builder=trt.title,
        device=devices(trt, counts),
        size_bytes=data.nbytes,
        audit=counts,
        audited=audited,
        raised=changed,
        layers=engine_layers(made.layers or (), typed),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A serialized engine: its configuration, the audit of its network, and its layers if it can be loaded here."""

    plan: Any
    config: Any
    counts: Mapping[str, int]
    layers: list[Mapping[str, Any]] | None


def _attempt(
    trt: TensorRT, typed: TypedModel, profile: tuple[ShapeRange, ...], options: BuildPlan, emit: Emit
) -> _Made:
    """Parse, audit the network, and build it."""
    builder = _builder(trt)
    with tempfile.TemporaryDirectory(prefix="trtopt-") as folder:
        # The parser copies the weights that it reads from a file.
        parsed = _parse(trt, builder, _dialect(trt, typed.onnx.path, Path(folder)))
    network = parsed.network
    if parsed.rejections:
        raise rejected(parsed.rejections, _lowered(typed))
    counts = audit_network(trt, network, typed)
    config = configure(trt, builder, options)
    # TensorRT 8.5 reads only a part of a timing cache without errors; they are no reason for a build that fails.
    logger(trt.module.__name__).errors.clear()
    if not trt.can.strong_typing:
        weak.constrain(trt, config, typed, layers_by_node(network, typed))
    _warn_of_changed_types(network, typed.onnx, emit)
    # One profile, number 0: the runner reads its shapes from there. TensorRT 8 wants one, though empty, also for a
    # network whose only unknown sizes depend on values.
    if profile or not trt.can.strong_typing:
        shapes = builder.create_optimization_profile()
        for entry in profile:
            shapes.set_shape(entry.name, entry.min, entry.opt, entry.max)
        config.add_optimization_profile(shapes)
    plan = build_serialized(trt, builder, network, config, emit)
    if plan is None:
        raise _failure(trt, network, typed)
    return _Made(plan=plan, config=config, counts=counts, layers=inspect_engine(trt, plan))


def open_runner(path: Path, builder: str, *, streams: int = 2, graphs: bool = True) -> EngineRunner:
    """Load an engine that is listed in a manifest, with the TensorRT that built it.

    Args:
        path: the engine file. Loading runs code from it: its digest must have been checked.
        builder: product and version that built it, such as "TensorRT-RTX 1.3".
        streams: number of runs that can be in flight at the same time.
        graphs: whether to use CUDA graphs.

    Raises:
        EnvironmentUnableError: that TensorRT or a GPU is missing, or the engine does not run on the GPU.
        OutOfMemoryError: the GPU has too little memory for the engine's largest shapes.
        MissingDependencyError: neither cuda-python nor pycuda is installed.
    """
    from trtopt.engine.runner.tensorrt import open_engine

    trt = find(RTX if builder.startswith("TensorRT-RTX") else PRODUCT)
    return open_engine(trt, path, streams=streams, graphs=graphs)


def layer_times(path: Path, builder: str, feed: Mapping[str, Any], runs: int) -> list[list[tuple[str, float]]]:
    """Return the names of the layers of an engine with their times in milliseconds, run by run.

    The arguments are those of `open_runner`.

    Raises:
        TrtoptError: as `open_runner`.
    """
    from trtopt.engine.runner.tensorrt import layer_times as measured

    return measured(find(RTX if builder.startswith("TensorRT-RTX") else PRODUCT), path, feed, runs)


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
            fix="Build on a machine with a GPU, or pip install tensorrt-rtx-cu13 and add --tensorrt tensorrt_rtx",
        ) from error


def _dialect(trt: TensorRT, path: Path, folder: Path) -> Path:
    """Return the path of a typed graph as this TensorRT reads it, written to `folder` if it differs."""
    write = write_for_tensorrt if trt.can.strong_typing else weak.write_widened
    return write(path, folder, trt.can.opset)


def _parse(trt: TensorRT, builder: Any, path: Path) -> _Parsed:
    """Parse an ONNX file into a network, strongly typed where this TensorRT has that."""
    collector = logger(trt.module.__name__)
    flags = trt.module.NetworkDefinitionCreationFlag
    # STRONGLY_TYPED is required by TensorRT 10. In 11 every network is strongly typed, and the flag is accepted.
    flag = flags.STRONGLY_TYPED if trt.can.strong_typing else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.module.OnnxParser(network, collector)
    # From the file, not from memory, so that the parser finds external weights beside it.
    parsed = parser.parse_from_file(str(path))
    collector.at("")
    rejected_nodes = rejections(parser, collector.parsed)
    if not rejected_nodes and (not parsed or network.num_outputs == 0):  # the parser accepts an empty file
        message = "; ".join(collector.errors) or "the model has no outputs"
        rejected_nodes = (Rejection(node="", op="", code="INVALID_GRAPH", message=message),)
    collector.errors.clear()
    return _Parsed(parser, network, rejected_nodes)


def _failure(trt: TensorRT, network: Any, typed: TypedModel) -> BuildError:
    """Return the error for a network that TensorRT cannot build."""
    from trtopt.graph.file import load_proto

    # TensorRT's messages name layers. The network tells the ONNX node of each layer.
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    ops = {node.name: node.op_type for node in load_proto(typed.onnx.path).graph.node}
    names = {layer.name: node for layer in layers if (node := onnx_node(layer, ops))}
    collector = logger(trt.module.__name__)
    return build_error(collector.errors, names, ops, typed.decisions, collector.during)


def _lowered(typed: TypedModel) -> set[str]:
    """Return the names of the nodes that are not in FP32."""
    return {decision.node for decision in typed.decisions if decision.precision != "fp32"}


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


def devices(trt: TensorRT, counts: Mapping[str, int]) -> str:
    """Return the devices that the engine runs on: many for TensorRT-RTX, else the GPU that it is built on."""
    if trt.name == RTX:
        return _RTX_FP8_DEVICES if "fp8" in counts else RTX_DEVICES
    return _gpu()


def _gpu() -> str:
    """Return the GPU models of this machine; TensorRT does not tell which of several it has used."""
    from trtopt.engine.cuda.driver import read_driver

    names = dict.fromkeys(f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in read_driver().gpus)
    return " or ".join(names) or "the GPU of the machine that built it"


def _count_line(counts: Mapping[str, int]) -> str:
    """Return counts as in "12 layers int8, 3 layers fp16"."""
    return ", ".join(f"{counted(count, 'layer')} {name}" for name, count in counts.items())
