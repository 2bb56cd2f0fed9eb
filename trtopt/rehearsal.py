"""Run directory that is only looked at: which results of earlier runs a run would use.

Touches: reads the run directory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trtopt.events import Emit
from trtopt.rundir import DefaultDir, found
from trtopt.store import RunStore, open_store
from trtopt.types import Cache


class WouldRunError(Exception):
    """End of a rehearsal: `stage` would run, so that what follows it is not known."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class Rehearsal(RunStore):
    """Run directory in which nothing is written: the first stage without a cached result ends the run."""

    def _begin(self, name: str) -> None:
        raise WouldRunError(name)

    def write(self, name: str, text: str) -> Path:  # noqa: ARG002
        """Return the path; nothing is written."""
        return self.root / name

    def withdraw(self, name: str) -> None:
        """Do nothing."""

    def render(self, name: str, key: str, make: Callable[[], str]) -> None:
        """Do nothing."""

    def discard(self, name: str, **inputs: Any) -> bool:
        """Remember that the stage would run; nothing is deleted."""
        if self._is_discarded(name, inputs):
            del self._manifest["stages"][name]  # of the copy in memory
        return False

    def forget_times(self) -> None:
        """Do nothing."""

    def describe(self, environment: Any) -> None:
        """Do nothing."""


@contextlib.contextmanager
def open_for(directory: Path | DefaultDir, emit: Emit, cache: Cache) -> Iterator[RunStore]:
    """Open a run directory as `open_store` does, or only look at it if `cache` is `show`."""
    if cache == "show":
        yield Rehearsal(found(directory), emit)
        return
    with open_store(directory, emit, fresh=cache == "ignore") as store:
        yield store
