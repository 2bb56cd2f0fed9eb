"""The first layer where drift jumps: what counts as a jump, and the sentence that says why.

A sound INT8 layer adds noise of -25 to -45 dB of its output's energy, a 16-bit one -50 to -75 dB; a hard one (a matrix
product that reads the outliers of a transformer) comes up to -10 dB. With a scale 10 times too small a layer clips most
of what it reads: -15 to -10 dB for the skip input of a residual Add, mostly -8 to +8 dB elsewhere. Hence two marks.
Noise of a tenth of the output is a jump wherever it is. Less is one, down to a hundredth, when it stands far above what
is usual for nodes of that precision in that network.

Touches: nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from trtopt.types import LayerDrift

ALWAYS, NEVER = -10.0, -20.0
"""dB of the output's energy: this much is a jump whatever is usual, and less than that is none."""

ABOVE_PEERS = 22.0
"""dB above the median. Seven networks (digits, LeNet, EfficientNet-Lite0, MiniLM, PP-OCRv4's detector and reader,
Silero) have no jump when they are sound: their noisiest layer stands 19 dB above, at -10.3 dB. When one of their 416
scales is 10 times too small, the layer behind it is flagged for 414 of them, the least of these 24 dB above; of the
other two, one leaves the network's result no worse."""


def find(rows: Sequence[LayerDrift], between: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Return the node where drift first jumps (empty: nowhere) and a sentence with the numbers.

    `between[node]` are nodes without a counterpart whose noise counts to that node.
    """
    if not rows:
        return "", "the graphs share no tensor's name: no layer of one can be held against one of the other"
    marks = {precision: _mark(rows, precision) for precision in {row.precision for row in rows}}
    for row in rows:
        if _breaks(row):
            return row.node, f"{_name(row)} gives NaN or Inf where FP32 gives numbers{_or(between.get(row.node, ()))}"
        if level(row.added) >= marks[row.precision]:
            return row.node, _sentence(row, rows) + _or(between.get(row.node, ()))
    return "", _quiet(rows, marks) + _blind({node for nodes in between.values() for node in nodes})


def _quiet(rows: Sequence[LayerDrift], marks: Mapping[str, float]) -> str:
    noisiest = max(rows, key=lambda row: row.added)
    if not noisiest.added:
        return "no layer adds any noise"
    return (
        f"no layer stands out: the noisiest, {_name(noisiest)}, adds {level(noisiest.added):.1f} dB of its output's "
        f"energy, and a jump is {marks[noisiest.precision]:.1f} dB or more"
    )


def _blind(nodes: Collection[str]) -> str:
    if not nodes:
        return ""
    have = "nodes have" if len(nodes) > 1 else "node has"
    return f"; {len(nodes)} {have} no counterpart in FP32's graph, and the noise counts to the next that has one"


def level(added: float) -> float:
    """Relative noise in dB."""
    return 10 * math.log10(added) if added > 0 else -math.inf


def _mark(rows: Sequence[LayerDrift], precision: str) -> float:
    return min(max(_usual(rows, precision) + ABOVE_PEERS, NEVER), ALWAYS)


def _usual(rows: Sequence[LayerDrift], precision: str) -> float:
    return statistics.median_low(level(row.added) for row in rows if row.precision == precision)


def _breaks(row: LayerDrift) -> bool:
    """Whether the first number that is none appears here, with FP32's inputs or with those of the run."""
    return math.isinf(row.added) or (row.sqnr == -math.inf and row.sqnr_in > -math.inf)


def _sentence(row: LayerDrift, rows: Sequence[LayerDrift]) -> str:
    usual = _usual(rows, row.precision)
    peers = sum(each.precision == row.precision for each in rows)
    than = f", where the median of the {peers} {row.precision} nodes is {usual:.1f} dB" if peers > 1 else ""
    arrives = f"{row.sqnr_in:.1f} dB" if math.isfinite(row.sqnr_in) else "exact"
    return (
        f"{_name(row)} adds noise of {level(row.added):.1f} dB of its output's energy even to FP32's own inputs{than}; "
        f"in the whole network what it reads is {arrives} and its result {row.sqnr:.1f} dB"
    )


def _name(row: LayerDrift) -> str:
    return f"{row.node} ({row.op}, {row.precision})"


def _or(others: Sequence[str]) -> str:
    if not others:
        return ""
    names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return f"; it may be due to nodes before it that FP32's graph has no tensor of: {names}"
