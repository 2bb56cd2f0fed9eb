"""The stage `target`: the graph in the dialect of another platform's TensorRT, and the script that builds it there.

The DLA of TensorRT 8.5 to 10.7 has implicit quantization only: it is given the FP32 graph with fixed shapes, and a
calibration cache with the scale of every tensor.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.codec import encode
from trtopt.engine.trt import script
from trtopt.engine.trt.platforms import Platform
from trtopt.errors import UsageError
from trtopt.run import Run
from trtopt.stages.build import ordered
from trtopt.stages.made import Made
from trtopt.types import CalibrationTable, ShapeRange, TargetFiles

if TYPE_CHECKING:
    import onnx_ir as ir

GRAPH, SCRIPT, CACHE = "target.onnx", "build.sh", "target.cache"
_FINEST = 127
"""Levels of INT8 on each side of zero."""


def graph_file(engine: Path) -> Path:
    """Return the file beside an engine in which build.sh records the digest of the graph, as sha256sum writes it."""
    return engine.with_name(f"{engine.name}.graph")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A platform, and the commands that judge the engine there."""

    target: Platform
    judge: tuple[str, ...]


def aim(run: Run, made: Made, aimed: Aim) -> TargetFiles:
    """Write the graph (`target.onnx`), the script (`build.sh`) and, for a DLA, the calibration cache (`target.cache`).

    Raises:
        ModelError: a node has no form in the opset of that TensorRT.
    """
    target = aimed.target
    ranges = ordered(made.typed, made.ranges, made.plan, run.device).profile
    constrained = _constrained(made, target)
    for node in script.unconstrained(constrained):
        precision = constrained[node].upper()
        run.warn(f"{node} is not constrained to {precision}: trtexec cannot be given a name with a comma or colon")

    def make(folder: Path) -> TargetFiles:
        return _written(made, aimed, ranges, folder)

    key = {
        "typed": made.typed.onnx.digest,
        "model": made.model.digest,
        "target": asdict(target),
        "ranges": [asdict(entry) for entry in ranges],
        "plan": encode(made.plan),
        "seen": made.seen.digest if made.seen and target.dla else "",
        "judge": list(aimed.judge),
    }
    return run.store.stage("target", key, TargetFiles, make, lambda files: f"{GRAPH} and {SCRIPT} for {files.tensorrt}")


def _written(made: Made, aimed: Aim, ranges: tuple[ShapeRange, ...], folder: Path) -> TargetFiles:
    from trtopt.calibrate.table import write_cache
    from trtopt.graph.prepare import check_types, save

    target, typed = aimed.target, made.typed
    cache = folder / CACHE if target.dla and typed.precision == "int8" else None
    model = _fixed(made, ranges) if target.dla else _dialect(made, target, folder)
    _lower(model, target)
    save(model, folder / GRAPH)
    check_types(folder / GRAPH)
    if cache is not None:
        write_cache(_every_scale(made), cache, version=target.cache_version)
    constrained = _constrained(made, target)
    recipe = script.Recipe(
        target=target,
        graph=GRAPH,
        cache=cache.name if cache else "",
        precisions=frozenset(decision.precision for decision in typed.decisions),
        constrained={name: constrained[name] for node in model.graph if (name := node.name or "") in constrained},
        ranges=() if target.dla else ranges,
        plan=made.plan,
        judge=aimed.judge,
    )
    path = folder / SCRIPT
    path.write_text(script.script(recipe), encoding="utf-8")
    path.chmod(0o755)
    return TargetFiles(target=target.name, tensorrt=target.title, graph=folder / GRAPH, script=path, cache=cache)


def _constrained(made: Made, target: Platform) -> dict[str, str]:
    """Return the precisions to constrain layers to; none in a strongly typed graph."""
    if target.can.strong_typing and not target.dla:
        return {}
    return script.constraints(made.typed.decisions, implicit=target.dla and made.typed.precision == "int8")


def _dialect(made: Made, target: Platform, folder: Path) -> ir.Model:
    """Return the typed graph as that TensorRT reads it."""
    from trtopt.engine.trt.weak import write_widened
    from trtopt.graph.file import load_ir
    from trtopt.graph.portable import for_tensorrt
    from trtopt.graph.prepare import infer_shapes

    if target.can.strong_typing:
        model = load_ir(made.typed.onnx.path)
        infer_shapes(model)
        for_tensorrt(model)
        return model
    path = write_widened(made.typed.onnx.path, folder, target.can.opset)
    model = load_ir(path)
    infer_shapes(model)
    for value in model.graph.initializers.values():  # the file goes
        if value.const_value is not None:
            value.const_value = _in_memory(value)
    path.unlink()
    return model


def _in_memory(value: ir.Value) -> ir.TensorProtocol:
    import onnx_ir as ir

    assert value.const_value is not None
    return ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)


def _lower(model: ir.Model, target: Platform) -> None:
    from trtopt.graph.older import lower_opset
    from trtopt.graph.prepare import infer_shapes

    lower_opset(model, target.can.opset)
    infer_shapes(model)


def _fixed(made: Made, ranges: tuple[ShapeRange, ...]) -> ir.Model:
    """Return the FP32 graph with fixed shapes."""
    import onnx_ir as ir

    from trtopt.graph.file import load_ir
    from trtopt.graph.prepare import infer_shapes

    model = load_ir(made.model.path)
    sizes: Mapping[str, tuple[int, ...]] = {entry.name: entry.opt for entry in ranges}
    for value in model.graph.inputs:
        if (value.name or "") in sizes:
            value.shape = ir.Shape(sizes[value.name or ""])
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(model)
    return model


def _every_scale(made: Made) -> CalibrationTable:
    """Return the scales of the table, and of every other tensor that of its absmax."""
    assert made.table is not None
    observed = made.seen.ranges if made.seen else {}
    others = {name: absmax / _FINEST for name, absmax in observed.items() if absmax > 0}
    return replace(made.table, scales={**others, **made.table.scales})


def check_fixed(target: Platform, ranges: Sequence[ShapeRange]) -> None:
    """Raise UsageError if a dynamic input of a network for a DLA has no fixed shape."""
    for entry in ranges:
        if entry.min != entry.max:
            shape = "x".join(map(str, entry.opt))
            raise UsageError(
                f"--target {target.name}: {entry.name} has a range of shapes",
                why="the DLA runs fixed shapes only",
                fix=f"Add --shape {entry.name}={shape}",
            )
