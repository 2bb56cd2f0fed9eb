"""Matching of two sets of boxes.

Touches: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtopt.compare.measures.outputs import Floats

IOU = 0.5
"""Least intersection over union of two boxes that match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Detections of one sample: corners [k, 4] as x1, y1, x2, y2 (or y first), scores [k] and classes [k]."""

    corners: Floats
    scores: Floats
    classes: Floats

    def chosen(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Boxes:
        """Return the boxes where `keep` [k] is true, or at these indices."""
        return Boxes(corners=self.corners[keep], scores=self.scores[keep], classes=self.classes[keep])


@dataclass(frozen=True, slots=True)
class Match:
    """Two boxes that match: their indices in either set, and their intersection over union."""

    reference: int
    candidate: int
    iou: float


def matches(reference: Boxes, candidate: Boxes) -> list[Match]:
    """Return all matches: pairs of boxes of the same class, with an IoU of at least 0.5.

    The rule is COCO's for detections and ground truth (`evaluateImg` of pycocotools' cocoeval.py). Within a class, the
    candidate's boxes are taken in descending order of score, and each one is matched with the box of FP32 that it
    overlaps most among those without a match.
    """
    found = []
    for label in np.unique(reference.classes):
        truth, detected = (np.flatnonzero(boxes.classes == label) for boxes in (reference, candidate))
        detected = detected[np.argsort(-candidate.scores[detected], kind="stable")]
        overlaps = _overlaps(candidate.corners[detected], reference.corners[truth])
        free = np.ones(len(truth), np.bool_)
        for index, row in zip(detected, overlaps, strict=True):
            available = np.where(free, row, -1.0)
            best = int(available.argmax())
            if available[best] >= IOU:
                free[best] = False
                found.append(Match(int(truth[best]), int(index), float(available[best])))
    return found


def _overlaps(one: Floats, other: Floats) -> Floats:
    """Return the intersection over union [k, m] of every box of `one` [k, 4] with every box of `other` [m, 4].

    A box without an area overlaps nothing but itself.
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    union = _areas(one)[:, None] + _areas(other)[None] - shared
    ratio: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    same: Floats = (one[:, None] == other[None]).all(axis=2).astype(np.float64)
    return np.maximum(ratio, same)


def _areas(boxes: Floats) -> Floats:
    areas: Floats = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1)
    return areas
