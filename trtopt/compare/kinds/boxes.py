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


def matches(reference: Boxes, candidate: Boxes) -> list[float]:
    """The IoU of every pair of boxes that are the same: of one class, with an IoU of at least 0.5.

    As COCO matches detections with the truth (`evaluateImg` of pycocotools' cocoeval.py): class by class, the
    candidate's boxes in the order of their scores, the highest first, each take the box of FP32 that they overlap most,
    of those that are not taken yet.
    """
    found = []
    for each in np.unique(reference.classes):
        truth = reference.corners[reference.classes == each]
        own = candidate.chosen(candidate.classes == each)
        order = np.argsort(-own.scores, kind="stable")
        free = np.ones(len(truth), np.bool_)
        for overlaps in _overlaps(own.corners[order], truth):
            open_ = np.where(free, overlaps, -1.0)
            best = int(open_.argmax())
            if open_[best] >= IOU:
                free[best] = False
                found.append(float(open_[best]))
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
