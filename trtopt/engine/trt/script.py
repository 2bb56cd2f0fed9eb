"""`build.sh`: the trtexec line that builds a graph on the device of a platform, with everything that was decided.

Touches: nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtopt.engine import BuildPlan
from trtopt.engine.trt import weak
from trtopt.engine.trt.platforms import Platform
from trtopt.types import Decision, ShapeRange

_WEIGHTED = frozenset("Conv ConvTranspose Gemm MatMul".split())
_LINE = " \\\n  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Content of a script.

    Attributes:
        target: the platform.
        graph: name of the ONNX file beside the script.
        cache: name of the calibration cache beside it; empty without one.
        precisions: the precisions that nodes of the graph are in.
        constrained: the precision of the nodes that must not be lowered, by their names.
        ranges: the shapes of dynamic inputs.
        plan: the build options.
        judge: the commands that judge the engine on the device.
    """

    target: Platform
    graph: str
    cache: str
    precisions: frozenset[str]
    constrained: Mapping[str, str]
    ranges: tuple[ShapeRange, ...]
    plan: BuildPlan
    judge: tuple[str, ...]


def script(recipe: Recipe) -> str:
    """Return the script, for a POSIX shell."""
    target = recipe.target
    arguments = _LINE.join(map(shlex.quote, flags(recipe)))
    return f"""#!/bin/sh
# Written by trtopt for {target.name}: {target.title}. Run it there; it leaves model.engine beside it.
{_how_to_judge(recipe)}
set -eu
cd "$(dirname "$0")"
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
rm -f model.engine.graph
"$trtexec"{_LINE}{arguments} "$@"
sha256sum {recipe.graph} > model.engine.graph
"""


def _how_to_judge(recipe: Recipe) -> str:
    """Return comments with the commands that judge the engine on the device."""
    if not recipe.target.has_bindings:
        return "# trtopt cannot judge the engine there: its TensorRT has no bindings for Python 3.10 or later."
    # A path may contain a line break, behind which the shell would run the rest of a comment.
    lines = (f"#   {part}" for line in recipe.judge for part in line.splitlines())
    first = "# To judge the engine on the device, install trtopt there, and run in the folder of the conversion"
    return "\n".join((first, *lines))


def flags(recipe: Recipe) -> list[str]:
    """Return the arguments of trtexec."""
    target, plan = recipe.target, recipe.plan
    found = [f"--onnx={recipe.graph}", "--saveEngine=model.engine", *_shapes(recipe.ranges), *_types(recipe)]
    found += ["--noTF32", "--profilingVerbosity=detailed", "--exportLayerInfo=layers.json"]
    found += [f"--timingCacheFile={plan.timing_cache.name if plan.timing_cache else 'timing.cache'}"]
    if plan.workspace_bytes is not None:
        found.append(f"--memPoolSize=workspace:{plan.workspace_bytes >> 20}")
    if plan.tactic_sources:
        found.append(f"--tacticSources={plan.tactic_sources}")
    if target.can.preview_dynamic:
        found.append("--preview=+fasterDynamicShapes0805")
    if target.can.builder_options:
        if plan.optimization_level is not None:
            found.append(f"--builderOptimizationLevel={plan.optimization_level}")
        found += ["--versionCompatible"] if plan.version_compatible else []
        found += ["--hardwareCompatibilityLevel=ampere+"] if plan.hardware_compatible else []
    return [*found, "--skipInference" if target.can.skips_inference else "--buildOnly"]


def constraints(decisions: Sequence[Decision], *, implicit: bool) -> dict[str, str]:
    """Return the precision of the nodes that TensorRT must not lower further, by name.

    Beside FP16 these are the nodes in FP32. With `implicit` quantization every tensor has a scale, so that TensorRT may
    choose INT8 for any layer: then they are also the convolutions and products in FP16.
    """
    held = ("fp16", "fp32") if implicit else ("fp32",)
    return {
        each.node: each.precision
        for each in decisions
        if each.precision in held and (each.precision == "fp32" or each.op in _WEIGHTED)
    }


def unconstrained(constrained: Mapping[str, str]) -> list[str]:
    """Return the nodes whose names trtexec cannot be given: they contain `,` or `:`."""
    return [name for name in constrained if set(name) & set(",:")]


def _types(recipe: Recipe) -> list[str]:
    """Return the flags about precision. A strongly typed graph has its own."""
    target = recipe.target
    if target.can.strong_typing and not target.dla:
        return ["--stronglyTyped"] if target.can.typing_flag else []
    found = [f"--{name}" for name in ("int8", "fp16") if name in recipe.precisions]
    if target.dla:
        found += ["--useDLACore=0", "--allowGPUFallback"]
    if recipe.cache:
        found.append(f"--calib={recipe.cache}")
    named = {name: precision for name, precision in recipe.constrained.items() if not set(name) & set(",:")}
    if named and "fp16" in recipe.precisions:
        strictly = weak.how_strictly(quantized="int8" in recipe.precisions and not recipe.cache)
        found += [f"--precisionConstraints={strictly}", f"--layerPrecisions={_listed(named)}"]
        in_fp32 = {name: precision for name, precision in named.items() if precision == "fp32"}
        found += [f"--layerOutputTypes={_listed(in_fp32)}"] if in_fp32 else []
    return found


def _listed(named: Mapping[str, str]) -> str:
    return ",".join(f"{name}:{precision}" for name, precision in named.items())


def _shapes(ranges: Sequence[ShapeRange]) -> list[str]:
    def spec(end: str) -> str:
        return ",".join(
            f"{_quoted(entry.name)}:{'x'.join(map(str, getattr(entry, end)))}" for entry in ranges if entry.opt
        )

    return [f"--{end}Shapes={spec(end)}" for end in ("min", "opt", "max")] if ranges else []


def _quoted(name: str) -> str:
    """Return the name of an input as trtexec reads it: in quotes if it has a character that separates inputs."""
    return f"'{name}'" if set(name) & set(",:") else name
