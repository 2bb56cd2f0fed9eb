"""What `trtopt bench` times, ready to be timed: which file of a target runs and on what, with which inputs, and at
which batch sizes.

Touches: reads targets, their manifests and the samples; the targets are loaded where they will run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trtopt.bench import gpu, inputs, probe, targets
from trtopt.candidate import resolve
from trtopt.codec import decode
from trtopt.config import BenchPlan, SpeedPlan
from trtopt.data.dataset import Array, Dataset, Feed
from trtopt.engine.onnxruntime import CudaOptions
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, OutOfMemoryError, UsageError
from trtopt.events import Emit, Warned
from trtopt.shapes import DEFAULT_BATCH, profile
from trtopt.stages import ENGINE_NOT_RUN
from trtopt.stages.samples import open_data
from trtopt.types import Engine, OnnxModel, ShapeRange, TensorSpec

BATCHES = (1, 8, 16, 32, 64)
"""The sweep where `--batch` says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A target as it was named. `engine` is there where it has one, `graph` False where nothing else will do; `run_dir`
    is the run directory that it is or lies in, and `profile` the shapes that it was made for.
    """

    name: str
    onnx: OnnxModel
    engine: Engine | None
    graph: bool
    run_dir: Path | None
    profile: tuple[ShapeRange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A loaded target, the file that was loaded, and the batch sizes that an engine takes (None: any)."""

    target: targets.Target
    path: Path
    run_dir: Path | None
    takes: range | None


def wanted(path: Path, name: str) -> Wanted:
    """Look at what a target is, without loading it.

    Raises:
        UsageError: it does not exist.
        ModelError: it is no model, or an engine that no manifest vouches for.
    """
    candidate = resolve(path)
    run_dir = path if path.is_dir() else None if path.suffix == ".onnx" else path.parent
    engine = candidate.engine if candidate.engine and candidate.engine.backend == "tensorrt" else None
    return Wanted(
        name=name,
        onnx=candidate.onnx,
        engine=engine,
        graph=path.is_dir() or path.suffix == ".onnx",
        run_dir=run_dir,
        profile=_profile(run_dir) if run_dir else (),
    )


def _profile(run_dir: Path) -> tuple[ShapeRange, ...]:
    """The shapes that a run directory's graph was prepared for."""
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    entries = manifest["stages"].get("prepare", {}).get("inputs", {}).get("profile", [])
    return tuple(decode(ShapeRange, entry) for entry in entries)


def cuda_options(speed: SpeedPlan) -> CudaOptions:
    """What onnxruntime may do on a GPU."""
    return CudaOptions(tf32=speed.tf32, graphs=speed.graphs)


def opened(given: Wanted, plan: BenchPlan, dataset: Dataset | None, emit: Emit) -> Opened:
    """Load a target: its engine where it runs here, else its graph in onnxruntime, which is said.

    Raises:
        EnvironmentUnableError: this machine cannot run it.
        TrtoptError: it cannot be loaded, or its shapes are not known.
    """
    sizes = inputs.Sizes(inputs=given.onnx.inputs, ranges=ranges(given, plan.speed.shapes, dataset))
    if not given.graph and plan.speed.device == "cpu":
        raise only_on_gpu(given)
    if given.engine is not None and plan.speed.device != "cpu":
        try:
            engine = targets.open_engine(given.engine.path, given.engine.builder)
        except (EnvironmentUnableError, MissingDependencyError) as error:
            if isinstance(error, OutOfMemoryError) or not given.graph:
                raise
            emit(Warned(f"{given.name}: the engine does not run here ({error.why or error.what}): its graph does"))
        else:
            target = targets.Target(name=given.name, sizes=sizes, session=engine)
            takes = engine_batches(given, sizes)
            return Opened(target=target, path=given.engine.path, run_dir=given.run_dir, takes=takes)
    session = targets.open_onnx(given.onnx.path, plan.speed.device, cuda_options(plan.speed))
    if given.engine is not None:
        session.where += ENGINE_NOT_RUN
    target = targets.Target(name=given.name, sizes=sizes, session=session)
    return Opened(target=target, path=given.onnx.path, run_dir=given.run_dir, takes=None)


def questions(given: Wanted, sizes: inputs.Sizes, speed: SpeedPlan) -> list[probe.Question]:
    """The ways to try a batch of a target, the best first: its engine, its graph on a GPU, its graph on the CPU.

    Raises:
        UsageError: it is an engine, and to run on the CPU.
    """
    if not given.graph and speed.device == "cpu":
        raise only_on_gpu(given)
    on_gpu = probe.Question(
        path=given.onnx.path, builder="", sizes=sizes, device="cuda", batch=1, limit=0, cuda=cuda_options(speed)
    )
    found = []
    if given.engine is not None and speed.device != "cpu":
        least = (engine_batches(given, sizes) or range(1, 2))[0]
        found.append(replace(on_gpu, path=given.engine.path, builder=given.engine.builder, batch=least))
    if given.graph and speed.device != "cpu":
        found.append(on_gpu)
    if given.graph and speed.device != "cuda":
        found.append(replace(on_gpu, device="cpu"))
    return found


def only_on_gpu(given: Wanted) -> UsageError:
    """What to say of an engine that is to run on the CPU."""
    return UsageError(
        f"{given.name} is an engine, which a CPU does not run",
        fix=f"Leave --device cpu out, or name {given.run_dir}: its typed graph runs in onnxruntime",
    )


def engine_batches(given: Wanted, sizes: inputs.Sizes) -> range | None:
    """The batch sizes of the profile that an engine was built with; None where the batch is fixed."""
    for spec in sizes.inputs:
        for entry in given.profile:
            if entry.name == spec.name and sizes.is_free(spec):
                return range(entry.min[0], entry.max[0] + 1)
    return None


def ranges(given: Wanted, shapes: Sequence[str], dataset: Dataset | None) -> tuple[ShapeRange, ...]:
    """The shapes of dynamic inputs: from the flags, else those of the run directory, else of the data, else a default.

    Samples that cannot be joined fix all dimensions.

    Raises:
        UsageError: a flag does not fit the model, or a dynamic dimension other than the batch has no size.
    """
    if dataset is not None and not dataset.batched:
        return tuple(_range(spec, array.shape, (array.shape[0],) * 3) for spec, array in _first(given, dataset))
    if shapes or (dataset is None and not given.profile):
        return profile(given.onnx.inputs, shapes)[0]
    if given.profile or dataset is None:
        return given.profile
    return tuple(
        _range(spec, array.shape, DEFAULT_BATCH)
        for spec, array in _first(given, dataset)
        if any(isinstance(dim, str) for dim in spec.shape)
    )


def _first(given: Wanted, dataset: Dataset) -> list[tuple[TensorSpec, Array]]:
    """The inputs that have dimensions, and what the first sample has for them."""
    sample = dataset.load(0)
    return [(spec, sample[spec.name]) for spec in given.onnx.inputs if spec.shape]


def _range(spec: TensorSpec, shape: tuple[int, ...], batches: tuple[int, int, int]) -> ShapeRange:
    fixed = isinstance(spec.shape[0], int)
    low, best, high = ((shape[0] if fixed else batch, *shape[1:]) for batch in batches)
    return ShapeRange(name=spec.name, min=low, opt=best, max=high)


def datasets(wanted: Sequence[Wanted], plan: BenchPlan) -> dict[str, Dataset]:
    """The samples of `--data`, for each target by its name; none without."""
    if plan.data is None:
        return {}
    return {given.name: open_data(plan.data, given.onnx) for given in wanted}


def feed(found: Mapping[str, Dataset], target: targets.Target, batch: int) -> Feed:
    """What a target is fed with at a batch size."""
    if target.name in found:
        return inputs.from_data(found[target.name], batch)
    return inputs.random(target.sizes, batch)


def batches(found: Sequence[Opened], asked: tuple[int, ...]) -> tuple[tuple[int, ...], list[str]]:
    """The batch sizes to sweep, and remarks on those that were left out.

    A target whose batch is fixed has that one, and so have the others: they are to be compared.

    Raises:
        UsageError: what was asked for is not what a target takes, or targets are fixed at different sizes.
    """
    fixed = {opened.target.sizes.batch: opened.target.name for opened in found if opened.target.sizes.batch}
    if len(fixed) > 1:
        described = ", ".join(f"{name} at {batch}" for batch, name in fixed.items())
        raise UsageError("the targets have no batch size in common", why=f"they are fixed: {described}")
    for batch, name in fixed.items():
        if asked and asked != (batch,):
            raise UsageError(
                f"--batch cannot be had of {name}",
                why=f"its batch size is fixed at {batch}",
                fix="Leave --batch out, or export the model with a dynamic batch",
            )
    chosen = tuple(fixed) or asked or BATCHES
    left: list[str] = []
    for opened in found:
        takes = opened.takes
        if takes is None:
            continue
        outside = [batch for batch in chosen if batch not in takes]
        remark = f"{opened.target.name} takes batches of {takes[0]} to {takes[-1]}"
        if outside and (asked or fixed or len(outside) == len(chosen)):
            raise UsageError(
                f"batch {', '.join(map(str, outside))} cannot be had", why=remark, fix="Name others with --batch"
            )
        if outside:
            left.append(f"batch {', '.join(map(str, outside))} left out: {remark}")
            chosen = tuple(batch for batch in chosen if batch in takes)
    return chosen, left


@contextlib.contextmanager
def gpu_readings(found: Sequence[Opened], emit: Emit) -> Iterator[gpu.Gpu | None]:
    """The GPU's readings where a target runs on it; None, and a warning, where NVML does not give them."""
    if all(opened.target.session.device == "cpu" for opened in found):
        yield None
        return
    try:
        device = gpu.open_gpu()
    except (EnvironmentUnableError, MissingDependencyError) as error:
        emit(Warned(f"no utilisation, memory and power of the GPU: {error}"))
        yield None
        return
    try:
        yield device
    finally:
        device.close()


def remarks(found: Sequence[Opened]) -> list[str]:
    """What is to be said of targets that do not run on the same kind of device: their speedups compare machines."""
    names = {
        kind: ", ".join(opened.target.name for opened in found if opened.target.session.device == kind)
        for kind in ("cpu", "cuda")
    }
    if not all(names.values()):
        return []
    return [f"{names['cpu']} on the CPU beside {names['cuda']} on the GPU: a speedup is not that of the model alone"]


def where(session: targets.Session, device: gpu.Gpu | None) -> str:
    """What runs a target and where, with the name of the GPU where NVML tells it and the session does not."""
    name = device.name if device is not None and session.device == "cuda" else ""
    return session.where if name in session.where else f"{session.where}, {name}"
