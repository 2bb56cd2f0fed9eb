"""The metrics: units, senses of their limits, and labels in tables.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sense = Literal["drop", "at least", "at most"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: its `label` in tables, a definition in `text`, the `unit` of values and limits, a value's `format`.

    A limit is a minimum (`at least`), a maximum (`at most`), or, for a share of samples that should be 100 %, the
    largest `drop` from it in points. `range` holds the limits that make sense.
    """

    label: str
    text: str
    sense: Sense
    unit: str = ""
    format: str = ".5g"
    range: tuple[float, float] = (float("-inf"), float("inf"))


_PERCENT = (0.0, 100.0)
_POSITIVE = (0.0, float("inf"))

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
        label="top-1",
        text="top-1 agreement with FP32, or the drop of top-1 accuracy where there are labels",
        sense="drop",
        unit="%",
        format=".2f",
    ),
    "top1_agreement": Metric(
        label="top-1 agreement",
        text="share of samples on which both models choose the same class, also where there are labels",
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
    "kl": Metric(
        label="KL divergence",
        text="mean Kullback-Leibler divergence of the candidate's softmax from FP32's, in nats",
        sense="at most",
        range=_POSITIVE,
    ),
    "pixels": Metric(
        label="pixel agreement",
        text="share of pixels that have FP32's class",
        sense="at least",
        unit="%",
        format=".3f",
        range=_PERCENT,
    ),
    "miou": Metric(
        label="mIoU",
        text="intersection over union with FP32's pixels of a class, over all samples, mean over the classes",
        sense="at least",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "miou_min": Metric(
        label="mIoU, worst sample",
        text="lowest mIoU of a single sample, over the classes of at least 0.5 % of FP32's pixels in it",
        sense="at least",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "recall": Metric(
        label="recall, worst class",
        text="lowest share of FP32's decisions for a class that the candidate keeps, where the samples show a loss",
        sense="at least",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "matched": Metric(
        label="boxes found",
        text="share of FP32's boxes (score 0.3 or more) that the candidate has, in class and at an IoU of 0.5",
        sense="at least",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "extra": Metric(
        label="extra boxes",
        text="share of the candidate's boxes (score 0.3 or more) that FP32 does not have",
        sense="at most",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "iou": Metric(
        label="IoU of boxes",
        text="mean intersection over union of the boxes that both have",
        sense="at least",
        range=(0.0, 1.0),
    ),
    "score_error": Metric(
        label="error of box scores",
        text="mean absolute error of the scores of the boxes that both have",
        sense="at most",
        range=(0.0, 1.0),
    ),
    "attached": Metric(
        label="R2 of what boxes carry",
        text="lowest R2 of an output with a row per box (masks, keypoints), over the boxes that both have",
        sense="at least",
        range=(float("-inf"), 1.0),
    ),
    "lost": Metric(
        label="samples without their boxes",
        text="samples in which FP32 finds three boxes or more, and the candidate none of them",
        sense="at most",
        format=".0f",
        range=_POSITIVE,
    ),
    "positions": Metric(
        label="top-1 agreement per position",
        text="share of positions of a sequence at which both models choose the same class",
        sense="at least",
        unit="%",
        format=".2f",
        range=_PERCENT,
    ),
    "cosine": Metric(
        label="cosine",
        text="cosine similarity with FP32, of all samples taken as one vector: an empty sample weighs nothing",
        sense="at least",
        range=(-1.0, 1.0),
    ),
    "cosine_min": Metric(
        label="cosine, worst sample",
        text="lowest cosine similarity with FP32 of a single sample",
        sense="at least",
        range=(-1.0, 1.0),
    ),
    "cosine_part": Metric(
        label="cosine, worst part",
        text="lowest cosine similarity with FP32 of a group of channels whose scale differs from the others' tenfold",
        sense="at least",
        range=(-1.0, 1.0),
    ),
    "r2": Metric(
        label="R2",
        text="1 - error / error of the better of two guesses: the mean over the samples, a copy of the input",
        sense="at least",
        range=(float("-inf"), 1.0),
    ),
    "sqnr": Metric(
        label="SQNR",
        text="signal to quantization noise, 10 log10(sum ref^2 / sum (ref - cand)^2) over all samples",
        sense="at least",
        unit="dB",
        format=".2f",
    ),
    "sqnr_min": Metric(
        label="SQNR, worst sample",
        text="lowest SQNR of a single sample; a quiet sample's error is divided by a quarter of the median signal",
        sense="at least",
        unit="dB",
        format=".2f",
    ),
    "sqnr_part": Metric(
        label="SQNR, worst sample of a part",
        text="lowest SQNR of a single sample in a part (see cosine_part); the signal is at least a quarter of the mean",
        sense="at least",
        unit="dB",
        format=".2f",
    ),
    "rmse": Metric(label="RMSE", text="root of the mean squared error", sense="at most", range=_POSITIVE),
    "relative": Metric(
        label="relative error",
        text="root of the mean squared error over the root of FP32's mean square",
        sense="at most",
        range=_POSITIVE,
    ),
    "max_abs": Metric(label="max |error|", text="largest absolute error", sense="at most", range=_POSITIVE),
    "mean_abs": Metric(label="mean |error|", text="mean absolute error", sense="at most", range=_POSITIVE),
    "equal": Metric(
        label="equal elements",
        text="share of equal elements",
        sense="at least",
        unit="%",
        format=".3f",
        range=_PERCENT,
    ),
    "same": Metric(
        label="samples that agree",
        text="share of samples of which at least half of the elements are equal",
        sense="drop",
        unit="%",
        format=".2f",
    ),
    "engine": Metric(
        label="engine below its graph",
        text="SQNR that an engine loses compared with its typed graph in onnxruntime; judged wherever an engine runs",
        sense="at most",
        unit="dB",
        format=".2f",
        range=_POSITIVE,
    ),
    "nonfinite": Metric(
        label="samples with NaN or Inf",
        text="samples in which a NaN or Inf appeared",
        sense="at most",
        format=".0f",
        range=_POSITIVE,
    ),
}
"""In reading order."""
