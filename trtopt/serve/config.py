"""Configurations of Triton's models (`config.pbtxt`), written through the server's own protobuf.

Touches: imports tritonclient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trtopt.errors import UsageError
from trtopt.requires import require
from trtopt.types import ShapeRange, TensorSpec

Platform = Literal["tensorrt_plan", "onnxruntime_onnx"]

FILES: dict[str, str] = {"tensorrt_plan": "model.plan", "onnxruntime_onnx": "model.onnx"}
"""The file in the folder of a version, by platform."""

_TYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "string": "STRING",
}
_NOT_IN_ONNXRUNTIME = frozenset({"BF16"})
_IN_TENSORRT = frozenset({"BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "BF16"})
_WARM_UP_RUNS = 2
_WARM_UPS = {"smallest": "min", "usual": "opt", "largest": "max"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Instances of a model.

    Attributes:
        count: how many on each GPU.
        gpus: the GPUs, by their numbers in the server; empty: all.
        resource: percent of a GPU that a running instance takes, for the rate limiter; 0 without one.
        priority: for the rate limiter; one of 2 gets half the turns of one of 1. 0 without one.
    """

    count: int = 1
    gpus: tuple[int, ...] = ()
    resource: int = 0
    priority: int = 0


RESOURCE = "gpu"
"""Name of the rate limiter's resource: percent of a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Configuration of a model beside its inputs and outputs.

    Attributes:
        max_batch: the largest batch; 0 if the model has no batch axis.
        delay_us: how long a request waits for others to join its batch, in microseconds.
        groups: its instances.
        plans: the file for each compute capability, if there are several: `{"8.9": "model.sm89.plan"}`.
        priorities: number of priority levels; 1 is the most urgent, and a request without one is the least urgent.
        cache: whether the server keeps answers, for requests that are equal.
        labels: the output that `labels.txt` describes; empty without one.
    """

    max_batch: int
    delay_us: int = 0
    groups: tuple[Group, ...] = (Group(),)
    plans: Mapping[str, str] = field(default_factory=dict)
    priorities: int = 0
    cache: bool = False
    labels: str = ""


def protobuf() -> Any:
    """Return the module of the server's configurations.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    return require("tritonclient.grpc.model_config_pb2")


def model(name: str, platform: Platform, specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]], how: Serving) -> Any:
    """Return the configuration of a model.

    Args:
        name: its name in the repository.
        platform: what loads it.
        specs: its inputs and its outputs, with their batch axis.
        how: everything else.

    Raises:
        UsageError: the platform has no such type of input or output.
        MissingDependencyError: tritonclient is not installed.
    """
    pb = protobuf()
    config = pb.ModelConfig(name=name, platform=platform, max_batch_size=how.max_batch)
    config.version_policy.latest.num_versions = 1
    inputs, outputs = specs
    for group, tensors in ((config.input, inputs), (config.output, outputs)):
        for spec in tensors:
            _describe(group.add(), spec, platform, batched=how.max_batch > 0)
    for output in config.output:
        output.label_filename = "labels.txt" if output.name == how.labels else ""
    if how.max_batch > 0:
        config.dynamic_batching.max_queue_delay_microseconds = how.delay_us
        if how.priorities:
            config.dynamic_batching.priority_levels = how.priorities
            config.dynamic_batching.default_priority_level = how.priorities
    for each in how.groups:
        _place(config.instance_group.add(count=each.count, gpus=each.gpus), each, platform)
    if how.plans:
        config.default_model_filename = next(iter(how.plans.values()))
    config.cc_model_filenames.update(how.plans)
    if how.cache:
        config.response_cache.enable = True
    return config


def _place(group: Any, how: Group, platform: Platform) -> None:
    """Fill in an instance group."""
    kinds = protobuf().ModelInstanceGroup
    group.kind = kinds.KIND_GPU if platform == "tensorrt_plan" or how.gpus else kinds.KIND_AUTO
    if how.resource:
        group.rate_limiter.resources.add(name=RESOURCE, count=how.resource)
        group.rate_limiter.priority = how.priority


def _describe(tensor: Any, spec: TensorSpec, platform: Platform, *, batched: bool) -> None:
    """Fill in an input or an output. A tensor without dimensions has one in the request, which the server takes off."""
    tensor.name = spec.name
    tensor.data_type = protobuf().DataType.Value(f"TYPE_{_type(spec, platform)}")
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape[batched:]]
    if dims:
        tensor.dims.extend(dims)
    elif not batched:
        raise UsageError(
            f"{spec.name} is a scalar",
            why="Triton serves a scalar only beside a batch axis, which this model has not",
            fix="Give it the shape [1] in the network",
        )
    else:
        tensor.dims.append(1)
        tensor.reshape.SetInParent()


def _type(spec: TensorSpec, platform: Platform) -> str:
    name = _TYPES.get(spec.dtype, "")
    if platform == "tensorrt_plan" and name == "FP64":
        name = "FP32"  # TensorRT makes it one, and a build warns of it
    if platform == "tensorrt_plan" and name not in _IN_TENSORRT:
        raise UsageError(
            f"{spec.name} is {spec.dtype}",
            why="TensorRT has no such input or output",
            fix="Serve the graph instead: --platform onnxruntime",
        )
    if not name or (platform == "onnxruntime_onnx" and name in _NOT_IN_ONNXRUNTIME):
        raise UsageError(
            f"{spec.name} is {spec.dtype}",
            why="Triton's onnxruntime has no such input or output",
            fix="Convert the model with inputs and outputs of another type",
        )
    return name


def add_warm_up(config: Any, inputs: Sequence[TensorSpec], ranges: Sequence[ShapeRange]) -> None:
    """Add requests of the smallest, usual and largest shape, which the server answers before it is ready.

    Floats are random. Integers are 0, which is valid as an index and as a mask.
    """
    pb = protobuf()
    by_name = {entry.name: entry for entry in ranges}
    done = set()
    for name, size in _WARM_UPS.items():
        shapes = {
            spec.name: tuple(getattr(by_name[spec.name], size)) if spec.name in by_name else tuple(map(int, spec.shape))
            for spec in inputs
        }
        batch = min(next(iter(shapes.values()))[0], config.max_batch_size) if config.max_batch_size and shapes else 0
        key = (batch, *(shape[bool(batch) :] for shape in shapes.values()))
        if not shapes or key in done or any(entry.data_type == pb.TYPE_STRING for entry in config.input):
            continue
        done.add(key)
        request = config.model_warmup.add(name=name, batch_size=batch, count=_WARM_UP_RUNS)
        for entry in config.input:
            value = request.inputs[entry.name]
            value.data_type = entry.data_type
            value.dims.extend(shapes[entry.name][bool(batch) :] or (1,))
            is_float = pb.DataType.Name(entry.data_type)[5:] in ("FP16", "FP32", "FP64", "BF16")
            setattr(value, "random_data" if is_float else "zero_data", True)


def text(config: Any) -> str:
    """Return a configuration as the text of `config.pbtxt`."""
    written: str = require("google.protobuf.text_format").MessageToString(config)
    # The text leaves out zeros. Without this line a server may complete the configuration with a batch axis.
    return written if config.max_batch_size else f"{written}max_batch_size: 0\n"


def parse(written: str) -> Any:
    """Return the configuration in a text.

    Raises:
        ParseError: of protobuf, if a field is unknown or has the wrong type.
    """
    return require("google.protobuf.text_format").Parse(written, protobuf().ModelConfig())
