"""The models of a comparison, as what runs them.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from trtopt.compare.measures.outputs import Array


class Runner(Protocol):
    """Anything that runs a model."""

    @property
    def where(self) -> str:
        """Description of the runtime and the device, for tables."""
        ...

    def run(self, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs for one feed, by name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The runners of both models, and their `names` in the report: (baseline, candidate).

    If the candidate is an engine, `graph` runs its typed graph.
    """

    baseline: Runner
    candidate: Runner
    names: tuple[str, str]
    graph: Runner | None = None

    @property
    def runners(self) -> tuple[Runner, ...]:
        """All runners."""
        return (self.baseline, self.candidate, *([self.graph] if self.graph else []))
