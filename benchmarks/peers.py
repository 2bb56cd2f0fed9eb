"""The variants of `quality.py`, made by trtopt, onnxruntime's `quantize_static` and NVIDIA ModelOpt.

This module runs under two Pythons, that of trtopt and that of ModelOpt, and therefore imports neither at the top. Every
variant gets the same samples, one at a time, in the same order.

Touches: the folder that is passed in, where it writes `model.onnx`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks import UNBATCHED, feeds

WEIGHTED = ("Conv", "MatMul", "Gemm")
"""Operators that onnxruntime quantizes. TensorRT builds the result only if onnxruntime is configured as it requires."""

BATCHES = (1, 2, 4)
"""Smallest, usual and largest batch of a network with a batch axis."""


@dataclasses.dataclass(frozen=True)
class Made:
    """The time to make a variant, in seconds.

    Attributes:
        calibrate: calibration.
        equalize: equalization, which only trtopt has.
        samples: the part of `calibrate` that grows with the samples, without one-time loading and compilation.
        total: everything.
        typed: the number of nodes by precision, if it is known.
    """

    calibrate: float | None = None
    equalize: float | None = None
    samples: float | None = None
    total: float | None = None
    typed: dict[str, int] | None = None


def make(variant: str, zoo: Path, name: str, folder: Path) -> Made:
    """Make `folder/model.onnx`: the variant `MAKER:PRECISION[:METHOD]` of the model `name`."""
    maker, *how = variant.split(":")
    return {"fp32": baseline, "trtopt": trtopt, "ort": onnxruntime, "modelopt": modelopt}[maker](how, zoo, name, folder)


def baseline(_how: list[str], zoo: Path, name: str, folder: Path) -> Made:
    """Copy the FP32 model. Its calibration time is that of plain inference over the calibration samples."""
    from trtopt.engine.onnxruntime import open_runner

    shutil.copyfile(zoo / f"{name}.onnx", folder / "model.onnx")
    run = open_runner(folder / "model.onnx").run
    clock = []
    start = time.perf_counter()
    for feed in feeds(zoo, name, "calib"):
        run(feed)
        clock.append(time.perf_counter())
    return Made(calibrate=clock[-1] - start, samples=_steady(clock))


def _steady(clock: list[float]) -> float:
    """Return the seconds for all samples, extrapolated from all but the first, which warms up.

    `clock` holds the time at which each sample was finished.
    """
    return (clock[-1] - clock[0]) * len(clock) / (len(clock) - 1)


def trtopt(how: list[str], zoo: Path, name: str, folder: Path) -> Made:
    """Run `trtopt convert` with its defaults, except for the method and the steps that the variant turns off."""
    from trtopt.codec import encode
    from trtopt.commands.convert import convert
    from trtopt.events import Event, Progress
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan
    from trtopt.shapes import parse_shapes

    precision, *rest = how
    plan = ConvertPlan(
        source=zoo / f"{name}.onnx",
        precision=precision,
        run_dir=folder / "run",
        calib=DataPlan(source=str(zoo / f"{name}.calib.npz")),
        compare=False,
        shapes=parse_shapes(flags(zoo, name)),
        build=BuildPlan(backend="onnxruntime"),
    )
    if rest:
        plan = dataclasses.replace(plan, method=rest[0])
    for step in rest[1:]:
        plan = dataclasses.replace(plan, **{step.removeprefix("no_"): False})
    clock: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "calibrate":
            clock.append(time.perf_counter())

    report, _ = convert(plan, note)
    assert report.typed is not None
    shutil.copyfile(report.typed.onnx.path, folder / "model.onnx")
    (folder / "typed.json").write_text(json.dumps(encode(report.typed)))
    seconds = {stage.name: stage.seconds for stage in report.stages}
    return Made(
        calibrate=seconds.get("calibrate"),
        equalize=seconds.get("equalize"),
        samples=_steady(clock) if clock else None,
        total=sum(seconds.values()),
        typed=report.typed.counts(),
    )


def flags(zoo: Path, name: str) -> tuple[str, ...]:
    """Return `--shape` flags for the dynamic inputs: the shape of the samples, with `BATCHES` as the batch."""
    import onnx

    feed = next(feeds(zoo, name, "calib"))
    shape_flags = []
    for entry in onnx.load(zoo / f"{name}.onnx", load_external_data=False).graph.input:
        if all(dim.dim_value for dim in entry.type.tensor_type.shape.dim):
            continue
        shape = feed[entry.name].shape
        shapes = [shape] if name in UNBATCHED else [(size, *shape[1:]) for size in BATCHES]
        shape_flags.append(f"{entry.name}=" + ":".join("x".join(map(str, sizes)) for sizes in shapes))
    return tuple(shape_flags)


class Reader:
    """An onnxruntime CalibrationDataReader over samples that records when it is first read."""

    def __init__(self, samples: Iterable[dict[str, Any]]) -> None:
        self._feeds = list(samples)
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample, or None after the last."""
        self.began = self.began or time.perf_counter()
        return next(self._left, None)

    def get_first(self) -> dict[str, Any]:
        """Return the first sample without consuming it. ModelOpt runs the model on it before it calibrates."""
        return self._feeds[0]

    def rewind(self) -> None:
        """Restart, and reset the clock: ModelOpt reads samples before it calibrates."""
        self._left: Iterator[dict[str, Any]] = iter(self._feeds)
        self.began = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._feeds)

    def __next__(self) -> dict[str, Any]:
        feed = self.get_next()
        if feed is None:
            raise StopIteration
        return feed

    def __len__(self) -> int:
        return len(self._feeds)


@contextlib.contextmanager
def calibration(reader: Reader) -> Iterator[list[float]]:
    """Yield a list for the calibration time in seconds: from the first sample read to the start of the quantizer.

    Both peers use onnxruntime's quantizer, whose constructor is replaced meanwhile.
    """
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    original, seconds = QDQQuantizer.__init__, []

    def record(self: Any, *args: Any, **options: Any) -> None:
        seconds.append(time.perf_counter() - reader.began)
        original(self, *args, **options)

    QDQQuantizer.__init__ = record
    try:
        yield seconds
    finally:
        QDQQuantizer.__init__ = original


def onnxruntime(how: list[str], zoo: Path, name: str, folder: Path) -> Made:
    """Run `quantize_static` as TensorRT requires: symmetric, per channel, inputs only, biases in floating point."""
    reader = Reader(feeds(zoo, name, "calib"))
    start = time.perf_counter()
    with calibration(reader) as seconds:
        quantized_as_tensorrt_requires(zoo / f"{name}.onnx", folder / "model.onnx", reader, *how)
    return Made(calibrate=seconds[0], total=time.perf_counter() - start)


def quantized_as_tensorrt_requires(model: Path, out: Path, reader: Reader, method: str, bins: str = "") -> None:
    """Run `quantize_static`: symmetric, per channel, inputs of weighted operators only, biases in floating point."""
    import functools
    import importlib

    import onnx
    from onnx import version_converter
    from onnxruntime.quantization import CalibrationMethod, QuantFormat
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # By name, because the package has a function with the name of the module.
    ort = importlib.import_module("onnxruntime.quantization.quantize")
    # quantize_static has no option for the number of bins. With its 128 bins, entropy has only one candidate range.
    if bins:
        ort.create_calibrator = functools.partial(_with_bins, ort.create_calibrator, int(bins))
    proto = onnx.load(model)
    if proto.opset_import[0].version < 17:
        proto = version_converter.convert_version(proto, 17)
    onnx.save(proto, out.with_name("source.onnx"))
    # Symbolic shape inference fails for a transformer (Expand), and quantization does not need it.
    quant_pre_process(out.with_name("source.onnx"), out.with_name("ready.onnx"), skip_symbolic_shape=True)
    ort.quantize_static(
        out.with_name("ready.onnx"),
        out,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(WEIGHTED),
        per_channel=True,
        calibrate_method=CalibrationMethod[method],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        },
    )


def _with_bins(create: Any, bins: int, *args: Any, **options: Any) -> Any:
    options["extra_options"] = {**options["extra_options"], "num_bins": bins}
    return create(*args, **options)


def modelopt(how: list[str], zoo: Path, name: str, folder: Path) -> Made:
    """Run ModelOpt's `int8` with FP32 as the fallback precision, or AutoCast to `fp16` with FP32 inputs and outputs."""
    precision, *method = how
    return quantize(method[0], zoo, name, folder) if precision == "int8" else autocast(zoo, name, folder)


def quantize(method: str, zoo: Path, name: str, folder: Path) -> Made:
    from modelopt.onnx.quantization import quantize

    reader = Reader(feeds(zoo, name, "calib"))
    shutil.copyfile(zoo / f"{name}.onnx", folder / "source.onnx")
    start = time.perf_counter()
    with calibration(reader) as seconds:
        quantize(
            str(folder / "source.onnx"),
            quantize_mode="int8",
            calibration_data_reader=reader,
            calibration_method=method,
            calibration_eps=["cpu"],
            output_path=str(folder / "model.onnx"),
            high_precision_dtype="fp32",
        )
    return Made(calibrate=seconds[0] if seconds else None, total=time.perf_counter() - start)


def autocast(zoo: Path, name: str, folder: Path) -> Made:
    import numpy as np
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    (folder / "samples").mkdir()
    for index, feed in enumerate(feeds(zoo, name, "calib")):
        np.savez(folder / "samples" / f"{index:04}.npz", allow_pickle=False, **feed)
    start = time.perf_counter()
    model = convert_to_mixed_precision(
        str(zoo / f"{name}.onnx"), keep_io_types=True, calibration_data=str(folder / "samples")
    )
    onnx.save(model, folder / "model.onnx")
    return Made(total=time.perf_counter() - start)
