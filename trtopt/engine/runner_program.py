"""What `engine.runner` asks of an engine.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output of an engine.

    An input takes shapes from `min` to `max`. `size` is the most bytes it may have. `on_host` ports are read and
    written by the CPU (shapes). `sized_late`: the output's shape depends on values, and is known when it was computed.
    """

    name: str
    dtype: np.dtype[Any]
    output: bool
    size: int
    min: Shape = ()
    max: Shape = ()
    on_host: bool = False
    sized_late: bool = False


class Execution(Protocol):
    """An engine made ready for one set of input shapes."""

    def outputs(self) -> Mapping[str, Shape]:
        """The outputs' shapes; those `sized_late` only after the work that `enqueue` left is done."""
        ...

    def enqueue(self, stream: int) -> None:
        """Enqueue the computation on a stream. Raises CudaError when the engine refuses."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class Program(Protocol):
    """A loaded engine. `where` says what runs it; the sizes are bytes of device memory."""

    @property
    def where(self) -> str:
        """What runs the engine."""
        ...

    @property
    def ports(self) -> tuple[Port, ...]:
        """Inputs and outputs."""
        ...

    @property
    def weights_size(self) -> int:
        """Memory that loading it took."""
        ...

    @property
    def workspace_size(self) -> int:
        """Memory for intermediate results, of one execution."""
        ...

    def prepare(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], workspace: int) -> Execution:
        """Make an execution for input shapes, with the address of every port and of the workspace."""
        ...

    def close(self) -> None:
        """Release it."""
        ...
