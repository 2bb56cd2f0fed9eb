"""The default gates: limits for each kind of output when the user has none.

Touches: nothing.
"""

from __future__ import annotations

_RECALL = ("recall", 80.0)
"""Limit on the share of FP32's decisions for a class that the candidate keeps. In INT8, two trained classifiers, a text
detector and a text recognizer keep 95 % or more of every class that is frequent enough to tell."""

_LEAST_DB = 8.0
"""Limit on the SQNR of the worst sample, in dB: its error has 40 % of the signal's RMS, a cosine of about 0.92."""

DEFAULTS = {
    # One point of top-1 is close to the limit of MLPerf Inference (99 % of FP32's accuracy). Few samples do not settle
    # it, but the cosine of all scores (0.98 is an SQNR of about 14 dB) and the worst sample need no minimum number.
    "scores": (("top1", 1.0), ("cosine", 0.98), _RECALL, ("sqnr_min", _LEAST_DB)),
    # A cosine of 0.99 rotates an embedding by 8 degrees. The cosine over all values hides a ruined sample, a ruined
    # part of small scale, and an output that no longer varies around a large mean, so each of them has its own limit.
    # A sample without its class scores has an SQNR of 0 dB in that part, and 3 dB without half of their energy.
    "values": (
        ("cosine", 0.99),
        ("cosine_part", 0.99),
        ("r2", 0.8),
        ("positions", 95.0),
        _RECALL,
        ("sqnr_min", _LEAST_DB),
        ("sqnr_part", 3.0),
    ),
    # Few elements of an integer output (such as token ids) may change, and few samples as a whole. Most elements may be
    # padding or background, so each value has its own limit.
    "exact": (("equal", 99.0), ("same", 1.0), _RECALL),
    # In mIoU a small class weighs as much as the background; the fraction of pixels would hide its loss. For example, a
    # text detector has an mIoU of 99.96 % in FP16, and of 98.7 % in INT8 with an output SQNR of 18.6 dB.
    "segmentation": (("miou", 98.0), ("miou_min", 60.0), _RECALL, ("sqnr_min", _LEAST_DB)),
    # One box in a hundred may be missed or spurious. Both need a limit: a candidate that finds boxes everywhere also
    # finds all of FP32's. Boxes match from an IoU of 0.5, which hides that all of them moved, and scores only have to
    # stay above a threshold, so the boxes that match have limits of their own.
    "detection": (
        ("matched", 99.0),
        ("extra", 1.0),
        ("iou", 0.8),
        ("score_error", 0.1),
        ("attached", 0.5),
        _RECALL,
        ("lost", 0.0),
    ),
}
"""Default gates by kind of output: (metric, limit) pairs."""

FLOORS = frozenset({"sqnr_min", "sqnr_part", "cosine_part", "r2", "recall", "miou_min", "attached", "lost"})
"""Default gates that stay beside the user's: they tell a ruined output, which no other metric excuses."""

WHERE_MEASURED = FLOORS | {"positions", "same", "iou", "score_error"}
"""Default gates that apply only to outputs with this metric. Any other default gate fails if its metric is missing."""
