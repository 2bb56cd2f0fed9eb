"""Kinds of outputs: `--kind OUTPUT=NAME` names a module of this folder, and so does `OutputDrift.kind`.

A module has `reader(opening)`, which returns an accumulator of the metrics of an output, or None for an output that
cannot be of this kind; `TAKES`, a description of the outputs that can; and `PLAIN`, whether it takes what no other kind
does. The kinds share the modules `outputs` (a batch of both models' outputs), `noise` (errors value by value), `parts`
(groups of channels of one scale), `explained` (against trivial guesses), `boxes` (matching) and `worst` (samples).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from trtopt.compare.kinds.outputs import Outputs
from trtopt.errors import UsageError
from trtopt.types import OutputDrift

_SHARED = frozenset({"boxes", "explained", "noise", "outputs", "parts", "worst"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """An output to be read: its name, the first batch, whether the user named its kind, and outputs to read with it.

    Where the user named the kind, shapes must still fit, but names and values need not suggest it.
    """

    name: str
    first: Outputs
    asked: bool = False
    beside: tuple[str, ...] = ()


class Reader(Protocol):
    """Accumulates the metrics of an output. They do not depend on how samples are batched; a few bytes a sample are
    kept, whatever the size of the output.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The other outputs that are read with this one, and need no reader of their own."""
        ...

    @property
    def note(self) -> str:
        """A remark on how the output is read; usually empty."""
        ...

    def add(self, batch: Outputs) -> None:
        """Add one batch.

        Raises:
            ModelError: the two models' outputs cannot be compared so.
        """
        ...

    def fits(self) -> bool:
        """Return whether everything that was added looks like this kind."""
        ...

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the metrics of all that was added; `ids` name the samples of the dataset."""
        ...


class Kind(Protocol):
    """A module of this folder."""

    TAKES: str
    PLAIN: bool

    def reader(self, opening: Opening) -> Reader | None:
        """Return a reader of the output, or None when the first batch shows that it is not of this kind."""
        ...


def kinds() -> tuple[str, ...]:
    """Return the names that `--kind OUTPUT=NAME` takes: the modules of this folder that are not shared helpers."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED))


def check_name(name: str) -> None:
    """Refuse an unknown kind of output.

    Raises:
        UsageError: the message suggests the nearest name.
    """
    known = kinds()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, 1)
        raise UsageError(
            f"--kind names an unknown kind of output {name!r}",
            fix=f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(known)}",
        )


def kind(name: str) -> Kind:
    """Return the module of that kind.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    check_name(name)
    return cast(Kind, importlib.import_module(f"{__name__}.{name}"))
