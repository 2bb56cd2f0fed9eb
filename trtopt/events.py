"""Events that stages emit while they work. Stages never print; the CLI renders these.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStarted:
    """Start of a stage."""

    stage: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a stage: `done` of `total` steps (`total` is 0 when unknown), with a short `note` for the bar."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """Successful end of a stage, after `seconds` of wall time."""

    stage: str
    seconds: float
    summary: str


@dataclass(frozen=True, slots=True)
class StageCached:
    """Stage that did not run because the store already holds its result."""

    stage: str
    summary: str


@dataclass(frozen=True, slots=True)
class StageUnavailable:
    """Stage that cannot run on this machine; the run continues without it."""

    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Noted:
    """Fact for the user, such as what was assumed, repeated in the report. Nothing needs to be done about it."""

    message: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Warning for the user, repeated in the report: the result may not be what the user wants."""

    message: str


Event = StageStarted | Progress | StageFinished | StageCached | StageUnavailable | Noted | Warned
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """Drop the event: for library use and tests."""
