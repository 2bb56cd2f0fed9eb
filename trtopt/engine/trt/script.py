"""`build.sh`: the trtexec line that builds a graph on the device of a platform, with everything that was decided.

Touches: nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from trtopt.engine import BuildPlan
from trtopt.engine.trt.platforms import Platform, newer
from trtopt.types import Decision, ShapeRange

_LINE = " \\\n  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Content of a script.

    Attributes:
        target: the platform.
        graph: name of the ONNX file beside the script.
        cache: name of the calibration cache beside it; empty without one.
        precisions: the precisions that nodes of the graph are in.
        kept: the nodes that must stay in FP32 beside FP16, by name.
        ranges: the shapes of dynamic inputs.
        plan: the build options.
        judge: the command that judges the engine on the device.
    """

    target: Platform
    graph: str
    cache: str
    precisions: frozenset[str]
    kept: tuple[str, ...]
    ranges: tuple[ShapeRange, ...]
    plan: BuildPlan
    judge: str


def script(recipe: Recipe) -> str:
    """Return the script, for a POSIX shell."""
    target = recipe.target
    arguments = _LINE.join(map(shlex.quote, flags(recipe)))
    return f"""#!/bin/sh
# Written by trtopt for {target.name}: {target.title}. Run it there; it leaves model.engine beside it.
# To judge the engine on the device, install trtopt there, and run
#   {recipe.judge}
set -eu
cd "$(dirname "$0")"
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
exec "$trtexec"{_LINE}{arguments} "$@"
"""


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
    if newer(target, (8, 6)):
        if plan.optimization_level is not None:
            found.append(f"--builderOptimizationLevel={plan.optimization_level}")
        found += ["--versionCompatible"] if plan.version_compatible else []
        found += ["--hardwareCompatibilityLevel=ampere+"] if plan.hardware_compatible else []
    return [*found, "--skipInference" if newer(target, (8, 6)) else "--buildOnly"]


def unconstrained(decisions: Sequence[Decision]) -> list[str]:
    """Return the nodes that must stay in FP32, but whose names trtexec cannot be given: they contain `,` or `:`."""
    return [each.node for each in decisions if each.precision == "fp32" and set(each.node) & set(",:")]


def _types(recipe: Recipe) -> list[str]:
    """Return the flags about precision. A strongly typed graph has its own."""
    target = recipe.target
    if target.can.strong_typing and not target.dla:
        return ["--stronglyTyped"] if not newer(target, (11, 0)) else []
    found = [f"--{name}" for name in ("int8", "fp16") if name in recipe.precisions]
    if target.dla:
        found += ["--useDLACore=0", "--allowGPUFallback"]
    if recipe.cache:
        found.append(f"--calib={recipe.cache}")
    names = [name for name in recipe.kept if not set(name) & set(",:")]
    if names and "fp16" in recipe.precisions:
        listed = ",".join(f"{name}:fp32" for name in names)
        found += ["--precisionConstraints=obey", f"--layerPrecisions={listed}", f"--layerOutputTypes={listed}"]
    return found


def _shapes(ranges: Sequence[ShapeRange]) -> list[str]:
    def spec(end: str) -> str:
        return ",".join(
            f"{_quoted(entry.name)}:{'x'.join(map(str, getattr(entry, end)))}" for entry in ranges if entry.opt
        )

    return [f"--{end}Shapes={spec(end)}" for end in ("min", "opt", "max")] if ranges else []


def _quoted(name: str) -> str:
    """Return the name of an input as trtexec reads it: in quotes if it has a character that separates inputs."""
    return f"'{name}'" if set(name) & set(",:") else name
