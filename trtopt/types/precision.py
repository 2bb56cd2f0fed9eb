"""Typed graphs: the precision of every node, and the reason.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtopt.types.model import OnnxModel

EQUALIZED = "/equalized"
"""How the names of the tensors end that equalization changes; of a Mul that it inserts, too, before "/Mul"."""
GUARDED = "kept by the guard"
"""How the reasons of the nodes begin that the guard keeps."""
NOT_WEIGHTED = "not a weighted operator"
"""The reason of a node that no rule quantizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Nodes to keep in higher precision: a `pattern` (see `trtopt.precision.passes.wanted`), and their precision.

    The precision is `fp32`, or "" for the fallback precision beside quantized nodes. `reason` is shown for these nodes.
    """

    pattern: str
    precision: str = ""
    reason: str = "kept by --keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """The only nodes to lower: `patterns` as in `Keep`, and the `precision` in which all others are kept, as there."""

    patterns: tuple[str, ...]
    precision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The nodes that the default gates need in higher precision, by name, and the reason.

    Without nodes, the reason says why none were found; it is empty if none are needed.
    """

    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The precision in which a node of the typed graph computes, and the reason."""

    node: str
    op: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedModel:
    """An ONNX graph with its precision written into it (Q/DQ nodes, casts), and the decision about every node.

    `precision` is the requested one and `rest` the fallback precision of nodes that were not quantized. `decisions`
    lists every node that computes on floating-point numbers, in graph order.
    """

    onnx: OnnxModel
    precision: str
    rest: str
    decisions: tuple[Decision, ...]

    def kept(self) -> tuple[Decision, ...]:
        """Return the nodes that stay in FP32 although a lower precision was requested."""
        return tuple(d for d in self.decisions if d.precision == "fp32" and self.precision != "fp32")

    def counts(self) -> dict[str, int]:
        """Return the number of nodes by precision."""
        counts: dict[str, int] = {}
        for decision in self.decisions:
            counts[decision.precision] = counts.get(decision.precision, 0) + 1
        return counts
