"""Progress of stages: bars on a terminal, otherwise one plain line per stage, and one a minute while it runs.

stdout is for results, stderr for progress and messages. `NO_COLOR`, `FORCE_COLOR` and `CI` are honoured.

Touches: stderr; a thread, where there are no bars.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from types import TracebackType

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trtopt import events
from trtopt.errors import TrtoptError

LOGGER = logging.getLogger("trtopt")
"""Parent of the loggers of all modules."""
_SILENT_SECONDS = 60.0
"""Time between the lines of a stage without a bar: CI systems end a job that prints nothing for minutes."""


def stderr_console() -> Console:
    """Return the console for everything except results."""
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def stdout_console() -> Console:
    """Return the console for results: as wide as the terminal, else as a report."""
    from trtopt.report.text import WIDTH

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def show(result: RenderableType) -> None:
    """Print a result on stdout; without colours, lines do not end in blanks."""
    console = stdout_console()
    if console.is_terminal:
        console.print(result)
        return
    with console.capture() as printed:
        console.print(result)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def same_place() -> bool:
    """Return whether stdout and stderr are read together: in the same terminal, file or pipe, or in a GitHub log."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        return True
    if sys.stdout.isatty() and sys.stderr.isatty():
        return True
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or not a file
        return False


class Narrator:
    """Context manager that is also the `emit` of a pipeline: it renders events on stderr as they arrive.

    `quiet` renders none. `verbose` also prints the logs of trtopt, which include those of the frameworks.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self._console = stderr_console()
        self._quiet = quiet
        self._log = logging.StreamHandler() if verbose else None
        # FORCE_COLOR makes rich assume a terminal. Bars are only for real terminals, never for CI logs.
        self._animated = sys.stderr.isatty() and not os.environ.get("CI") and not quiet
        self._progress = Progress(
            TextColumn("  [bold]{task.fields[stage]:<10}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._animated,
        )
        self._tasks: dict[str, TaskID] = {}
        self._ended = threading.Event()
        self._ticks = threading.Thread(target=self._tick, daemon=True)
        self._said: set[str] = set()

    def __enter__(self) -> Narrator:
        if self._log is not None:
            self._log.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            LOGGER.addHandler(self._log)
            LOGGER.setLevel(logging.DEBUG)
        self._progress.start()
        if not self._animated and not self._quiet:
            self._ticks.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._ticks.is_alive():
            self._ticks.join()
        with contextlib.suppress(SystemExit, BrokenPipeError):
            self._progress.stop()
        if self._log is not None:
            if isinstance(error, TrtoptError):
                LOGGER.debug("traceback of the error", exc_info=error)
            LOGGER.removeHandler(self._log)
            LOGGER.setLevel(logging.NOTSET)
        if isinstance(error, SystemExit):
            why = "stderr was closed, or code of the user exited"
            raise TrtoptError("the run ended early", why=why) from error

    def __call__(self, event: events.Event) -> None:
        """Render one event."""
        if self._quiet:
            return
        match event:
            case events.StageStarted(stage):
                self._tasks[stage] = self._progress.add_task("", total=None, stage=stage, note="")
            case events.Progress(stage, done, total, note):
                if stage in self._tasks:
                    self._progress.update(self._tasks[stage], completed=done, total=total or None, note=note)
            case events.StageFinished(stage, seconds, summary):
                self._end(stage)
                self._line("[green]✓[/]", stage, f"{seconds:7.2f} s", summary)
            case events.StageCached(stage, summary):
                self._line("[cyan]=[/]", stage, "   cached", summary)
            case events.StageUnavailable(stage, reason):
                self._end(stage)
                self._line("[yellow]–[/]", stage, "        –", reason)
            case events.Noted(message):
                self._said.add(message)
                self._console.print(f"[dim]note:[/] {escape(message)}")
            case events.Warned(message):
                self._said.add(message)
                self._console.print(f"[yellow]warning:[/] {escape(message)}")

    @property
    def told(self) -> frozenset[str] | None:
        """The notes and warnings that were printed, if the reader of stdout has seen them and the stages; else None."""
        return frozenset(self._said) if same_place() and not self._quiet else None

    def _tick(self) -> None:
        """Print a line about the stage that runs, again and again."""
        while not self._ended.wait(_SILENT_SECONDS):
            for task in self._progress.tasks[-1:]:
                count = f"{task.completed:.0f} of {task.total:.0f}" if task.total else f"{task.completed:.0f}"
                said = ", ".join(filter(None, [count if task.completed or task.total else "", task.fields["note"]]))
                with contextlib.suppress(OSError, ValueError):  # stderr was closed: the next line of a stage tells
                    self._line("[dim]…[/]", task.fields["stage"], f"{task.elapsed or 0.0:7.2f} s", said)

    def _end(self, stage: str) -> None:
        task = self._tasks.pop(stage, None)
        if task is not None:
            self._progress.remove_task(task)

    def _line(self, mark: str, stage: str, duration: str, summary: str) -> None:
        self._console.print(f"{mark} [bold]{stage:<10}[/] {duration}  [dim]{escape(summary)}[/]")
