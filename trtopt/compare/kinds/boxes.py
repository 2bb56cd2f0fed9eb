"""Which of two sets of boxes are the same.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.compare.kinds.outputs import Floats

IOU = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Detections of one sample: corners [k, 4] (x1, y1, x2, y2, or y first), scores [k], and classes [k]."""

    corners: Floats
    scores: Floats
    classes: Floats

    def chosen(self, keep: npt.NDArray[np.bool_]) -> Boxes:
        """Those where `keep` is true."""
        return Boxes(corners=self.corners[keep], scores=self.scores[keep], classes=self.classes[keep])


@dataclass(frozen=True, slots=True)
class Match:
    """Two boxes that are the same: their places in either set, and their intersection over union."""

    reference: int
    candidate: int
    iou: float


def matches(reference: Boxes, candidate: Boxes) -> list[Match]:
    """Every pair of boxes that are the same: of one class, with an IoU of at least 0.5.

    As COCO matches detections with the truth (`evaluateImg` of pycocotools' cocoeval.py): class by class, the
    candidate's boxes in the order of their scores, the highest first, each take the box of FP32 that they overlap most,
    of those that are not taken yet.
    """
    found = []
    for each in np.unique(reference.classes):
        truth, own = (np.flatnonzero(boxes.classes == each) for boxes in (reference, candidate))
        own = own[np.argsort(-candidate.scores[own], kind="stable")]
        free = np.ones(len(truth), np.bool_)
        for place, overlaps in zip(own, _overlaps(candidate.corners[own], reference.corners[truth]), strict=True):
            left = np.where(free, overlaps, -1.0)
            best = int(left.argmax())
            if left[best] >= IOU:
                free[best] = False
                found.append(Match(int(truth[best]), int(place), float(left[best])))
    return found


def _overlaps(one: Floats, other: Floats) -> Floats:
    """Intersection over union of every box of `one` [k, 4] with every box of `other` [m, 4]: [k, m]; 0 for a box
    without an area.
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    union = _areas(one)[:, None] + _areas(other)[None] - shared
    found: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def _areas(boxes: Floats) -> Floats:
    areas: Floats = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    return areas
