"""A run: its directory, which is open and locked, and everything that the stages of the run share.

Touches: the run directory, through the store; reads which packages are installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from trtopt.code_digest import code_digest
from trtopt.codec import decode, encode
from trtopt.errors import TrtoptError, UsageError
from trtopt.events import Emit, Event, Noted, StageUnavailable, Warned
from trtopt.rehearsal import open_for
from trtopt.requires import versions
from trtopt.rundir import DefaultDir
from trtopt.store import RunStore
from trtopt.types import READABLE_SCHEMAS, REPORT_SCHEMA, Cache, Comparison, Report, StageOutcome

FORMATS = ("json", "html")
"""Formats that are written to the run directory in any case; other formats are only printed."""
PACKAGES = ("trtopt", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx")
LIBRARIES = ("onnx-ir", "onnxscript", "onnxslim", "numba", "numpy", "scipy", "cuda-python", "pycuda")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, as every stage is given it.

    Attributes:
        store: the run directory.
        emit: receives events. Notes and warnings are kept for the report, and each is emitted once.
        device: where onnxruntime runs: `cpu`, `cuda` or `auto`.
        said: the notes and warnings so far.
        shared: what several stages need and keep in memory, by digests of the network and the data.
    """

    store: RunStore
    emit: Emit
    device: str = "cpu"
    said: list[Noted | Warned] = field(default_factory=list)
    shared: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where onnxruntime runs, for the key of a stage: the device, and the GPUs that `cuda` and `auto` find here."""
        from trtopt.engine.cuda.driver import has_gpu, read_driver

        if self.device == "cpu" or (self.device == "auto" and not has_gpu()):
            return "cpu"
        return f"{self.device}: {', '.join(gpu.name for gpu in read_driver().gpus)}"

    def warn(self, message: str) -> None:
        """Warn the user, now and in the report."""
        self.emit(Warned(message))

    def note(self, message: str) -> None:
        """Tell the user a fact, such as what was assumed, now and in the report."""
        self.emit(Noted(message))

    def skip(self, stage: str, why: str) -> None:
        """Record that a stage did not run."""
        self.store.outcomes.append(StageOutcome(name=stage, status="skipped", seconds=0.0, summary=why))

    def unavailable(self, stage: str, error: TrtoptError) -> None:
        """Record that a stage cannot run on this machine; the run continues without it."""
        _LOGGER.debug("%s is not available: %s", stage, error)
        self.emit(StageUnavailable(stage, str(error)))
        self.store.outcomes.append(StageOutcome(name=stage, status="unavailable", seconds=0.0, summary=str(error)))

    def forget(self) -> None:
        """Delete the reports of an earlier run, so that a run that fails does not leave an old verdict."""
        for format in FORMATS:
            self.store.withdraw(f"report.{format}")

    def finish(self, report: Report) -> Report:
        """Complete a report with the stages, warnings and environment of this run, write it, and return it.

        `report.json`, `report.html` and the environment in the manifest are written. An equal report, as after a run
        whose stages were all cached, is not rendered again.
        """
        from trtopt.report import render

        compared = [report.comparison, *(row.comparison for row in report.candidates)]
        full = replace(
            report,
            run_dir=self.store.root,
            stages=tuple(self.store.outcomes),
            warnings=_warnings(self.said, *compared),
            notes=_notes(self.said, *compared),
            environment=environment(),
            invocation=invocation(),
        )
        data = json.dumps(encode(full))  # without indentation, which takes ten times as long
        key = hashlib.sha256((code_digest(rendering=True) + data).encode()).hexdigest()
        for format in FORMATS:
            self.store.render(f"report.{format}", key, partial(render, format, full))
        self.store.describe(full.environment)
        return full


@contextlib.contextmanager
def open_run(directory: Path | DefaultDir, emit: Emit, device: str = "cpu", cache: Cache = "use") -> Iterator[Run]:
    """Open a run directory, and hold its lock until the block ends. Notes and warnings are kept for the report.

    Raises:
        StoreError: the directory cannot be created or written.
    """
    said: list[Noted | Warned] = []

    def record(event: Event) -> None:
        if isinstance(event, Noted | Warned):
            if event in said:
                return
            said.append(event)
        emit(event)

    with open_for(directory, emit, cache) as store:
        _LOGGER.debug("run directory %s, device %s", store.root, device)
        yield Run(store=store, emit=record, device=device, said=said)


def _warnings(said: Iterable[Noted | Warned], *comparisons: Comparison | None) -> tuple[str, ...]:
    """Return the warnings of the run and of its comparisons, without duplicates."""
    lines = [event.message for event in said if isinstance(event, Warned)]
    lines += [line for comparison in comparisons if comparison is not None for line in comparison.warnings]
    return tuple(dict.fromkeys(lines))


def _notes(said: Iterable[Noted | Warned], *comparisons: Comparison | None) -> tuple[str, ...]:
    """Return the notes of the run, and the notes and remarks of its comparisons, without duplicates."""
    lines = [event.message for event in said if isinstance(event, Noted)]
    for comparison in comparisons:
        if comparison is not None:
            lines += [*comparison.notes, *comparison.remarks]
    return tuple(dict.fromkeys(lines))


def environment() -> dict[str, str]:
    """Return the environment that a report records: operating system, Python, packages, and the GPU with its driver."""
    from trtopt.engine.cuda.driver import read_driver

    machine = {"platform": platform.platform(), "python": platform.python_version()}
    driver = read_driver()
    if driver.gpus:
        machine |= {"gpu": ", ".join(gpu.name for gpu in driver.gpus), "driver": driver.version}
    return {**machine, **versions(*PACKAGES, *LIBRARIES)}


def invocation() -> str:
    """Return the command line of this process, with the settings in the environment; empty unless it runs trtopt."""
    program = Path(sys.argv[0])
    if program.stem != "trtopt" and (program.parent.name, program.name) != ("trtopt", "__main__.py"):
        return ""
    settings = [f"{name}={shlex.quote(os.environ[name])}" for name in sorted(os.environ) if name.startswith("TRTOPT_")]
    return " ".join([*settings, shlex.join(["trtopt", *sys.argv[1:]])])


def load(directory: Path) -> Report:
    """Return the report in a run directory, which may also be given as the path of its report.json.

    Raises:
        UsageError: the report does not exist, is damaged, or has a schema version that is not in `READABLE_SCHEMAS`.
    """
    path = directory if directory.name == "report.json" else directory / "report.json"
    fix = "Give a run directory that this version of trtopt wrote"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["schema_version"]
        if version not in READABLE_SCHEMAS:
            known = " and ".join(map(str, READABLE_SCHEMAS))
            why = f"its schema version is {version}, and this version of trtopt reads {known}"
            raise UsageError(f"cannot read {path}", why=why, fix="Run the command that made it again")
        return replace(decode(Report, data), schema_version=REPORT_SCHEMA)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"no report at {path}", why="it does not exist", fix=fix) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"no report at {path}", why="it cannot be read", fix=fix) from error
