"""The command `trtopt adopt`: an engine that trtexec built from a run's graph becomes the engine of that run.

Touches: the run directory, through the store; the GPU, as the engine is loaded.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from trtopt.engine import BuildPlan, tensorrt
from trtopt.errors import ModelError, UsageError
from trtopt.events import Emit, silent
from trtopt.manifest import file_digest
from trtopt.run import open_run
from trtopt.stages.build import FILE, engine_line
from trtopt.store import read_result
from trtopt.types import Engine, TypedModel


def adopt(run_dir: Path, path: Path | None = None, emit: Emit = silent) -> Engine:
    """Record an engine in the manifest of a run directory, and return it; it is copied there if it is elsewhere.

    Args:
        run_dir: the run, whose graph the engine was built from.
        path: the engine; `model.engine` in the run directory by default. Loading runs code from it.
        emit: receives progress and warnings.

    Raises:
        UsageError: there is no such file.
        ModelError: it is not an engine, or one of another graph; or `run_dir` is not a run directory.
        EnvironmentUnableError: the engine cannot be loaded here.
        AuditError: a node that must stay in FP32 runs in a lower precision.
    """
    typed = read_result(run_dir, "precision", TypedModel)
    if typed is None:
        raise ModelError(
            f"{run_dir} is not a complete run directory",
            why="its manifest records no typed model",
            fix="Give the run directory that `trtopt convert --target` wrote",
        )
    path = path or run_dir / FILE
    if not path.is_file():
        raise UsageError(f"{path} does not exist", fix="Run build.sh of the run directory, or name the engine")
    with open_run(run_dir, emit) as run:

        def make(folder: Path) -> Engine:
            found = tensorrt.adopt(typed, path, emit=run.emit)
            shutil.copyfile(path, folder / FILE)
            return replace(found, path=folder / FILE)

        key = {"typed": typed.onnx.digest, "adopted": file_digest(path), **tensorrt.key(BuildPlan())}
        return run.store.stage("build", key, Engine, make, engine_line)
