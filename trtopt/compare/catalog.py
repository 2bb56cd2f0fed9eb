"""The metrics: their units, which side of a limit is the good one, and what they are called in tables.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sense = Literal["drop", "at least", "at most"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: `label` in tables, `text` what it is, `unit` of its values and limits, `format` of a value.

    A limit is the least value that is good enough (`at least`), the largest (`at most`), or for a share of samples that
    should be 100 % the largest `drop` from it, in points. `range` are the values that a limit can mean.
    """

    label: str
    text: str
    sense: Sense
    unit: str = ""
    format: str = ".5g"
    range: tuple[float, float] = (float("-inf"), float("inf"))


_PERCENT = (0.0, 100.0)

METRICS = {
    "accuracy_fp32": Metric(
        label="accuracy, FP32",
        text="top-1 accuracy of FP32",
        sense="at least",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "accuracy": Metric(
        label="accuracy, candidate",
        text="top-1 accuracy of the candidate",
        sense="at least",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "top1": Metric(
        label="top-1 agreement",
        text="top-1 agreement with FP32, or the drop of top-1 accuracy where there are labels",
        sense="drop",
        unit="%",
        format=".2f",
    ),
    "top5": Metric(
        label="top-5 agreement",
        text="share of samples whose FP32 top-1 class is among the candidate's five best",
        sense="drop",
        unit="%",
        format=".2f",
    ),
    "cosine": Metric(
        label="cosine",
        text="cosine similarity with FP32, of all samples taken as one vector: an empty sample weighs nothing",
        sense="at least",
        range=(-1.0, 1.0),
    ),
    "sqnr": Metric(
        label="SQNR",
        text="signal to quantization noise, 10 log10(sum ref^2 / sum (ref - cand)^2) over all samples",
        sense="at least",
        unit="dB",
        format=".2f",
    ),
    "rmse": Metric(label="RMSE", text="root of the mean squared error", sense="at most", range=(0.0, float("inf"))),
    "max_abs": Metric(label="max |error|", text="largest absolute error", sense="at most", range=(0.0, float("inf"))),
    "mean_abs": Metric(label="mean |error|", text="mean absolute error", sense="at most", range=(0.0, float("inf"))),
    "equal": Metric(
        label="equal elements",
        text="share of equal elements",
        sense="at least",
        unit="%",
        format=".3f",
        range=_PERCENT,
    ),
    "nonfinite": Metric(
        label="samples with NaN or Inf",
        text="samples in which a NaN or Inf appeared",
        sense="at most",
        format=".0f",
        range=(0.0, float("inf")),
    ),
}
"""In reading order."""
