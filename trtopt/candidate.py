"""What a user may name as the candidate of a comparison: a run directory, an engine of one, or an ONNX file.

An engine is code: one is taken only from a run directory whose manifest holds its digest.

Touches: reads the candidate and the manifest beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trtopt.codec import decode
from trtopt.errors import ModelError, UsageError
from trtopt.stages import ENGINE_NOT_RUN
from trtopt.store import read_result
from trtopt.types import Benchmark, CalibratedTensor, CalibrationTable, Engine, OnnxModel, Timing, TypedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The graph to run, what is known of how it was made, calibrated and timed, and a remark on where it runs."""

    onnx: OnnxModel
    typed: TypedModel | None = None
    engine: Engine | None = None
    ran: str = ""
    calibrated_on: tuple[str, ...] = ()
    timings: tuple[Timing, ...] = ()
    calibration: tuple[CalibratedTensor, ...] = ()

    def fastest(self) -> Timing | None:
        """The timing of the smallest batch that was measured, without copies where there is one; None: never timed."""
        return min(self.timings, key=lambda timing: (timing.batch, timing.copies), default=None)


def resolve(path: Path) -> Candidate:
    """Return what `path` stands for.

    Raises:
        UsageError: it does not exist.
        ModelError: it is neither, or an engine that no manifest vouches for.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist", fix="Give an engine, an ONNX file or a run directory")
    if path.is_dir():
        return _from_run(path)
    if path.suffix == ".onnx":
        from trtopt.export.onnx import describe

        return Candidate(onnx=describe(path))
    engine = read_result(path.parent, "build", Engine)
    if engine is None or engine.path.resolve() != path.resolve():
        raise ModelError(
            f"{path} is no engine that trtopt built",
            why="no manifest beside it holds its digest, and a serialized engine is code",
            fix="Give the run directory that `trtopt convert` wrote",
        )
    candidate = _from_run(path.parent)
    if candidate.engine is None:
        raise ModelError(
            f"{path} was built from another graph than {candidate.onnx.path}",
            why="a later run changed the graph and did not build it",
            fix="Run `trtopt convert` again",
        )
    return candidate


def _from_run(folder: Path) -> Candidate:
    from trtopt.calibrate import noisiest

    typed = read_result(folder, "precision", TypedModel)
    if typed is None:
        below = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
        raise ModelError(
            f"{folder} is no complete run directory",
            why="it holds no typed model that a manifest vouches for",
            fix=f"Name one of the runs in it: {', '.join(below)}" if below else "Give what `trtopt convert` wrote",
        )
    # An engine of an earlier graph may still lie there, when a later run was stopped before it built its own.
    engine = read_result(folder, "build", Engine, typed=typed.onnx.digest)
    table = read_result(folder, "calibrate", CalibrationTable)
    return Candidate(
        onnx=typed.onnx,
        typed=typed,
        engine=engine,
        ran=ENGINE_NOT_RUN if engine else "",
        calibrated_on=table.fingerprints if table else (),
        timings=_timings(folder),
        calibration=noisiest.read(folder) if table else (),
    )


def _timings(folder: Path) -> tuple[Timing, ...]:
    """What `trtopt bench` left in the run directory; nothing when it left nothing that can be read."""
    try:
        benchmark = decode(Benchmark, json.loads((folder / "benchmark.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return ()
    return benchmark.timings
