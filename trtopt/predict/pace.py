"""Progress with rate and time left.

Touches: nothing; it emits events.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from trtopt.events import Emit, Progress

STAGE = "predict"


@dataclass(slots=True, kw_only=True)
class Pace:
    """Progress: samples done, and the time that those of this process took."""

    total: int
    done: int
    emit: Emit
    _start: float = field(default_factory=time.perf_counter)
    _before: int = field(init=False)

    def __post_init__(self) -> None:
        self._before = self.done

    @property
    def rate(self) -> float:
        """Samples per second of this process."""
        return (self.done - self._before) / max(time.perf_counter() - self._start, 1e-9)

    def add(self, count: int) -> None:
        """Count samples, and emit the progress with rate and time left."""
        self.done += count
        left = (self.total - self.done) / max(self.rate, 1e-9)
        self.emit(Progress(STAGE, self.done, self.total, f"{self.rate:.1f} samples/s, {_clock(left)} left"))


def _clock(seconds: float) -> str:
    """Return a duration as `1:02:03` or `2:03`."""
    minutes, rest = divmod(int(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
