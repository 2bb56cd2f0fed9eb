"""The first divergent layer: the criterion for one, and the sentence that explains it.

The error of a layer is the quantization error that it adds, in dB relative to the energy of its output. Typical values:

- a sound INT8 layer: -25 to -45 dB;
- a sound 16-bit layer: -50 to -75 dB;
- a difficult layer, such as a matrix product of activations with outliers in a transformer: up to -10 dB;
- a layer whose scale is 10 times too small, so that it clips most of its inputs: -15 to -10 dB for the skip input of a
  residual Add, and mostly -8 to +8 dB elsewhere.

Hence there are two thresholds. An error of -10 dB or more always counts as divergent. Between -20 and -10 dB a layer
counts as divergent if its error is far above the median of the nodes with its precision in the same network.

Touches: nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from trtopt.types import LayerDrift

ALWAYS, NEVER = -10.0, -20.0
"""Errors in dB that always and never count as divergent."""

ABOVE_PEERS = 22.0
"""Distance from the median in dB.

Seven sound networks (digits, LeNet, EfficientNet-Lite0, MiniLM, PP-OCRv4's detector and recognizer, Silero) have no
divergent layer: their largest error is 19 dB above the median, at -10.3 dB. When one of their 416 scales is made 10
times too small, the layer after it is found for 414 of them, at least 24 dB above the median. One of the other two
scales does not make the network's outputs worse."""


def find(rows: Sequence[LayerDrift], between: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Return the first divergent node, empty if there is none, and a sentence that explains the result.

    Args:
        rows: the drift of each node, in graph order.
        between: for each node, the nodes before it that have no counterpart; their errors count toward it.
    """
    if not rows:
        return "", "the graphs have no tensor names in common, so their layers cannot be compared"
    thresholds = {precision: _threshold(rows, precision) for precision in {row.precision for row in rows}}
    for row in rows:
        if _turns_infinite(row):
            sentence = f"{_name(row)} produces NaN or Inf where FP32 is finite"
            return row.node, sentence + _other_causes(between.get(row.node, ()))
        if level(row.added) >= thresholds[row.precision]:
            return row.node, _sentence(row, rows) + _other_causes(between.get(row.node, ()))
    unmatched = {node for nodes in between.values() for node in nodes}
    return "", _no_divergence(rows, thresholds) + _unmatched(unmatched)


def _no_divergence(rows: Sequence[LayerDrift], thresholds: Mapping[str, float]) -> str:
    worst = max(rows, key=lambda row: row.added)
    if not worst.added:
        return "no layer adds any quantization error"
    return (
        f"no divergent layer: {_name(worst)} has the largest quantization error, {level(worst.added):.1f} dB relative "
        f"to its output, and the threshold is {thresholds[worst.precision]:.1f} dB"
    )


def _unmatched(nodes: Collection[str]) -> str:
    if not nodes:
        return ""
    if len(nodes) == 1:
        return "; 1 node has no counterpart in the FP32 graph, and its error counts toward the next node that has one"
    return (
        f"; {len(nodes)} nodes have no counterpart in the FP32 graph, and their errors count toward the next node that "
        "has one"
    )


def level(added: float) -> float:
    """Return a relative error energy in dB."""
    return 10 * math.log10(added) if added > 0 else -math.inf


def _threshold(rows: Sequence[LayerDrift], precision: str) -> float:
    """Return the error in dB from which a node of this precision counts as divergent."""
    return min(max(_median(rows, precision) + ABOVE_PEERS, NEVER), ALWAYS)


def _median(rows: Sequence[LayerDrift], precision: str) -> float:
    return statistics.median_low(level(row.added) for row in rows if row.precision == precision)


def _turns_infinite(row: LayerDrift) -> bool:
    """Return whether a value first becomes NaN or infinite here, with FP32's inputs or with those of the run."""
    return math.isinf(row.added) or (row.sqnr == -math.inf and row.sqnr_in > -math.inf)


def _sentence(row: LayerDrift, rows: Sequence[LayerDrift]) -> str:
    peers = sum(other.precision == row.precision for other in rows)
    median = ""
    if peers > 1:
        median = f" (median of the {peers} {row.precision} nodes: {_median(rows, row.precision):.1f} dB)"
    inputs = f"an SQNR of {row.sqnr_in:.1f} dB" if math.isfinite(row.sqnr_in) else "no error"
    return (
        f"{_name(row)} adds a quantization error of {level(row.added):.1f} dB relative to its output, even with exact "
        f"FP32 inputs{median}; in the whole network its inputs have {inputs} and its output has {row.sqnr:.1f} dB"
    )


def _name(row: LayerDrift) -> str:
    return f"{row.node} ({row.op}, {row.precision})"


def _other_causes(nodes: Sequence[str]) -> str:
    """Return an addition to a sentence that names nodes without a counterpart, as other possible causes."""
    if not nodes:
        return ""
    names = ", ".join(nodes[:3]) + (", ..." if len(nodes) > 3 else "")
    return f"; the cause may also be nodes before it without a counterpart in the FP32 graph: {names}"
