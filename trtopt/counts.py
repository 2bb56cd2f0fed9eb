"""Counts of expensive work in this process: runs of networks, and parses of graph files.

A stage reports its network runs, and tests check that no work is done twice.

Touches: nothing but its counts.
"""

from __future__ import annotations

import threading


class Count:
    """A number that any thread may increase."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        """Add one."""
        with self._lock:
            self.value += 1


network_runs = Count()
"""Runs of a network, of one sample or of one batch."""

parses = Count()
"""ONNX files that were read and parsed."""
