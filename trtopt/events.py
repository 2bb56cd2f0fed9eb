"""What stages say while they work. Stages never print: they call `emit` with one of these; the CLI renders them.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins."""

    stage: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage has done `done` of `total` steps (`total` 0: unknown); `note` is a short remark for the bar."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage ended well, after `seconds` of wall time."""

    stage: str
    seconds: float
    summary: str


@dataclass(frozen=True, slots=True)
class StageCached:
    """A stage was not run: the store holds its result."""

    stage: str
    summary: str


@dataclass(frozen=True, slots=True)
class StageUnavailable:
    """A stage could not run on this machine; the run goes on without it."""

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that a careful user wants to know, and that stands in the report too."""

    message: str


Event = StageStarted | Progress | StageFinished | StageCached | StageUnavailable | Warned
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Drop the event: for library use and tests."""
