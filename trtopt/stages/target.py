"""The precision that a run was asked for.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtopt.types import Keep, Only


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The requested precision.

    Attributes:
        precision: the precision.
        rest: the fallback precision, of everything that is not quantized.
        bias_correction: whether biases are corrected.
        keep: the nodes that the user keeps in higher precision.
        only: the only nodes to lower; None for all.
    """

    precision: str
    rest: str
    bias_correction: bool
    keep: tuple[Keep, ...] = ()
    only: Only | None = None
