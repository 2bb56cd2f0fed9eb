"""The models that `queues.py` serves: some that sleep, a network that computes, and one that does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from trtopt.data.dataset import Feed
from trtopt.events import silent
from trtopt.graph.file import describe
from trtopt.serve import config, folders, repository
from trtopt.serve.images import image
from trtopt.types import ShapeRange, TensorSpec

BATCH = 8
BATCHES = (1, 2, 4, 8)
CHANNELS = 384
PROGRAM = """from __future__ import annotations

import time

import numpy as np
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        arrays = [np.from_dlpack(request.inputs()[0]).copy() for request in requests]
        time.sleep({seconds})
        return [backend.InferenceResponse([backend.Tensor.from_dlpack("y", array)]) for array in arrays]
"""
SLEEP = PROGRAM.format(seconds="0.04 + 0.01 * sum(map(len, arrays))")
NOTHING = PROGRAM.format(seconds="0")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A served model.

    Attributes:
        folder: its folder.
        request: a request of one sample.
        fixed: the same model with one instance and no delay, by its largest batch.
        instances: the number of its instances.
        delay: its delay in ms.
        sleeps: whether its instances do not compute, so that they do not slow each other down.
    """

    folder: repository.Folder
    request: Feed
    fixed: dict[int, repository.Folder] = field(default_factory=dict)
    instances: int = 1
    delay: float = 0.0
    sleeps: bool = True

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.folder.name


def program(name: str, source: str, how: config.Serving) -> repository.Folder:
    """Return the folder of a model that is a program with one input and one output, float32 [n, 1]."""
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 1))
    made = config.model(name, "onnxruntime_onnx", ((spec,), (replace(spec, name="y"),)), how)
    made.platform, made.backend = "", "python"
    return repository.Folder(config=made, files={"1/model.py": source})


def asleep(name: str, instances: int, delay: float) -> Case:
    """Return a model that sleeps for 40 ms, and 10 ms per sample: nothing else on the machine makes it slower."""
    how = config.Serving(max_batch=BATCH, delay_us=round(delay * 1000), groups=(config.Group(count=instances),))
    return Case(
        folder=program(name, SLEEP, how),
        request={"x": np.zeros((1, 1), np.float32)},
        fixed={batch: program(f"asleep-{batch}", SLEEP, config.Serving(max_batch=batch)) for batch in BATCHES},
        instances=instances,
        delay=delay,
    )


def network(folder: Path, name: str, instances: int) -> Case:
    """Return a network of some billion products per sample, which takes the time of the CPU."""
    text = f"""<ir_version: 9, opset_import: ["": 17]> g (float[n, 1, 28, 28] x) => (float[n, {CHANNELS}, 1, 1] y) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, v) b = Conv<pads = [1, 1, 1, 1]>(a, w) y = GlobalAveragePool(b)
    }}"""
    proto = onnx.parser.parse_model(text)
    for weight, channels in (("v", 1), ("w", CHANNELS)):
        values = np.full((CHANNELS, channels, 3, 3), 1e-3, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
    path = folder / "network.onnx"
    onnx.save(proto, path)
    shapes = (ShapeRange(name="x", min=(1, 1, 28, 28), opt=(BATCH, 1, 28, 28), max=(BATCH, 1, 28, 28)),)

    def served(name: str, batch: int, count: int) -> repository.Folder:
        given = folders.Given(batch=batch, delay_us=0, groups=(config.Group(count=count),))
        model = folders.Model(name=name, runs=(folders.Source(onnx=describe(path)),), shapes=shapes)
        (made,) = folders.make(model, folders.Options(image=image("26.03"), given=given), silent).folders
        return made

    return Case(
        folder=served(name, BATCH, instances),
        request={"x": np.zeros((1, 1, 28, 28), np.float32)},
        fixed={batch: served(f"network-{batch}", batch, 1) for batch in BATCHES},
        instances=instances,
        sleeps=False,
    )


def cases(folder: Path) -> Iterator[Case]:
    """Yield the models; `folder` takes the file of the network."""
    yield network(folder, "network", 1)
    yield asleep("asleep", 1, 0.0)
    yield asleep("patient", 1, 30.0)
    yield asleep("twice", 2, 0.0)


EMPTY = Case(
    folder=program("empty", NOTHING, config.Serving(max_batch=BATCH)), request={"x": np.zeros((1, 1), np.float32)}
)
