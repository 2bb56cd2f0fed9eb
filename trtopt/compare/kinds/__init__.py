"""Kinds of outputs: one module per kind, named in `--kind OUTPUT=NAME` and `OutputDrift.kind`.

A module has
    `reader(opening)`, which returns an accumulator of the output's metrics, or None for an output of another kind;
    `TAKES`, a description of the outputs that it reads;
    `PLAIN`, true for a kind that reads any output, as the fallback;
    `METRICS`, the names of the metrics that it may measure.

What they share is in `trtopt.compare.measures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from trtopt import plugins
from trtopt.types import OutputDrift

if TYPE_CHECKING:
    from trtopt.compare.measures.outputs import Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """An output for which a reader is needed.

    Attributes:
        name: the output's name.
        first: the first batch.
        asked: true if the user named the kind. The shape must still fit, but the output's name and values need not.
        beside: the other outputs, which the reader may read as well.
        names: the names of classes, by index, as far as they are known.
        labelled: the labels index as many classes as this output, and no other one, has numbers per sample.
    """

    name: str
    first: Outputs
    asked: bool = False
    beside: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    labelled: bool = False


class Reader(Protocol):
    """Accumulator of the metrics of an output.

    The metrics do not depend on how samples are batched. A few bytes per sample are kept, whatever the output's size.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """Other outputs that are read together with this one, and do not need a reader."""
        ...

    @property
    def note(self) -> str:
        """A remark on how the output is read; usually empty."""
        ...

    def add(self, batch: Outputs) -> None:
        """Add one batch.

        Raises:
            ModelError: the outputs of the two models cannot be compared as this kind.
        """
        ...

    def fits(self) -> bool:
        """Return whether all added samples look like this kind."""
        ...

    def suspects(self, count: int) -> set[int]:
        """Return the indices of the `count` samples that are the worst so far, in any order."""
        ...

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the metrics of all added samples; `ids` are the names of the dataset's samples."""
        ...


class Kind(Protocol):
    """A module of this folder."""

    TAKES: str
    PLAIN: bool
    METRICS: tuple[str, ...]

    def reader(self, opening: Opening) -> Reader | None:
        """Return a reader of the output, or None if the first batch shows that it is of another kind."""
        ...


def kinds() -> tuple[str, ...]:
    """Return the names that `--kind OUTPUT=NAME` accepts."""
    return plugins.names(__name__)


def check_name(name: str) -> None:
    """Check that the kind of output exists.

    Raises:
        UsageError: it does not; the message suggests the nearest name.
    """
    plugins.check(__name__, name, "kind of output")


def kind(name: str) -> Kind:
    """Return the module of that kind.

    Raises:
        UsageError: the kind is unknown; the message suggests the nearest name.
    """
    return cast(Kind, plugins.load(__name__, name, "kind of output"))
