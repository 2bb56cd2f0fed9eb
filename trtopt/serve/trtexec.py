"""The command line of NVIDIA's trtexec that builds the engine of a typed graph, and a script that runs it in an image.

Touches: nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from trtopt.serve.images import Image
from trtopt.types import ShapeRange

PROGRAM = "/usr/src/tensorrt/bin/trtexec"
"""Its place in NVIDIA's images."""


def line(onnx: str, plan: str, ranges: Sequence[ShapeRange], *, flag_for_typing: bool) -> list[str]:
    """Return the words of the command that builds the file `plan` from `onnx`.

    The graph alone determines the precision, as it does in `trtopt convert`.

    Args:
        onnx: the typed graph.
        plan: the engine to write.
        ranges: the shapes of the dynamic inputs.
        flag_for_typing: whether this trtexec has `--stronglyTyped`; from TensorRT 11 on nothing else exists.
    """
    words = [PROGRAM, f"--onnx={onnx}", f"--saveEngine={plan}", "--noTF32", "--skipInference"]
    words += ["--stronglyTyped"] if flag_for_typing else []
    for name in ("min", "opt", "max") if ranges else ():
        shapes = ",".join(f"{_quoted(entry.name)}:{'x'.join(map(str, getattr(entry, name)))}" for entry in ranges)
        words.append(f"--{name}Shapes={shapes}")
    return words


def _quoted(name: str) -> str:
    """Return the name of an input as trtexec reads it: quoted if it has a character that separates inputs."""
    return f"'{name}'" if {":", ","} & {*name} else name


def script(image: Image, ranges: Sequence[ShapeRange]) -> str:
    """Return the script `build.sh` of a model's folder. It builds `1/model.plan` from `1/model.onnx`."""
    words = line("1/model.onnx", "1/.model.plan", ranges, flag_for_typing=not image.strongly_typed_only)
    return f"""#!/bin/sh
# Builds 1/model.plan from 1/model.onnx, with the TensorRT of the image that serves it.
# Run it on the machine that serves it: an engine is for one version of TensorRT and one model of GPU.
set -eu
cd "$(dirname "$0")"
build() {{
  "$@" {shlex.join(words)}
}}
if [ -x {PROGRAM} ]; then
  build env
else
  build docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD":/model -w /model {shlex.quote(image.reference)}
fi
mv 1/.model.plan 1/model.plan
"""
