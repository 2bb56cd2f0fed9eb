"""The script `build.sh` of a model's folder, which builds its engine in the image of the server.

Touches: nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from trtopt.engine import BuildPlan
from trtopt.engine.trt.platforms import Platform
from trtopt.engine.trt.script import Recipe, flags
from trtopt.errors import UsageError
from trtopt.serve.images import Image
from trtopt.types import OnnxModel, ShapeRange

PROGRAM = "/usr/src/tensorrt/bin/trtexec"
"""Its place in NVIDIA's images."""


def script(image: Image, model: OnnxModel, ranges: Sequence[ShapeRange]) -> str:
    """Return the script. It builds `1/model.plan` from `1/model.onnx`, in the image or in a container of it.

    Raises:
        UsageError: the parser of the image's TensorRT does not read the opset of the graph.
    """
    target = Platform(name=image.name, version=image.tensorrt)
    if model.opset > target.can.opset:
        raise UsageError(
            f"{model.path} has opset {model.opset}",
            why=f"the parser of TensorRT {image.tensorrt} in {image.name} reads {target.can.opset}",
            fix="Choose a later --image, or convert with --target",
        )
    recipe = Recipe(
        target=target,
        graph="model.onnx",
        cache="",
        precisions=frozenset(),
        constrained={},
        ranges=tuple(ranges),
        plan=BuildPlan(),
        judge=(),
    )
    words = shlex.join([PROGRAM, *flags(recipe)])
    container = f'-v "$PWD":/model -w /model {shlex.quote(image.reference)}'
    return f"""#!/bin/sh
# Builds 1/model.plan from 1/model.onnx, with the TensorRT of the image that serves it.
# Run it on the machine that serves it: an engine is for one version of TensorRT and one model of GPU.
set -eu
cd "$(dirname "$0")/1"
build() {{
  "$@" {words}
}}
if [ -x {PROGRAM} ]; then
  build env
else
  build docker run --rm --gpus all --user "$(id -u):$(id -g)" {container}
fi
mv model.engine model.plan
"""
