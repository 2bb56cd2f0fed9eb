"""The stage `fault`: the nodes that make an engine differ from its graph, found by building engines without them.

A wrong engine does not tell which of its layers is wrong, and marking intermediate tensors as outputs would change what
TensorRT fuses. If another build of the same graph is right, the layers that only the wrong engine has are at fault, and
the right build is taken. Otherwise engines are built in which some nodes are kept in higher precision, until the fewest
nodes are found that make the engine right. Keeping a node changes the fusion around it as well: the nodes that are
found belong to the wrong layer, or to one that it is fused with.

Touches: the run directory, through the store; temporary folders; the GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.engine import backend
from trtopt.errors import AuditError, BuildError, EnvironmentUnableError, TrtoptError
from trtopt.events import Progress, silent
from trtopt.plan import MeasurePlan
from trtopt.precision import formats
from trtopt.run import Run
from trtopt.stages.build import FILE, build, ordered, pinned
from trtopt.stages.compare import measured, opened
from trtopt.stages.made import Made
from trtopt.stages.precision import typed_graph
from trtopt.stages.repair import is_quantized
from trtopt.store import read_inputs, read_result
from trtopt.types import Comparison, EngineFault, EngineLayer, Keep, TypedModel
from trtopt.verdict import wrong

_MOST_BUILDS = 24
_REBUILDS = 3
"""Builds of the same graph, with the kernels timed anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An engine of the search: whether it computes its graph, and its layers."""

    right: bool
    layers: tuple[EngineLayer, ...] = ()


def fault(run: Run, made: Made, dataset: Dataset) -> EngineFault | None:
    """Return the nodes that make the engine wrong. An error becomes a warning: the verdict does not depend on them."""
    if made.engine is None:
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
    return f"{found.reason} ({found.builds} build{'s' * (found.builds != 1)})"


def rebuild(run: Run, typed: TypedModel) -> None:
    """Discard the engine of the last run if it did not compute its graph.

    For the same graph the kernels are timed anew. For another one they are not: nodes that make an engine right when
    they are kept were found with these times.
    """
    judged = read_result(run.store.root, "gate", Comparison)
    if judged is None or not wrong(judged) or not run.store.holds("build"):
        return
    same = read_inputs(run.store.root, "build").get("typed") == typed.onnx.digest
    _discard(run)
    if same:
        run.store.forget_times()
    run.note("the engine of the last run did not compute its graph: another one is built")


def cured(run: Run, made: Made) -> Made:
    """Return `made` with the engine of the right build that `find` met, in place of the wrong one."""
    _discard(run)
    return replace(made, engine=build(run, made.typed, made.ranges, made.plan))


def _discard(run: Run) -> None:
    for stage in ("build", "compare", "gate"):
        run.store.discard(stage)


def find(run: Run, made: Made, dataset: Dataset) -> EngineFault:
    """Return the nodes that make the engine wrong, by building other engines.

    First the same graph is built again, with the kernels timed anew. If such an engine is right, its timing cache
    becomes that of the run, so that the next engine has the same kernels. Otherwise nodes are kept in higher precision;
    a model that was given quantized has none to keep.

    Raises:
        TrtoptError: an engine cannot be built or run.
    """
    from trtopt.calibrate.ranges import few

    assert made.engine is not None
    samples = few(dataset)
    builds = 0

    def counted() -> None:
        nonlocal builds
        builds += 1
        run.emit(Progress("fault", builds, 0, "builds"))

    def trial(nodes: Sequence[str]) -> bool:
        counted()
        return _trial(run, made, samples, nodes).right

    lowered = [d.node for d in made.typed.decisions if d.precision == made.target.precision]
    cache = pinned(run, made.plan).timing_cache
    if cache is not None and made.plan.timing_cache is None:
        for _ in range(_REBUILDS):
            counted()
            again = _timed_anew(run, made, samples, cache)
            if again.right:
                return replace(by_difference(lowered, only_in(made.engine.layers, again.layers)), builds=builds)
    if is_quantized(made.model):
        return EngineFault(reason="all builds of the same graph are wrong", builds=builds)
    return replace(search(lowered, trial), builds=builds)


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


def by_difference(lowered: Sequence[str], different: Sequence[EngineLayer]) -> EngineFault:
    """Return the lowered nodes of the layers that only the wrong one of two builds of a graph has."""
    nodes = {node for layer in different for node in layer.nodes}
    suspects = tuple(node for node in lowered if node in nodes)
    reason = "another build of the same graph is right, as TensorRT chose other kernels"
    kinds = ", ".join(dict.fromkeys(layer.type for layer in different if set(layer.nodes) & set(suspects)))
    if suspects:
        reason += f": only the wrong build computes these nodes by {kinds}"
    return EngineFault(nodes=suspects, cured=True, reason=reason)


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


def _timed_anew(run: Run, made: Made, samples: Dataset, cache: Path) -> Trial:
    """Build the same graph with a timing cache of its own, which replaces `cache` if the engine is right."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=run.store.root) as folder:
        times = Path(folder) / cache.name
        again = _trial(run, replace(made, plan=replace(made.plan, timing_cache=times)), samples, ())
        if not again.right or not times.exists():
            return Trial(right=False)
        times.replace(cache)
        return again


def _trial(run: Run, made: Made, samples: Dataset, nodes: Sequence[str]) -> Trial:
    """Build an engine in which the nodes are kept in higher precision, and compare it with its graph."""
    quantized = made.target.precision in formats(8)
    keep = tuple(Keep(pattern=node, precision="" if quantized else "fp32") for node in nodes)
    target = replace(made.target, keep=(*made.target.keep, *keep))
    with tempfile.TemporaryDirectory(prefix="trtopt-") as name:
        folder = Path(name)
        typed = typed_graph(folder, made.model, target, made.table, made.seen)
        order = ordered(typed, made.ranges, pinned(run, made.plan), run.device)
        try:
            engine = backend(made.plan.backend).build(order, folder / FILE, emit=silent)
        except (AuditError, BuildError):  # TensorRT 8.5 has no kernel for some fusions
            return Trial(right=False)
        right = computes(run, replace(made, target=target, typed=typed, engine=engine), samples)
    return Trial(right=right, layers=engine.layers)


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
