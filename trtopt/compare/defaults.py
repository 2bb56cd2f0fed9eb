"""The default gates: limits for each kind of output when the user has none.

Touches: nothing.
"""

from __future__ import annotations

_LEAST_DB = 8.0
"""Limit on the SQNR of the worst sample, in dB: its error has 40 % of the signal's RMS, a cosine of about 0.92."""

DEFAULTS = {
    # One point of top-1 is close to the limit of MLPerf Inference (99 % of FP32's accuracy). Few samples do not settle
    # it, but the cosine of all scores (0.98 is an SQNR of about 14 dB) and the worst sample need no minimum number.
    "scores": (("top1", 1.0), ("cosine", 0.98), ("sqnr_min", _LEAST_DB)),
    # A cosine of 0.99 rotates an embedding by 8 degrees. The cosine over all values hides a ruined sample, a ruined
    # part of small scale, and an output that no longer varies around a large mean, so each of them has its own limit.
    "values": (("cosine", 0.99), ("cosine_part", 0.99), ("r2", 0.8), ("positions", 95.0), ("sqnr_min", _LEAST_DB)),
    # Few elements of an integer output (such as token ids) may change, and few samples as a whole.
    "exact": (("equal", 99.0), ("same", 1.0)),
    # In mIoU a small class weighs as much as the background; the fraction of pixels would hide its loss. For example, a
    # text detector has an mIoU of 99.96 % in FP16, and of 98.7 % in INT8 with an output SQNR of 18.6 dB.
    "segmentation": (("miou", 98.0), ("miou_min", 60.0), ("sqnr_min", _LEAST_DB)),
    # One box in a hundred may be missed or spurious. Both need a limit: a candidate that finds boxes everywhere also
    # finds all of FP32's. Boxes match from an IoU of 0.5, which hides that all of them moved.
    "detection": (("matched", 99.0), ("extra", 1.0), ("iou", 0.8), ("lost", 0.0)),
}
"""Default gates by kind of output: (metric, limit) pairs."""

FLOORS = frozenset({"sqnr_min", "cosine_part", "r2", "miou_min", "lost"})
"""Default gates that stay beside the user's: they tell a ruined output, which no other metric excuses."""

WHERE_MEASURED = frozenset({"cosine_part", "r2", "positions", "same", "sqnr_min", "miou_min", "iou", "lost"})
"""Default gates that apply only to outputs with this metric. Any other default gate fails if its metric is missing."""
