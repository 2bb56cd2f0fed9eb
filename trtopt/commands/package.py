"""The command `trtopt package`: model repositories of NVIDIA's Triton Inference Server.

An engine is packaged if the image's TensorRT loads it. Otherwise the package holds the typed graph and a script that
builds the engine in the image.

Touches: reads the runs; writes the repository; a server and a temporary folder, to verify.
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
from trtopt.data import Recipe, load_recipe, read_classes
from trtopt.data.classes import score_count
from trtopt.errors import EnvironmentUnableError, UsageError
from trtopt.events import Emit, Noted, Warned, silent
from trtopt.serve import axes, batching, config, ensemble, images, repository, trtexec, verify
from trtopt.shapes import AskedShape
from trtopt.stages.bench import Wanted, ranges, wanted
from trtopt.store import read_result
from trtopt.types import Benchmark, OnnxModel, ShapeRange, TensorSpec

_CAPABILITY = re.compile(r"compute capability ([0-9]+\.[0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePlan:
    """What to package.

    Attributes:
        runs: run directories, or ONNX files.
        repository: the model repository.
        image: the image that will serve it.
        platform: serve engines, or the graphs in onnxruntime.
        engine_only: refuse a run whose engine the image does not load.
        name: the name of the model; empty: one model for each run, named after it.
        shapes: the `--shape` flags, for ONNX files.
        latency_limit: limit of the time to an answer in milliseconds; infinite without one.
        ensemble: add an ensemble that begins with encoded images.
        recipe: the preprocessing of images, and class names.
        classes: a file of class names.
        canary: add the FP32 graph as a second model.
        priorities: number of priority levels; 0 without them.
        cache: whether the server keeps answers.
        verify: load the models in a real server, and compare answers.
    """

    runs: tuple[Path, ...]
    repository: Path
    image: images.Image
    platform: Literal["tensorrt", "onnxruntime"] = "tensorrt"
    engine_only: bool = False
    name: str = ""
    shapes: tuple[AskedShape, ...] = ()
    latency_limit: float = math.inf
    ensemble: bool = False
    recipe: str | None = None
    classes: Path | None = None
    canary: bool = False
    priorities: int = 0
    cache: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A written repository.

    Attributes:
        repository: its folder.
        models: the names of the models.
        to_build: scripts that build engines, with the reason for each; a server loads those models after that.
        verified: the outcome of the check of each model.
        serve: a command that serves the repository.
    """

    repository: Path
    models: tuple[str, ...]
    to_build: tuple[tuple[Path, str], ...]
    verified: tuple[verify.Verified, ...]
    serve: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A model to package: the runs that it is made from, one for each GPU, and its shapes."""

    name: str
    runs: tuple[Wanted, ...]
    shapes: tuple[ShapeRange, ...]

    @property
    def onnx(self) -> OnnxModel:
        return self.runs[0].onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folders:
    """The folders of a model, what they must do, and why its engine is to be built (empty: it is there)."""

    folders: tuple[repository.Folder, ...]
    claims: tuple[verify.Claim, ...]
    missing: str


def package(plan: PackagePlan, emit: Emit = silent) -> Packaged:
    """Write a model repository, or add models to one.

    Raises:
        UsageError: a run, the image or a flag cannot be used, or the repository has a model of that name.
        EnvironmentUnableError: with `engine_only`, an engine does not load in the image; or the server to verify with
            does not start here.
        MissingDependencyError: tritonclient is not installed.
        ModelError: a run is incomplete, or the server does not serve what it must.
        StoreError: the repository cannot be written.
    """
    config.protobuf()
    recipe = load_recipe(plan.recipe) if plan.recipe else None
    made = [_folders(model, plan, recipe, emit) for model in _models(plan)]
    folders = [folder for each in made for folder in each.folders]
    names = [folder.name for folder in folders]
    repository.check_free(plan.repository, names)
    verified: tuple[verify.Verified, ...] = ()
    with repository.staged(plan.repository, folders) as stage:
        if plan.verify:
            verified = verify.verify(folders, stage, [claim for each in made for claim in each.claims])
    to_build = [(plan.repository / each.folders[0].name / "build.sh", each.missing) for each in made if each.missing]
    return Packaged(
        repository=plan.repository,
        models=tuple(names),
        to_build=tuple(to_build),
        verified=verified,
        serve=_serve(plan),
    )


def _serve(plan: PackagePlan) -> str:
    image = "IMAGE-OF-THE-DOCKERFILE" if plan.ensemble else plan.image.reference
    words = f"docker run --rm --gpus all --shm-size 1g -p 8000-8002:8000-8002 -v {plan.repository.resolve()}:/models"
    cache = " --cache-config=local,size=268435456" if plan.cache else ""
    return f"{words} {image} tritonserver --model-repository=/models{cache}"


def _models(plan: PackagePlan) -> list[_Model]:
    """Return the models to package: one for each run, or one of several runs for several GPUs.

    Raises:
        UsageError: the runs of one model have different inputs or outputs.
    """
    runs = [wanted(path, plan.name or _name(path)) for path in plan.runs]
    found = {run.name: [each for each in runs if each.name == run.name] for run in runs}
    models = []
    for name, group in found.items():
        repository.check_name(name)
        for other in group[1:]:
            if (other.onnx.inputs, other.onnx.outputs) != (group[0].onnx.inputs, group[0].onnx.outputs):
                raise UsageError(
                    f"two runs of model {name} have different inputs or outputs", fix="Package them one by one"
                )
        models.append(_Model(name=name, runs=tuple(group), shapes=ranges(group[0], plan.shapes, None)))
    return models


def _name(path: Path) -> str:
    """Return the name of a run's model: `model-int8` for `trtopt-out/model/int8`, else that of the folder or file."""
    from trtopt.precision import precisions

    place = path.resolve()
    plain = place.stem if place.suffix == ".onnx" else place.name
    name = f"{place.parent.name}-{plain}" if plain in precisions() else plain
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("-.") or "model"


def _folders(model: _Model, plan: PackagePlan, recipe: Recipe | None, emit: Emit) -> _Folders:
    """Return the folders of a model: its own, and those of its canary and its ensemble."""
    how = _serving(model, plan, emit)
    labels = _labels(model.onnx.outputs, plan, recipe)
    output, text = labels or ("", "")
    how = replace(how, labels=output)
    files: dict[str, str | Path] = {"labels.txt": text} if text else {}
    specs = (model.onnx.inputs, model.onnx.outputs)
    served, graph, missing = "onnxruntime_onnx", None, ""
    if plan.platform == "onnxruntime":
        files["1/model.onnx"] = model.onnx.path
    else:
        served, graph, missing = "tensorrt_plan", model.onnx.path, _why_not(model, plan)
        plans = {} if missing else _plans(model)
        how = replace(how, plans=plans if len(plans) > 1 else {})
        if missing:
            files |= {"1/model.onnx": model.onnx.path, "build.sh": trtexec.script(plan.image, model.shapes)}
        for file, run in zip(plans.values(), model.runs, strict=False):
            assert run.engine is not None
            files[f"1/{file}"] = run.engine.path
    own = config.model(model.name, served, specs, how)  # type: ignore[arg-type]
    config.add_warm_up(own, model.onnx.inputs, model.shapes)
    folders = [repository.Folder(config=own, files=files, graph=graph)]
    claims = [verify.Claim(name=model.name, onnx=model.onnx, ranges=_within(model.shapes, how.max_batch))]
    if plan.canary:
        folder, claim = _canary(model, how)
        folders.append(folder)
        claims.append(claim)
    if plan.ensemble:
        steps, claim = _ensemble(model, own, plan, (recipe, text))
        folders += steps
        claims.append(claim)
    return _Folders(folders=tuple(folders), claims=tuple(claims), missing=missing)


def _serving(model: _Model, plan: PackagePlan, emit: Emit) -> config.Serving:
    """Return how a model is served, and tell why."""
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
    count, why = batching.instances(limit, queue.largest or 1) if plan.platform == "tensorrt" else (1, "")
    if why:
        emit(Noted(f"{model.name}: {why}"))
    return config.Serving(
        max_batch=queue.largest,
        delay_us=queue.delay_us,
        instances=count,
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


def _why_not(model: _Model, plan: PackagePlan) -> str:
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
        else:
            why, fix = f"the engine is of {engine.builder}, and {loaded}", images.fitting(engine.builder)
        if plan.engine_only:
            raise EnvironmentUnableError(f"{model.name} cannot be packaged as an engine", why=why, fix=fix)
        return why
    return ""


def _plans(model: _Model) -> dict[str, str]:
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


def _labels(outputs: Sequence[TensorSpec], plan: PackagePlan, recipe: Recipe | None) -> tuple[str, str] | None:
    """Return the output that the class names describe and the content of its labels file; None without names.

    Raises:
        UsageError: the file cannot be read, or no output has as many scores.
    """
    classes = read_classes(plan.classes) if plan.classes else recipe.classes if recipe else None
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


def _canary(model: _Model, how: config.Serving) -> tuple[repository.Folder, verify.Claim]:
    """Return the folder of the FP32 graph, and what it must do.

    Raises:
        UsageError: the run has no FP32 graph.
    """
    run_dir = model.runs[0].run_dir
    fp32 = read_result(run_dir, "prepare", OnnxModel) if run_dir else None
    if fp32 is None:
        raise UsageError(f"--canary: {model.name} has no FP32 graph", fix="Give a run directory of trtopt convert")
    name = f"{model.name}-fp32"
    plain = replace(how, plans={}, labels="")
    made = config.model(name, "onnxruntime_onnx", (fp32.inputs, fp32.outputs), plain)
    folder = repository.Folder(config=made, files={"1/model.onnx": fp32.path})
    return folder, verify.Claim(name=name, onnx=fp32, ranges=_within(model.shapes, how.max_batch))


def _ensemble(
    model: _Model, own: object, plan: PackagePlan, described: tuple[Recipe | None, str]
) -> tuple[list[repository.Folder], verify.Claim]:
    """Return the folders of the preprocessing step and of the ensemble, and what the ensemble must do.

    Raises:
        UsageError: there is no recipe, or it does not fit the model.
    """
    recipe, labels = described
    if recipe is None:
        raise UsageError(
            "--ensemble needs a recipe",
            why="it says how an image becomes an input",
            fix="Give the one that the model was calibrated with: --recipe NAME|PATH",
        )
    how = ensemble.image_recipe(recipe, model.onnx)
    step = ensemble.step(f"{model.name}-preprocess", how, own)
    whole = ensemble.ensemble(f"{model.name}-images", step.config, own, labels)
    whole = replace(whole, files={**whole.files, "Dockerfile": ensemble.dockerfile(plan.image)})
    return [step, whole], verify.Claim(name=whole.name, onnx=model.onnx, ranges=model.shapes, recipe=how)
