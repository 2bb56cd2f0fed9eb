"""The stage `build`: typed ONNX to an audited engine.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from trtopt.codec import encode
from trtopt.engine import Order, backend, compiler
from trtopt.engine.trt.fusion import unfused
from trtopt.manifest import read_inputs
from trtopt.plan import BuildPlan
from trtopt.run import Run
from trtopt.types import Engine, ShapeRange, TypedModel

FILE = "model.engine"
ADOPTED = "adopted"
"""Input of the stage for an engine that another program built: its digest."""


def build(run: Run, typed: TypedModel, ranges: Sequence[ShapeRange], plan: BuildPlan, *, again: bool = False) -> Engine:
    """Build the engine (`model.engine`) and audit its precision; with some backends the typed ONNX is the engine.

    Args:
        run: the run.
        typed: the typed ONNX graph.
        ranges: the shape ranges of dynamic inputs. Those of inputs that the graph does not have any more are ignored.
        plan: the build options.
        again: whether to build another engine, whatever the store has.

    Raises:
        EnvironmentUnableError: the backend is not available on this machine.
        BuildError: the backend does not support the network, or builds it in another precision.
    """
    order = ordered(typed, ranges, pinned(run, plan), run.device)
    compiling = compiler(plan.backend)
    if compiling is None:
        return backend(plan.backend).build(order, typed.onnx.path, emit=run.emit)

    def make(folder: Path) -> Engine:
        if has_adopted(run):
            run.warn("the engine that was adopted is replaced by a new build")
        return compiling.build(order, folder / FILE, emit=run.emit)

    key = {
        "typed": typed.onnx.digest,
        "profile": [asdict(entry) for entry in order.profile],
        "options": encode(plan),
        **compiling.key(plan),
    }
    engine = run.store.stage("build", key, Engine, make, engine_line, again=again)
    for decision in engine.raised:
        run.note(f"{decision.op} node {decision.node} stays in FP32: {decision.reason}")
    if line := unfused(engine.layers):
        run.note(line)
    return engine


def has_adopted(run: Run) -> bool:
    """Return whether the engine of the run was built by another program (`trtopt adopt`)."""
    return ADOPTED in read_inputs(run.store.root, "build")


def ordered(typed: TypedModel, ranges: Sequence[ShapeRange], plan: BuildPlan, device: str) -> Order:
    """Return the order for an engine, with the shape ranges of the inputs that the typed graph still has.

    Preparation drops the inputs that nothing reads.
    """
    names = {spec.name for spec in typed.onnx.inputs}
    profile = tuple(entry for entry in ranges if entry.name in names)
    return Order(typed=typed, profile=profile, plan=plan, device=device)


def pinned(run: Run, plan: BuildPlan) -> BuildPlan:
    """Return the plan with a timing cache in the run directory, if the user names none.

    TensorRT chooses kernels by their times, which differ from build to build, and some kernels are wrong. If all
    engines of a run are built from one timing cache, a layer that was right in one has the same kernel in the next.
    """
    cache = own_cache(run, plan)
    return plan if cache is None else replace(plan, timing_cache=cache)


def own_cache(run: Run, plan: BuildPlan) -> Path | None:
    """Return the timing cache in the run directory; None if the user names another one, or none has an effect."""
    compiling = compiler(plan.backend)
    name = compiling.timing_cache(plan) if compiling and plan.timing_cache is None else None
    return None if name is None else run.store.root / name


def engine_line(engine: Engine) -> str:
    """Return the summary line of an engine: file, size and builder."""
    return f"{engine.path.name}, {engine.size_bytes / 1e6:.2f} MB, {engine.builder}"
