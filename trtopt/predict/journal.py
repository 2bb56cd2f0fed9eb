"""Rows of a run that is not finished: one file per block in the folder `OUT.parts`, until all of them become `OUT`.

    OUT.parts/request.json     what was asked, and how rows are joined into blocks
    OUT.parts/.lock            held while a process writes
    OUT.parts/000000-2.part    the rows of the first block, of which 2 have no answer, and so on
    OUT.json                   once OUT is complete: what was asked, and what ran

A block is renamed into place when all of it is on the disk, and OUT once it is complete. A process that is killed at
any moment loses the blocks that it was working on, and the next one continues with them.

Touches: these files.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trtopt.codec import decode, encode
from trtopt.errors import StoreError, UsageError
from trtopt.predict.answers import Field
from trtopt.predict.formats import Part
from trtopt.writing import write_whole, writing

_WORDS = {"model": "another model", "engine": "another engine", "data": "another data set"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Decisions that are made when a run begins, and kept when it is resumed.

    Attributes:
        fields: the columns.
        rows: the number of rows per block.
        batch: the largest batch.
    """

    fields: tuple[Field, ...]
    rows: int
    batch: int


class Journal:
    """The rows of one output so far. `open_journal` opens it.

    Attributes:
        out: the output.
        request: what is asked, as JSON values.
        folder: the folder of its blocks.
        layout: how rows are joined into blocks; None until `begin`.
    """

    def __init__(self, out: Path, request: Mapping[str, Any]) -> None:
        self.out = out
        self.folder = parts_of(out)
        self.layout: Layout | None = None
        self.request = dict(request)

    def begin(self, layout: Layout) -> None:
        """Record what was asked and the layout.

        Raises:
            StoreError: the folder cannot be written.
        """
        self.layout = layout
        text = json.dumps({"request": self.request, "layout": encode(layout)}, indent=1)
        with writing(self.out):
            write_whole(self.folder / "request.json", lambda file: file.write(text.encode()))

    def done(self) -> dict[int, int]:
        """Return how many rows have no answer, by the number of each block that is written."""
        names = [path.stem.partition("-") for path in self.folder.glob("*.part")]
        return {int(number): int(failed) for number, _, failed in names if number.isdigit() and failed.isdigit()}

    def write(self, number: int, failed: int, fill: Callable[[IO[bytes]], object]) -> None:
        """Write a block, completely or not at all; `failed` of its rows have no answer.

        Raises:
            StoreError: the folder cannot be written.
        """
        with writing(self.out):
            write_whole(self.folder / f"{number:06d}-{failed}.part", fill)

    def parts(self) -> dict[int, Part]:
        """Return a function that opens each block, by its number, in order."""
        return {
            number: functools.partial(_opened, self.folder / f"{number:06d}-{failed}.part")
            for number, failed in sorted(self.done().items())
        }

    def remove(self) -> None:
        """Remove the blocks, once the output is written."""
        with writing(self.out):
            # Renamed first: a kill in between must not leave some of the blocks beside the output.
            trash = self.folder.with_name(f".tmp-{self.folder.name}")
            shutil.rmtree(trash, ignore_errors=True)
            self.folder.replace(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def resume(self) -> None:
        """Read the layout of an interrupted run, if there is one.

        Raises:
            UsageError: its rows answer something else.
            StoreError: its folder is damaged.
        """
        try:
            text = json.loads((self.folder / "request.json").read_text(encoding="utf-8"))
            request, layout = dict(text["request"]), decode(Layout, text["layout"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self.folder} is damaged", why=str(error), fix="Start again with --force, or choose another --out"
            ) from error
        if reason := _difference(self.request, request):
            raise UsageError(
                f"{self.folder} holds the rows of another run",
                why=reason,
                fix="Finish that run, start again with --force, or choose another --out",
            )
        self.layout = layout


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def parts_of(out: Path) -> Path:
    """Return the folder of the blocks of an output."""
    return out.with_name(f"{out.name}.parts")


def summary_of(out: Path) -> Path:
    """Return the file beside an output that says what it is."""
    return out.with_name(f"{out.name}.json")


def write_output(
    out: Path, request: Mapping[str, Any], summary: Mapping[str, Any], fill: Callable[[IO[bytes]], object]
) -> None:
    """Write an output and, beside it, what it answers.

    Raises:
        StoreError: it cannot be written.
    """
    text = {"schema_version": 1, "request": dict(request), **summary}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # The summary comes first: an output that is there is complete, and says what it is.
        write_whole(summary_of(out), lambda file: file.write(json.dumps(text, indent=1).encode() + b"\n"))
        try:
            write_whole(out, fill)
        except BaseException:
            summary_of(out).unlink(missing_ok=True)
            raise


def completed(out: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the summary of an output that is complete and answers the request; None without an output.

    Raises:
        UsageError: the output exists, and answers something else.
    """
    if not out.exists() and not out.is_symlink():
        return None
    fix = "Choose another --out, or replace it with --force"
    if out.is_dir():
        raise UsageError(f"{out} is a folder", fix="Choose another --out")
    try:
        summary: dict[str, Any] = json.loads(summary_of(out).read_text(encoding="utf-8"))
        reason = _difference(request, dict(summary["request"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{out} exists", why="no run of trtopt predict wrote it", fix=fix) from None
    if reason:
        raise UsageError(f"{out} is of another run", why=reason, fix=fix)
    return summary


@contextlib.contextmanager
def open_journal(out: Path, request: Mapping[str, Any], *, force: bool = False) -> Iterator[Journal]:
    """Open the rows of an output, and hold their lock until the block ends.

    Args:
        out: the output.
        request: what is asked, as JSON values.
        force: drop an earlier output, and the rows of an interrupted run.

    Raises:
        UsageError: the rows of an interrupted run answer something else.
        StoreError: the folder cannot be written, or another process writes to it.
    """
    from filelock import FileLock, Timeout

    journal = Journal(out, request)
    with writing(out):
        journal.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(journal.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"another process is writing {out}", why=f"it holds {lock.lock_file}", fix="Wait for it"
            ) from None
    try:
        with writing(out):
            if force:
                for path in (out, summary_of(out), journal.folder / "request.json", *journal.folder.glob("*.part")):
                    path.unlink(missing_ok=True)
            for left_over in journal.folder.glob(".tmp-*"):  # of a process that was killed
                left_over.unlink()
        journal.resume()
        yield journal
    finally:
        lock.release()
        # Nothing to keep, such as after an error before the first block.
        if journal.folder.is_dir() and not (journal.folder / "request.json").exists():
            shutil.rmtree(journal.folder, ignore_errors=True)


def _difference(asked: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return how another request differs; empty if it is the same."""
    for name in dict.fromkeys((*asked, *other)):
        if asked.get(name) != other.get(name):
            word = _WORDS.get(name, f"another value of {name}")
            return f"it is of {word}: {str(other.get(name))[:16]}, not {str(asked.get(name))[:16]}"
    return ""
