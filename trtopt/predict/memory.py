"""Free memory of the device that a model runs on.

Touches: `/proc`, or NVML.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from trtopt.bench.gpu import open_gpu
from trtopt.bench.memory import available
from trtopt.errors import EnvironmentUnableError, MissingDependencyError


@contextlib.contextmanager
def free_memory(device: str) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the free memory in bytes, or 0 where the system does not tell.

    `device` is `cpu` or `cuda`.
    """
    if device == "cpu":
        yield _host
        return
    try:
        gpu = open_gpu()
    except (EnvironmentUnableError, MissingDependencyError):
        yield lambda: 0
        return
    try:
        yield gpu.free_memory
    finally:
        gpu.close()


def _host() -> int:
    try:
        return available()
    except EnvironmentUnableError:
        return 0
