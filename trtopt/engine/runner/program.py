"""Protocols between `engine.runner` and a loaded engine.

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
    """Input or output tensor of an engine.

    Attributes:
        name: name of the tensor.
        dtype: numpy dtype of the tensor.
        output: whether it is an output.
        size: largest size in bytes.
        min: smallest shape of an input.
        max: largest shape of an input.
        on_host: whether the CPU reads and writes it, as is the case for shape tensors.
        sized_late: whether the shape of an output depends on values, and is known only after the computation.
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
    """Execution context of an engine for one set of input shapes."""

    def outputs(self) -> Mapping[str, Shape]:
        """Return the shape of each output. Those `sized_late` are valid only after the enqueued work is complete."""
        ...

    def enqueue(self, stream: int) -> None:
        """Enqueue the computation on the stream at this address.

        Raises:
            CudaError: the engine reports an error.
        """
        ...

    def close(self) -> None:
        """Release the execution context."""
        ...


class Program(Protocol):
    """Loaded engine."""

    @property
    def where(self) -> str:
        """Runtime of the engine and its version, as reports show them."""
        ...

    @property
    def ports(self) -> tuple[Port, ...]:
        """Input and output tensors."""
        ...

    @property
    def max_contexts(self) -> int:
        """Largest number of execution contexts that may exist at the same time; 0 for no limit."""
        ...

    @property
    def weights_size(self) -> int:
        """Device memory that loading the engine took, in bytes."""
        ...

    @property
    def workspace_size(self) -> int:
        """Device memory for the activations of one execution, in bytes."""
        ...

    def prepare(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], workspace: int) -> Execution:
        """Create an execution context.

        Args:
            shapes: shape of each input.
            addresses: address of each input and output tensor, on the host for those `on_host`.
            workspace: device address of `workspace_size` bytes.

        Raises:
            DataError: the engine rejects a shape.
            CudaError: the engine rejects an address.
        """
        ...

    def close(self) -> None:
        """Release the engine."""
        ...
