"""The command `trtopt adopt`: an engine that trtexec built from a run's graph becomes the engine of that run.

Touches: the run directory, through the store; the GPU, as the engine is loaded.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from trtopt.codec import decode
from trtopt.commands.bench import FILE as TIMES
from trtopt.engine import tensorrt
from trtopt.errors import ModelError, UsageError
from trtopt.events import Emit, silent
from trtopt.manifest import file_digest, read_inputs
from trtopt.run import Run, open_run
from trtopt.stages.aim import GRAPH, graph_file
from trtopt.stages.build import ADOPTED, FILE, engine_line
from trtopt.store import read_result
from trtopt.types import Engine, ShapeRange, TypedModel


def adopt(run_dir: Path, path: Path | None = None, emit: Emit = silent) -> Engine:
    """Record an engine in the manifest of a run directory, and return it; it is copied there if it is elsewhere.

    Args:
        run_dir: the run, whose graph the engine was built from.
        path: the engine; `model.engine` in the run directory by default. Loading runs code from it.
        emit: receives progress and warnings.

    Raises:
        UsageError: the run or the engine does not exist.
        ModelError: it is not an engine, or one of another graph or for other shapes, or the run is not complete.
        EnvironmentUnableError: the engine cannot be loaded here.
        AuditError: the engine computes in another precision than the run decided.
    """
    _typed(run_dir)
    path = path or run_dir / FILE
    if not path.exists():
        raise UsageError(f"{path} does not exist", fix="Run build.sh of the run directory, or name the engine")
    if not path.is_file():
        raise UsageError(f"{path} is a folder", fix="Name the engine")
    with open_run(run_dir, emit) as run:
        typed, had_one, earlier = _typed(run_dir), run.store.holds("build"), read_result(run_dir, "build", Engine)
        profile = [decode(ShapeRange, entry) for entry in read_inputs(run_dir, "prepare").get("profile", [])]
        _check_graph(run, path)

        def make(folder: Path) -> Engine:
            copy = Path(shutil.copyfile(path, folder / FILE))
            # The child that loads the engine resolves the path; the store wants one inside `folder` as it is written.
            return replace(tensorrt.adopt(typed, profile, copy, emit=run.emit), path=copy)

        key = {"typed": typed.onnx.digest, ADOPTED: file_digest(path)}
        engine = run.store.stage("build", key, Engine, make, engine_line, again=True)
        if earlier is None or earlier.digest != engine.digest:
            run.store.withdraw(TIMES)
            if had_one:  # the report is about that engine
                run.forget()
    return engine


def _typed(run_dir: Path) -> TypedModel:
    if not run_dir.exists():
        raise UsageError(f"{run_dir} does not exist", fix="Give the run directory that `trtopt convert --target` wrote")
    typed = read_result(run_dir, "precision", TypedModel) if run_dir.is_dir() else None
    if typed is None:
        raise ModelError(
            f"{run_dir} is not a complete run directory",
            why="its manifest does not record a typed graph" if run_dir.is_dir() else "it is not a folder",
            fix="Give the run directory that `trtopt convert --target` wrote",
        )
    return typed


def _check_graph(run: Run, path: Path) -> None:
    """Compare the graph that build.sh recorded beside an engine with that of the run.

    Raises:
        ModelError: it was another graph, as of an earlier conversion.
    """
    graph, recorded = run.store.root / GRAPH, graph_file(path)
    if not graph.is_file() or not recorded.is_file():
        run.warn(f"it is not known which graph {path} was built from: build.sh records it in {graph_file(Path(FILE))}")
        return
    digest = recorded.read_text(encoding="utf-8", errors="replace").partition(" ")[0]
    if digest != file_digest(graph):
        raise ModelError(
            f"{path} was built from another graph than {graph}",
            why=f"build.sh recorded another digest in {recorded.name}",
            fix="Run build.sh of the run again",
        )
