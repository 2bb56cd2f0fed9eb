"""The stage `fault`: the nodes that make an engine differ from its graph, found by building engines without them.

A wrong engine does not tell which of its layers is wrong, and marking intermediate tensors as outputs would change what
TensorRT fuses. So engines are built in which some nodes are kept in higher precision, until the fewest nodes are found
that make the engine right. Keeping a node changes the fusion around it as well: the nodes that are found belong to the
wrong layer, or to one that it is fused with.

Before that, the same graph is built again with the kernels timed anew. If such an engine is right, the layers that only
the wrong one has are at fault, and it is taken.

Touches: the run directory, through the store; temporary folders; the GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.engine import backend
from trtopt.errors import AuditError, BuildError, EnvironmentUnableError, TrtoptError
from trtopt.events import Progress, silent
from trtopt.manifest import read_inputs
from trtopt.plan import MeasurePlan
from trtopt.precision import formats
from trtopt.run import Run
from trtopt.stages.build import FILE, build, ordered, own_cache, pinned
from trtopt.stages.compare import measured, opened
from trtopt.stages.made import Made
from trtopt.stages.precision import typed_graph
from trtopt.stages.repair import is_quantized
from trtopt.store import read_result
from trtopt.types import Comparison, Engine, EngineFault, EngineLayer, Keep, TypedModel
from trtopt.verdict import wrong
from trtopt.wording import counted

_MOST_BUILDS = 24
REBUILDS = 3
"""Builds of the same graph with the kernels timed anew, before nodes are kept."""


def fault(run: Run, made: Made, dataset: Dataset) -> EngineFault | None:
    """Return the nodes that make the engine wrong. An error becomes a warning: the verdict does not depend on them.

    A model that was given quantized has no nodes to keep, so nothing is searched.
    """
    if made.engine is None or is_quantized(made.model):
        return None

    def make(_: Path) -> EngineFault:
        return find(run, made, dataset)

    key = {
        "engine": made.engine.digest,
        "baseline": made.baseline.digest,
        "device": run.place,
        "typed": made.typed.onnx.digest,
        "target": asdict(made.target),
        "data": dataset.digest,
        "plan": encode(made.plan),
    }
    try:
        return run.store.stage("fault", key, EngineFault, make, _line)
    except TrtoptError as error:
        run.warn(f"the wrong layers of the engine are not known: {error}")
        return None


def _line(found: EngineFault) -> str:
    return f"{found.reason} ({counted(found.builds, 'build')})"


def rebuild(run: Run, typed: TypedModel) -> None:
    """Discard the engine of the last run if it did not compute its graph.

    For the same graph the kernels are timed anew. For another one they are not: nodes that make an engine right when
    they are kept were found with these times.
    """
    judged = read_result(run.store.root, "gate", Comparison)
    if judged is None or not wrong(judged) or not run.store.holds("build"):
        return
    same = read_inputs(run.store.root, "build").get("typed") == typed.onnx.digest
    for stage in ("build", "compare", "gate"):
        run.store.discard(stage)
    if same:
        run.store.forget_times()
    run.note("the engine of the last run did not compute its graph: another one is built")


def rebuilt(run: Run, made: Made) -> Made | None:
    """Return `made` with another build of the same graph, its kernels timed anew; None if that is not possible."""
    if made.engine is None or own_cache(run, made.plan) is None:
        return None
    run.store.forget_times()
    replaced = [outcome for outcome in run.store.outcomes if outcome.name in ("build", "compare", "gate")]
    try:
        engine = build(run, made.typed, made.ranges, made.plan, again=True)
    except TrtoptError as error:
        run.warn(f"the engine could not be built again: {error}")
        return None
    for outcome in replaced:  # the report lists the stages of the engine that it is about
        run.store.outcomes.remove(outcome)
    return replace(made, engine=engine)


def replaced(run: Run, first: Engine, made: Made) -> str:
    """Return what is known of the wrong build that the engine of `made` replaced, in this run or an earlier one.

    It is empty if there was none. `first` is the engine that the run began with.
    """
    assert made.engine is not None
    right, key = made.engine, {"engine": made.engine.digest}
    if right is first:
        cached = any(outcome.name == "build" and outcome.status == "cached" for outcome in run.store.outcomes)
        if not cached or read_result(run.store.root, "replace", EngineFault, **key) is None:
            return ""

    def make(_: Path) -> EngineFault:
        return EngineFault(reason=difference(first, right, made.typed))

    return run.store.stage("replace", key, EngineFault, make, lambda _: "a wrong engine by another build").reason


def find(run: Run, made: Made, dataset: Dataset) -> EngineFault:
    """Return the nodes that make the engine wrong, by building engines in which nodes are kept in higher precision.

    Raises:
        TrtoptError: an engine cannot be run.
    """
    from trtopt.calibrate.ranges import few

    samples = few(dataset)
    builds = 0

    def right(nodes: Sequence[str]) -> bool:
        nonlocal builds
        builds += 1
        run.emit(Progress("fault", builds, 0, "builds"))
        return _is_right(run, made, samples, nodes)

    lowered = [d.node for d in made.typed.decisions if d.precision == made.target.precision]
    return replace(search(lowered, right), builds=builds)


def search(lowered: Sequence[str], right: Callable[[Sequence[str]], bool]) -> EngineFault:
    """Return the nodes that make an engine wrong.

    Args:
        lowered: the lowered nodes, in the order of the graph.
        right: builds an engine in which these nodes are kept in higher precision, and returns whether it is right.
    """
    found = culprits(lowered, right, _MOST_BUILDS)
    if found is None:
        return EngineFault(reason="no nodes were found whose higher precision makes the engine right")
    if not right(found):  # without a timing cache, kernels change from build to build
        return EngineFault(reason="kept nodes made one build right and another one wrong")
    return EngineFault(
        nodes=tuple(found), reason=f"the engine is right with {len(found)} of its nodes in higher precision"
    )


def difference(wrong_one: Engine, right_one: Engine, typed: TypedModel) -> str:
    """Return a sentence on the lowered nodes of the layers that only the wrong one of two builds of a graph has."""
    different = only_in(wrong_one.layers, right_one.layers)
    nodes = {node for layer in different for node in layer.nodes}
    suspects = [each.node for each in typed.decisions if each.node in nodes and each.precision == typed.precision]
    reason = "another build of the same graph is right, as TensorRT chose other kernels"
    kinds = ", ".join(dict.fromkeys(layer.type for layer in different if set(layer.nodes) & set(suspects)))
    return f"{reason}; only the wrong one computes {', '.join(suspects)} by {kinds}" if suspects else reason


def only_in(layers: Sequence[EngineLayer], others: Sequence[EngineLayer]) -> list[EngineLayer]:
    """Return the layers that compute other nodes than any of `others`, or compute them by another type of layer.

    If there are none, return those with another kernel.
    """
    fused = {(frozenset(layer.nodes), layer.type) for layer in others}
    found = [layer for layer in layers if (frozenset(layer.nodes), layer.type) not in fused]
    kernels = {(frozenset(layer.nodes), layer.type, layer.tactic) for layer in others}
    return found or [layer for layer in layers if (frozenset(layer.nodes), layer.type, layer.tactic) not in kernels]


def culprits(nodes: Sequence[str], right: Callable[[Sequence[str]], bool], most: int) -> list[str] | None:
    """Return few nodes such that the engine is right without them, by bisection; None if there are none.

    Args:
        nodes: the lowered nodes, in the order of the graph.
        right: whether an engine is right in which these nodes are kept in higher precision.
        most: the largest number of calls of `right`.
    """
    calls = 0

    def tried(kept: Sequence[str]) -> bool:
        nonlocal calls
        calls += 1
        return right(kept)

    if not nodes or not tried(nodes):
        return None
    found: list[str] = []
    rest = list(nodes)
    while calls < most:
        # With `found` and the first `high` of the rest the engine is right, with the first `low` of them it is not.
        low, high = 0, len(rest)
        while high - low > 1 and calls < most:
            middle = (low + high) // 2
            if tried([*found, *rest[:middle]]):
                high = middle
            else:
                low = middle
        if high - low > 1:
            break
        found.append(rest[high - 1])
        rest = rest[: high - 1]
        if not rest or tried(found):
            return found
    return [*found, *rest]


def _is_right(run: Run, made: Made, samples: Dataset, nodes: Sequence[str]) -> bool:
    """Return whether an engine in which these nodes are kept in higher precision computes its graph.

    One that cannot be built does not: TensorRT 8.5 has no kernel for some fusions.
    """
    quantized = made.target.precision in formats(8)
    keep = tuple(Keep(pattern=node, precision="" if quantized else "fp32") for node in nodes)
    target = replace(made.target, keep=(*made.target.keep, *keep))
    with tempfile.TemporaryDirectory(prefix="trtopt-") as name:
        folder = Path(name)
        typed = typed_graph(folder, made.model, target, made.table, made.seen)
        order = ordered(typed, made.ranges, pinned(run, made.plan), run.device)
        try:
            engine = backend(made.plan.backend).build(order, folder / FILE, emit=silent)
        except (AuditError, BuildError):
            return False
        return computes(run, replace(made, target=target, typed=typed, engine=engine), samples)


def computes(run: Run, made: Made, samples: Dataset) -> bool:
    """Return whether the engine computes its typed graph on these samples.

    Raises:
        TrtoptError: the engine cannot be run.
    """
    from trtopt.compare.pair import Pair
    from trtopt.compare.witness import judged
    from trtopt.engine.onnxruntime import open_runner

    reference, graph = (open_runner(path, device=run.device) for path in (made.baseline.path, made.typed.onnx.path))
    with opened(made.engine, silent) as runner:
        if runner is None:
            raise EnvironmentUnableError("an engine of the search cannot be run")
        pair = Pair(baseline=reference, candidate=runner, graph=graph, names=("", ""))
        comparison: Comparison = measured(pair, samples, MeasurePlan(), silent)
    results = judged(comparison, (), made.target.precision).gates
    return all(gate.verdict == "pass" for gate in results if gate.metric == "engine")
