"""TensorRT's own entropy calibrator, of 8.5 to 10: the scales that it chooses on the prepared FP32 network.

TensorRT 11 has none. The calibrator runs while an INT8 engine is built, so this needs a GPU, and a build.

Touches: the GPU; reads the model and the samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtopt.engine import BuildPlan
from trtopt.engine.cuda.device import Buffer, Stream, open_device
from trtopt.engine.trt.diagnosis import logger, rejected, rejections
from trtopt.engine.trt.locate import TensorRT
from trtopt.engine.trt.options import configure
from trtopt.errors import BuildError, EnvironmentUnableError

Feeds = Sequence[Mapping[str, npt.NDArray[np.generic]]]


def check_native(trt: TensorRT) -> None:
    """Raise an error if this TensorRT has no calibrator.

    Raises:
        EnvironmentUnableError: it is TensorRT 11 or TensorRT for RTX.
    """
    if not trt.can.calibrator:
        raise EnvironmentUnableError(
            f"{trt.title} has no calibrator of its own",
            why="--method native is that of TensorRT 8.5 to 10, on a GPU",
            fix="Choose another --method, or give the cache of an older TensorRT: --calib-table FILE",
        )


def calibrate(trt: TensorRT, model: Path, feeds: Feeds, options: BuildPlan) -> bytes:
    """Return the calibration cache that TensorRT writes for a model.

    Args:
        trt: the TensorRT package.
        model: the prepared FP32 model.
        feeds: batches of samples, all of the shapes of the first.
        options: the build options.

    Raises:
        EnvironmentUnableError: this TensorRT has no calibrator, or there is no GPU.
        BuildError: TensorRT rejects the model, or does not calibrate it.
    """
    check_native(trt)
    module, collector = trt.module, logger(trt.module.__name__)
    try:
        builder = module.Builder(collector)
    except TypeError as error:
        raise EnvironmentUnableError(f"{trt.title} cannot calibrate here", why="it needs an NVIDIA GPU") from error
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = module.OnnxParser(network, collector)
    parser.parse_from_file(str(model))
    if rejections(parser):
        raise rejected(rejections(parser))
    config = configure(trt, builder, options)
    config.set_flag(module.BuilderFlag.INT8)
    config.set_flag(module.BuilderFlag.FP16)
    # The calibration profile's usual shape must be that of the batch, or TensorRT 8.5 reads past the buffer.
    names = {network.get_input(index).name for index in range(network.num_inputs)}
    feeds = [{name: array for name, array in feed.items() if name in names} for feed in feeds]
    shapes = builder.create_optimization_profile()
    for name, array in feeds[0].items():
        shapes.set_shape(name, array.shape, array.shape, array.shape)
    config.add_optimization_profile(shapes)
    config.set_calibration_profile(shapes)
    with open_device() as device, device.stream() as stream, contextlib.ExitStack() as held:
        buffers = {name: held.enter_context(device.allocate(array.nbytes)) for name, array in feeds[0].items()}
        calibrator = _calibrator(module, feeds, buffers, stream)
        config.int8_calibrator = calibrator
        plan = builder.build_serialized_network(network, config)
    if not calibrator.cache:
        why = "; ".join(collector.errors) or ("it wrote no cache" if plan else "the build failed")
        raise BuildError(f"{trt.title} did not calibrate {model.name}", why=why, fix="Choose another --method")
    return bytes(calibrator.cache)


def _calibrator(module: Any, feeds: Feeds, buffers: Mapping[str, Buffer], stream: Stream) -> Any:
    """Return TensorRT's entropy calibrator, fed with the batches one by one."""

    class Calibrator(module.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.done = 0
            self.cache = b""

        def get_batch_size(self) -> int:
            return max(next(iter(feeds[0].values())).shape[:1], default=1)

        def get_batch(self, names: list[str]) -> list[int] | None:
            if self.done == len(feeds):
                return None
            for name, array in feeds[self.done].items():
                stream.to_device(buffers[name], np.ascontiguousarray(array))
            stream.synchronize()
            self.done += 1
            return [buffers[name].pointer for name in names]

        def read_calibration_cache(self) -> None:
            return None

        def write_calibration_cache(self, cache: Any) -> None:
            self.cache = bytes(cache)

    return Calibrator()
