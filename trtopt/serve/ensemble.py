"""An ensemble from encoded images to scores: the recipe's preprocessing as a Python step, and then the model.

The step's code is that of `trtopt.data.images` and `trtopt.data.geometry`, copied into the step, so that a server
computes what the calibration and the comparison computed. It imports numpy and Pillow, and `Dockerfile` adds them to
the image of the server.

Touches: reads the source of trtopt.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

from trtopt.data import geometry, images
from trtopt.data.fitting import fitted
from trtopt.data.recipe import ImageRecipe, Recipe, Side
from trtopt.errors import UsageError
from trtopt.serve.config import protobuf
from trtopt.serve.images import Image
from trtopt.serve.repository import Folder
from trtopt.types import OnnxModel

INPUT = "image"
"""The input of the ensemble: the bytes of an image file, as uint8 [batch, length]."""

DOCKERFILE = "Dockerfile"
"""The file in the ensemble's folder that adds what the step imports to the image of the server."""

_STEP = Path(__file__).parent / "inside/preprocess.py"
_IMAGE_RANK = 4
_COPIES = 2
"""Instances of the step: decoding takes longer than most networks do on a GPU."""


def image_recipe(recipe: Recipe, model: OnnxModel) -> ImageRecipe:
    """Return the [image] table of a recipe, fitted to the model's only input.

    Raises:
        UsageError: the recipe has no [image] table, the model has several inputs, or the recipe's images do not have
            the shape of the input.
    """
    if recipe.image is None:
        raise UsageError(f"recipe {recipe.name} has no [image] table", why="--ensemble begins with an image")
    if len(model.inputs) != 1:
        raise UsageError("--ensemble needs a model with one input", why=f"this one has {len(model.inputs)}")
    spec = model.inputs[0]
    wanted = f"input {spec.name} is [{', '.join(map(str, spec.shape))}]"
    if len(spec.shape) != _IMAGE_RANK:
        raise UsageError("--ensemble needs a model of images", why=wanted)
    how = fitted(recipe, spec)
    channels, of_input = 1 if how.color == "gray" else 3, spec.shape[1 if how.layout == "NCHW" else 3]
    if isinstance(of_input, int) and of_input != channels:
        raise UsageError(
            f"recipe {recipe.name} does not fit input {spec.name}",
            why=f"its images are {how.layout} with {channels} channels, and {wanted}",
            fix="Give the recipe that the model was calibrated with: --recipe NAME|PATH",
        )
    return how


def step(name: str, how: ImageRecipe, model: Any) -> Folder:
    """Return the folder of the preprocessing step.

    Args:
        name: its name.
        how: the preprocessing.
        model: the configuration of the model that it feeds.
    """
    pb = protobuf()
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=model.max_batch_size)
    config.input.add(name=INPUT, data_type=pb.TYPE_UINT8, dims=[-1], allow_ragged_batch=model.max_batch_size > 0)
    target = model.input[0]
    config.output.add(name=target.name, data_type=target.data_type, dims=target.dims)
    if model.max_batch_size:
        config.dynamic_batching.SetInParent()
    config.instance_group.add(count=_COPIES, kind=pb.ModelInstanceGroup.KIND_CPU)
    dtype = {pb.TYPE_FP16: "float16", pb.TYPE_FP64: "float64", pb.TYPE_UINT8: "uint8"}.get(target.data_type, "float32")
    return Folder(config=config, files={"1/model.py": _code(how, target.name, dtype)})


def _code(how: ImageRecipe, output: str, dtype: str) -> str:
    """Return the program of the step."""
    values = ", ".join(f"{field.name}={getattr(how, field.name)!r}" for field in fields(how))
    docstring, _, code = _STEP.read_text(encoding="utf-8").partition('"""\n\n')
    _, _, sizes = inspect.getsource(geometry).partition("\nSize = ")
    functions = "\n\n".join(inspect.getsource(part) for part in (images.to_array, images.padded))
    return f"""{docstring}\"\"\"

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

Size = {sizes}

{inspect.getsource(Side)}

{functions}

RECIPE = SimpleNamespace({values})
OUTPUT = {output!r}
DTYPE = {dtype!r}
FORMATS = {tuple(sorted(set(images.FORMATS.values())))!r}

{code}"""


def ensemble(name: str, first: Any, second: Any, labels: str) -> Folder:
    """Return the folder of the ensemble.

    Args:
        name: its name.
        first: the configuration of the preprocessing step.
        second: the configuration of the model.
        labels: the content of the labels file; empty without one.
    """
    pb = protobuf()
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=second.max_batch_size)
    config.input.add(name=INPUT, data_type=pb.TYPE_UINT8, dims=[-1])
    for output in second.output:
        config.output.add().CopyFrom(output)
    between = second.input[0].name
    steps = config.ensemble_scheduling.step
    steps.add(model_name=first.name, model_version=-1, input_map={INPUT: INPUT}, output_map={between: "preprocessed"})
    outputs = {output.name: output.name for output in second.output}
    steps.add(model_name=second.name, model_version=-1, input_map={between: "preprocessed"}, output_map=outputs)
    return Folder(config=config, files={"labels.txt": labels} if labels else {})


def dockerfile(image: Image) -> str:
    """Return the Dockerfile of a server that has what the step imports."""
    from PIL import __version__ as pillow

    # Python of an older image may have no newer Pillow. Python of a newer one refuses packages that are not Debian's.
    return f"""# The server, with what the preprocessing step imports.
FROM {image.reference}
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir numpy 'pillow<={pillow}'
"""
