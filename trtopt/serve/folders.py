"""The folders of a model in a repository: its own, and those of its canary and of its ensemble.

Touches: reads the run, and runs its graph on the CPU.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trtopt.codec import decode
from trtopt.data import Recipe
from trtopt.data.classes import Classes, score_count
from trtopt.errors import EnvironmentUnableError, UsageError
from trtopt.events import Emit, Noted, Warned
from trtopt.serve import axes, batching, config, ensemble, images, trtexec
from trtopt.serve.repository import Folder
from trtopt.serve.verify import Claim
from trtopt.types import Benchmark, Engine, OnnxModel, ShapeRange, TensorSpec

_CAPABILITY = re.compile(r"compute capability ([0-9]+\.[0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Batch (0: no batch axis), delay in microseconds and instances, instead of those of the bench table."""

    batch: int
    delay_us: int
    groups: tuple[config.Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How models are packaged.

    Attributes:
        image: the image that will serve them.
        platform: serve engines, or the graphs in onnxruntime.
        engine_only: refuse a run whose engine the image does not load.
        latency_limit: limit of the time to an answer in milliseconds; infinite without one.
        ensemble: add an ensemble that begins with encoded images.
        recipe: the preprocessing of images, and class names.
        classes: class names, instead of those of the recipe.
        canary: add the FP32 graph as a second model.
        priorities: number of priority levels; 0 without them.
        cache: whether the server keeps answers.
        given: batch, delay and instances; None: chosen from the bench table.
    """

    image: images.Image
    platform: Literal["tensorrt", "onnxruntime"] = "tensorrt"
    engine_only: bool = False
    latency_limit: float = math.inf
    ensemble: bool = False
    recipe: Recipe | None = None
    classes: Classes | None = None
    canary: bool = False
    priorities: int = 0
    cache: bool = False
    given: Given | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A run, or an ONNX file without `engine` and `run_dir`; `fp32` is the FP32 graph of a run.

    `unrecorded` is what to tell about an engine that is there, but not recorded; else empty.
    """

    onnx: OnnxModel
    engine: Engine | None = None
    run_dir: Path | None = None
    fp32: OnnxModel | None = None
    unrecorded: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model to package: the runs that it is made from, one for each GPU, and the shapes of its inputs."""

    name: str
    runs: tuple[Source, ...]
    shapes: tuple[ShapeRange, ...]

    @property
    def onnx(self) -> OnnxModel:
        """The graph that the model computes."""
        return self.runs[0].onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The folders of a model, what they must do, and why its engine is to be built (empty: it is there)."""

    folders: tuple[Folder, ...]
    claims: tuple[Claim, ...]
    missing: str


def make(model: Model, plan: Options, emit: Emit) -> Made:
    """Return the folders of a model: its own, and those of its canary and its ensemble.

    Raises:
        UsageError: a run or an option cannot be used.
        EnvironmentUnableError: only engines are wanted, and the image does not load one.
    """
    how = _serving(model, plan, emit)
    labels = _labels(model.onnx.outputs, plan)
    output, text = labels or ("", "")
    how = replace(how, labels=output)
    files: dict[str, str | Path] = {"labels.txt": text} if text else {}
    specs = (model.onnx.inputs, model.onnx.outputs)
    graph, missing = None, ""
    if len(model.runs) > 1 and plan.platform == "onnxruntime":
        raise UsageError(f"{len(model.runs)} runs with one --name", why="a graph runs on every GPU", fix="Give one run")
    served: config.Platform = "onnxruntime_onnx"
    if plan.platform == "onnxruntime":
        files["1/model.onnx"] = model.onnx.path
    else:
        served, graph, missing = "tensorrt_plan", model.onnx.path, _why_not(model, plan)
        plans = {} if missing else _plans(model)
        how = replace(how, plans=plans if len(plans) > 1 else {})
        if missing and len(model.runs) > 1:
            raise UsageError(
                f"{len(model.runs)} runs with one --name are engines for several GPUs",
                why=missing,
                fix="Give one run, and build its engine on each kind of GPU",
            )
        if not missing and not plan.image.is_exact:
            emit(Noted(f"{plan.image.name} is known to have TensorRT {plan.image.tensorrt}; the build may be another"))
        if missing:
            files |= {"1/model.onnx": model.onnx.path, "build.sh": trtexec.script(plan.image, model.onnx, model.shapes)}
        for file, run in zip(plans.values(), model.runs, strict=False):
            assert run.engine is not None
            files[f"1/{file}"] = run.engine.path
    own = config.model(model.name, served, specs, how)
    config.add_warm_up(own, model.onnx.inputs, model.shapes)
    folders = [Folder(config=own, files=files, graph=graph)]
    claims = [Claim(name=model.name, onnx=model.onnx, ranges=_within(model.shapes, how.max_batch))]
    if plan.canary:
        folder, claim = _canary(model, how)
        folders.append(folder)
        claims.append(claim)
    if plan.ensemble:
        steps, claim = _ensemble(model, own, plan, text)
        folders += steps
        claims.append(claim)
    return Made(folders=tuple(folders), claims=tuple(claims), missing=missing)


def to_build(script: Path, why: str) -> str:
    """Return the line that tells of an engine that a script must build before a server can load it."""
    return f"{script} builds the engine; run it before the server: {why}"


def _serving(model: Model, plan: Options, emit: Emit) -> config.Serving:
    """Return how a model is served, and tell why."""
    if plan.given is not None:
        batch, delay_us = plan.given.batch, plan.given.delay_us
        how = config.Serving(max_batch=batch, delay_us=delay_us, groups=plan.given.groups)
        return replace(how, priorities=plan.priorities, cache=plan.cache)
    axis = axes.prove(model.onnx, model.shapes)
    benchmark = _benchmark(model.runs[0].run_dir)
    limit = benchmark.limit if benchmark else None
    if not axis.largest:
        emit(Noted(f"{model.name}: max_batch_size 0: {axis.why}"))
        queue = batching.Queue(largest=0, delay_us=0, why="")
        for flag, given in (("--latency-limit", math.isfinite(plan.latency_limit)), ("--priorities", plan.priorities)):
            if given:
                raise UsageError(
                    f"{flag} needs a model with a batch axis", why=f"{model.name}: {axis.why}", fix="Leave it out"
                )
    else:
        timings = benchmark.timings if benchmark else ()
        queue = batching.queue(axis.largest, timings, plan.latency_limit)
        if benchmark and math.isfinite(plan.latency_limit) and any(each.device == "cpu" for each in benchmark.targets):
            emit(Warned(f"{model.name}: the bench table was measured on a CPU: measure it on the GPU that serves"))
        emit(Noted(f"{model.name}: batches up to {queue.largest}, delay {queue.delay_us} us: {queue.why}"))
    count, why = batching.instances(limit, queue.largest or 1, plan.priorities)
    if plan.platform == "onnxruntime" and not plan.priorities:
        count, why = 1, ""
    if why:
        emit(Noted(f"{model.name}: {why}"))
    return config.Serving(
        max_batch=queue.largest,
        delay_us=queue.delay_us,
        groups=(config.Group(count=count),),
        priorities=plan.priorities,
        cache=plan.cache,
    )


def _benchmark(run_dir: Path | None) -> Benchmark | None:
    """Return what `trtopt bench` left in a run directory; None if there is nothing that can be read."""
    try:
        text = (run_dir / "benchmark.json").read_text(encoding="utf-8") if run_dir else ""
        return decode(Benchmark, json.loads(text))
    except (OSError, ValueError, RecursionError):
        return None


def _why_not(model: Model, plan: Options) -> str:
    """Return why the image does not load the engines of a model; empty if it does.

    Raises:
        EnvironmentUnableError: it does not, and only engines are wanted.
    """
    loaded = f"{plan.image.name} has TensorRT {plan.image.tensorrt}"
    for run in model.runs:
        engine = run.engine
        if engine is not None and images.loads(plan.image, engine.builder):
            continue
        if engine is None:
            why, fix = f"{run.run_dir or run.onnx.path} has no engine", "Build one: trtopt convert"
            if run.unrecorded:
                why, fix = run.unrecorded, ""
        else:
            why, fix = f"the engine is of {engine.builder}, and {loaded}", images.fitting(engine.builder)
        if plan.engine_only:
            raise EnvironmentUnableError(f"{model.name} cannot be packaged as an engine", why=why, fix=fix)
        return why
    return ""


def _plans(model: Model) -> dict[str, str]:
    """Return the file of each engine by compute capability; `model.plan` for a single one.

    Raises:
        UsageError: two engines are for the same compute capability, or it is not known.
    """
    if len(model.runs) == 1:
        return {"": "model.plan"}
    plans: dict[str, str] = {}
    for run in model.runs:
        assert run.engine is not None
        found = _CAPABILITY.search(run.engine.device)
        if not found or found[1] in plans:
            raise UsageError(
                f"the runs of model {model.name} are not for different GPUs",
                why=f"the engine of {run.run_dir} is for {run.engine.device}",
                fix="Give one run for each compute capability, or leave out --name",
            )
        plans[found[1]] = f"model.sm{found[1].replace('.', '')}.plan"
    return plans


def _within(shapes: Sequence[ShapeRange], largest: int) -> tuple[ShapeRange, ...]:
    """Return the shapes with batches up to the largest that is served."""
    if not largest:
        return tuple(shapes)
    return tuple(
        replace(entry, opt=(min(entry.opt[0], largest), *entry.opt[1:]), max=(largest, *entry.max[1:]))
        for entry in shapes
    )


def _labels(outputs: Sequence[TensorSpec], plan: Options) -> tuple[str, str] | None:
    """Return the output that the class names describe and the content of its labels file; None without names.

    Raises:
        UsageError: no output has as many scores.
    """
    classes = plan.classes or (plan.recipe.classes if plan.recipe else None)
    if classes is None:
        return None
    count = max(classes.index.values()) + 1
    rows = {spec.name: [dim if isinstance(dim, int) else 0 for dim in spec.shape[1:]] for spec in outputs}
    fitting = [name for name, row in rows.items() if (scores := score_count(row)) and scores >= count]
    exact = [name for name in fitting if score_count(rows[name]) == count or not classes.complete]
    if not exact:
        raise UsageError(
            f"{classes.source} names {count} classes", why="no output has that many scores", fix="Leave out the names"
        )
    names = {index: name for name, index in classes.index.items()}
    return exact[0], "".join(f"{names.get(index, '')}\n" for index in range(count))


def _canary(model: Model, how: config.Serving) -> tuple[Folder, Claim]:
    """Return the folder of the FP32 graph, and what it must do.

    Raises:
        UsageError: the run has no FP32 graph.
    """
    fp32 = model.runs[0].fp32
    if fp32 is None:
        raise UsageError(f"--canary: {model.name} has no FP32 graph", fix="Give a run directory of trtopt convert")
    name = f"{model.name}-fp32"
    plain = replace(how, plans={}, labels="")
    made = config.model(name, "onnxruntime_onnx", (fp32.inputs, fp32.outputs), plain)
    folder = Folder(config=made, files={"1/model.onnx": fp32.path})
    return folder, Claim(name=name, onnx=fp32, ranges=_within(model.shapes, how.max_batch))


def _ensemble(model: Model, own: object, plan: Options, labels: str) -> tuple[list[Folder], Claim]:
    """Return the folders of the preprocessing step and of the ensemble, and what the ensemble must do.

    Raises:
        UsageError: the recipe is missing, or does not fit the model.
    """
    if plan.recipe is None:
        raise UsageError(
            "--ensemble needs a recipe",
            why="it says how an image becomes an input",
            fix="Give the one that the model was calibrated with: --recipe NAME|PATH",
        )
    how = ensemble.image_recipe(plan.recipe, model.onnx)
    step = ensemble.step(f"{model.name}-preprocess", how, own)
    whole = ensemble.ensemble(f"{model.name}-images", step.config, own, labels)
    whole = replace(whole, files={**whole.files, ensemble.DOCKERFILE: ensemble.dockerfile(plan.image)})
    return [step, whole], Claim(name=whole.name, onnx=model.onnx, ranges=model.shapes, recipe=how, runs=model.name)
