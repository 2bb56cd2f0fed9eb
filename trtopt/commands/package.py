"""The command `trtopt package`: model repositories of NVIDIA's Triton Inference Server.

An engine is packaged if the image's TensorRT loads it. Otherwise the package holds the typed graph and a script that
builds the engine in the image.

Touches: reads the runs; writes the repository; a server and a temporary folder, to verify.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtopt.errors import UsageError
from trtopt.events import Emit, Warned, silent
from trtopt.serve import config, ensemble, folders, repository, verify
from trtopt.shapes import AskedShape
from trtopt.stages.bench import Wanted, ranges, wanted
from trtopt.store import read_result
from trtopt.types import Benchmark, OnnxModel, Report, Verdict

_TAG = "tritonserver-images"
"""Name of the image that a Dockerfile of the repository builds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagePlan:
    """Runs to package, and where to.

    Attributes:
        runs: run directories, or ONNX files.
        repository: the model repository.
        options: how models are packaged.
        name: the name of the model; empty: one model for each run, named after it.
        shapes: the `--shape` flags, for ONNX files.
        verify: load the models in a real server, and compare answers.
    """

    runs: tuple[Path, ...]
    repository: Path
    options: folders.Options
    name: str = ""
    shapes: tuple[AskedShape, ...] = ()
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
    models = _models(plan)
    repository.check_free(plan.repository, [model.name for model in models])
    made = [folders.make(model, plan.options, emit) for model in models]
    written = [folder for each in made for folder in each.folders]
    names = [folder.name for folder in written]
    repository.check_free(plan.repository, names)
    verified: tuple[verify.Verified, ...] = ()
    with repository.staged(plan.repository, written) as stage:
        if plan.verify:
            verified = verify.verify(written, stage, [claim for each in made for claim in each.claims])
    if others := repository.others(plan.repository):
        emit(Warned(f"{plan.repository} has folders that are not models ({others}): a server of it will not start"))
    to_build = [(plan.repository / each.folders[0].name / "build.sh", each.missing) for each in made if each.missing]
    return Packaged(
        repository=plan.repository,
        models=tuple(names),
        to_build=tuple(to_build),
        verified=verified,
        serve=_serve(plan, written),
    )


def report(packaged: Packaged) -> Report:
    """Return the outcome as a report: a gate for each model that a server was asked, which passed."""
    gates = verify.gates(packaged.verified)
    verdict: Verdict = "pass" if gates else "unchecked"
    return Report(
        command="package",
        verdict=verdict,
        model=", ".join(packaged.models),
        benchmark=Benchmark(targets=(), timings=(), gates=gates, verdict=verdict),
        warnings=tuple(folders.to_build(script, why) for script, why in packaged.to_build),
        notes=(f"{packaged.repository} is written", f"serve: {packaged.serve}"),
    )


def _serve(plan: PackagePlan, written: Sequence[repository.Folder]) -> str:
    """Return the command that serves the repository, after the one that builds an image if a model comes with one."""
    image, build = plan.options.image.reference, ""
    # The files are equal: one image has what all of them import.
    if places := [plan.repository / folder.name for folder in written if ensemble.DOCKERFILE in folder.files]:
        image = _TAG
        build = f"{shlex.join(['docker', 'build', '-t', image, str(places[0])])} && "
    volume = shlex.quote(f"{plan.repository.resolve()}:/models")
    words = f"{build}docker run --rm --gpus all --shm-size 1g -p 8000-8002:8000-8002 -v {volume}"
    cache = " --cache-config=local,size=268435456" if plan.options.cache else ""
    return f"{words} {image} tritonserver --model-repository=/models{cache}"


def _models(plan: PackagePlan) -> list[folders.Model]:
    """Return the models to package: one for each run, or one of several runs for several GPUs.

    Raises:
        UsageError: the runs of one model have different inputs or outputs.
    """
    runs = [wanted(path, plan.name or model_name(path)) for path in plan.runs]
    names = [run.name for run in runs]
    if not plan.name and (twice := [name for name in names if names.count(name) > 1]):
        raise UsageError(
            f"two runs would be named {twice[0]}",
            fix="Package them one by one, each with its --name; engines for several GPUs are one model with one --name",
        )
    found = {run.name: [each for each in runs if each.name == run.name] for run in runs}
    models = []
    for name, group in found.items():
        repository.check_name(name)
        for other in group[1:]:
            if (other.onnx.inputs, other.onnx.outputs) != (group[0].onnx.inputs, group[0].onnx.outputs):
                raise UsageError(
                    f"two runs of model {name} have different inputs or outputs", fix="Package them one by one"
                )
        models.append(
            folders.Model(name=name, runs=tuple(map(source, group)), shapes=ranges(group[0], plan.shapes, None))
        )
    return models


def source(run: Wanted) -> folders.Source:
    """Return what to package of a run."""
    fp32 = read_result(run.run_dir, "prepare", OnnxModel) if run.run_dir else None
    return folders.Source(onnx=run.onnx, engine=run.engine, run_dir=run.run_dir, fp32=fp32, unrecorded=run.unrecorded)


def model_name(path: Path) -> str:
    """Return the name of a run's model: `model-int8` for `trtopt-out/model/int8`, else that of the folder or file."""
    from trtopt.precision import precisions

    place = path.resolve()
    plain = place.stem if place.suffix == ".onnx" else place.name
    name = f"{place.parent.name}-{plain}" if plain in precisions() else plain
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("-.") or "model"
