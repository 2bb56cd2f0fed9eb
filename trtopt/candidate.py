"""Candidates of a comparison: a run directory, its engine, or an ONNX file.

A serialized engine is code. It is accepted only from a run directory whose manifest records its digest.

Touches: reads the candidate and the manifest beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtopt.codec import decode
from trtopt.errors import ModelError, UsageError
from trtopt.manifest import read_inputs
from trtopt.store import read_result
from trtopt.types import Benchmark, CalibratedTensor, CalibrationTable, Engine, OnnxModel, Timing, TypedModel

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
ENGINE_NOT_RUN = " (the typed graph of the engine; TensorRT itself was not run)"
"""Remark on where a candidate ran whose engine was not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A candidate, with the known results of its conversion.

    Attributes:
        onnx: the graph to run.
        typed: the typed model of the run directory.
        engine: the engine that was built from it.
        calibrated_on: fingerprints of the calibration samples.
        timings: earlier results of `trtopt bench`.
        calibration: the tensors with the largest quantization error.
        made_from: digests of the FP32 models that the run started with, optimized and compared with; empty if they are
            unknown.
        unrecorded: what to tell about an engine in the run directory that its manifest does not record; else empty.
    """

    onnx: OnnxModel
    typed: TypedModel | None = None
    engine: Engine | None = None
    calibrated_on: tuple[str, ...] = ()
    timings: tuple[Timing, ...] = ()
    calibration: tuple[CalibratedTensor, ...] = ()
    made_from: tuple[str, ...] = ()
    unrecorded: str = ""


def fastest(timings: Sequence[Timing]) -> Timing | None:
    """Return the timing of the smallest measured batch, preferably without copies; None without timings."""
    return min(timings, key=lambda timing: (timing.batch, timing.copies), default=None)


def resolve(path: Path) -> Candidate:
    """Return the candidate at `path`.

    Raises:
        UsageError: `path` does not exist.
        ModelError: it is not a run directory or an ONNX file, or it is an engine that no manifest records.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist", fix="Give an engine, an ONNX file or a run directory")
    if path.is_dir():
        return _from_run(path)
    if path.suffix == ".onnx":
        from trtopt.graph.file import describe

        return Candidate(onnx=describe(path))
    if path.suffix.lower() in _IMAGES:
        raise ModelError(
            f"{path} is an image",
            why="a model or a run is expected",
            fix="Give an ONNX file or a run directory; images are data: --data FOLDER",
        )
    engine = read_result(path.parent, "build", Engine)
    if engine is None or engine.path.resolve() != path.resolve():
        raise ModelError(
            f"{path} is not an engine that trtopt built",
            why="no manifest beside it records its digest, and a serialized engine is code",
            fix="Give the run directory that `trtopt convert` wrote",
        )
    candidate = _from_run(path.parent)
    if candidate.engine is None:
        raise ModelError(
            f"{path} was built from another graph than {candidate.onnx.path}",
            why="a later run changed the graph without building an engine",
            fix="Run `trtopt convert` again",
        )
    return candidate


def _from_run(folder: Path) -> Candidate:
    from trtopt.calibrate import noisiest

    typed = read_result(folder, "precision", TypedModel)
    if typed is None:
        runs = (path.parent for path in folder.glob("*/manifest.json"))
        below = sorted(run.name for run in runs if read_result(run, "precision", TypedModel) is not None)
        raise ModelError(
            f"{folder} is not a complete run directory",
            why="its manifest records no typed model",
            fix=f"Name one of the runs in it: {', '.join(below)}"
            if below
            else "Give the run directory that `trtopt convert` wrote",
        )
    # If a later run was stopped before it built its engine, the engine of the earlier graph may still be there.
    engine = read_result(folder, "build", Engine, typed=typed.onnx.digest)
    table = read_result(folder, "calibrate", CalibrationTable)
    return Candidate(
        onnx=typed.onnx,
        typed=typed,
        engine=engine,
        calibrated_on=table.fingerprints if table else (),
        timings=timings_of(folder),
        calibration=noisiest.read(folder) if table else (),
        made_from=_sources(folder),
        unrecorded=_unrecorded(folder) if engine is None else "",
    )


def _unrecorded(folder: Path) -> str:
    """Return what to tell about an engine in a run directory without a recorded one; empty if there is none."""
    path = folder / "model.engine"
    if not path.is_file():
        return ""
    return f"{path} is not used: the manifest does not record it. If build.sh built it: trtopt adopt {folder}"


def _sources(folder: Path) -> tuple[str, ...]:
    """Return the digests of the FP32 model of a run, as given and as prepared; none if the run does not record both.

    The baseline that it was compared with, as by `--baseline`, follows.
    """
    prepared = read_result(folder, "prepare", OnnxModel)
    source = read_inputs(folder, "prepare").get("source")
    baseline = read_inputs(folder, "compare").get("baseline", source)
    return (str(source), prepared.digest, str(baseline)) if prepared and source else ()


def timings_of(folder: Path) -> tuple[Timing, ...]:
    """Return the timings that `trtopt bench` wrote to the run directory, or none if they cannot be read."""
    try:
        benchmark = decode(Benchmark, json.loads((folder / "benchmark.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return ()
    return benchmark.timings
