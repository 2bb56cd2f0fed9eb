"""Object detection: the boxes of FP32 that the candidate also finds.

Detections are either an output `[n, k, 4]` of corners, with outputs of scores, classes and the number of boxes beside
it, or a single output `[n, k, 6]` of corners, score and class. A sample that is fed alone may have `[k, 4]`. The two
models may return different numbers of boxes.

Touches: nothing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence

import numpy as np

from trtopt.compare.kinds import Opening
from trtopt.compare.measures.attached import Attached
from trtopt.compare.measures.boxes import Boxes, Match, matches
from trtopt.compare.measures.decisions import Classes, Decisions
from trtopt.compare.measures.layout import Layout, layout
from trtopt.compare.measures.outputs import TOLERANCE, Array, Floats, Mask, Outputs, is_float
from trtopt.compare.measures.worst import first_bad, suspects, worst
from trtopt.errors import ModelError
from trtopt.types import OutputDrift

TAKES = (
    "corners of boxes, [n, k, 4] or, one sample at a time, [k, 4], with the outputs of scores and labels [n, k] beside "
    "them; or corners, score and class in one, [n, k, 6]"
)
PLAIN = False
METRICS = ("matched", "extra", "recall", "iou", "score_error", "attached", "lost", "nonfinite")

SCORE = 0.3
"""Least score of a box that must have a match in the other model. Applications usually draw boxes from 0.25 to 0.5."""

FAINT = SCORE / 2
"""Least score of a matching box: a box at the threshold is not missed because rounding lowers its score a little."""

_BOXES = re.compile(r"box")
_MAX_CLASSES = 1 << 16
"""Limit on the class of a box; larger numbers are counted as one class."""

_SEVERAL = 3
"""Boxes of a sample that are not all missed by chance."""


class Detection:
    """Counts of FP32's boxes, the candidate's boxes, and their matches."""

    def __init__(self, layout: Layout, *, asked: bool, alone: bool) -> None:
        self.layout = layout
        self._asked = asked
        self._possible = True
        # A sample that is fed alone and has one row may be anything; another number of rows shows that rows are boxes.
        self._counted = not alone
        self._indices = array("q")
        # Number of boxes per sample: FP32's, the candidate's, FP32's with a match, the candidate's without a match.
        self._reference, self._candidate = array("q"), array("q")
        self._matched, self._extra = array("q"), array("q")
        # Sums over FP32's boxes with a match: of the IoU, and of the error of the score.
        self._overlap = self._score_error = 0.0
        self._decisions = Decisions()
        self._attached = Attached(layout.attached)
        self._bad = array("q")
        self._bad_fp32 = 0

    @property
    def reads(self) -> tuple[str, ...]:
        """Outputs of scores, classes and numbers of boxes, and those with a row per box."""
        return (*self.layout.roles.values(), *self.layout.attached)

    @property
    def note(self) -> str:
        """Outputs that make up the detections, and outputs that are compared where boxes match."""
        name, roles, attached = self.layout.boxes, self.layout.roles, self.layout.attached
        read = f"{name} is read as detections" + (f", with {', '.join(roles.values())}" if roles else "")
        return read + (f"; compared where boxes match: {', '.join(attached)}" if attached else "")

    def add(self, batch: Outputs) -> None:
        """Add one batch.

        Raises:
            ModelError: the outputs do not fit together, or the user named this kind and the boxes are not corners.
        """
        both = [self._samples(outputs, batch) for outputs in (batch.reference, batch.candidate)]
        for i, (index, reference, candidate) in enumerate(zip(batch.indices, *both, strict=True)):
            # Padding may be infinite. Row i is not the same box in both models, so only the numbers of infinities are
            # compared.
            bad_fp32 = _has_nan(reference)
            infinite_fp32, infinite = (~_finite(boxes) for boxes in (reference, candidate))
            if bad_fp32 or _has_nan(candidate) or infinite.sum() > infinite_fp32.sum():
                self._bad.append(index)
                self._bad_fp32 += bad_fp32
                continue
            self._check(reference.chosen(~infinite_fp32))
            # Rows of the boxes that may match.
            rows_fp32, rows = (
                np.flatnonzero(~bad & (boxes.scores >= FAINT))
                for boxes, bad in ((reference, infinite_fp32), (candidate, infinite))
            )
            found = self._add(index, reference.chosen(rows_fp32), candidate.chosen(rows))
            for name in self.layout.attached:
                x, y = (self._rows(name, i, outputs) for outputs in (batch.reference, batch.candidate))
                for pair in found:
                    row = rows_fp32[pair.reference]
                    self._attached.add(name, x[row], y[rows[pair.candidate]], reference.corners[row])

    def _rows(self, name: str, index: int, outputs: Mapping[str, Array]) -> Array:
        """Return an output's rows of one sample, which are those of its boxes."""
        boxes, rows = outputs[self.layout.boxes], outputs[name]
        lead = boxes.ndim - 1
        if rows.shape[:lead] != boxes.shape[:lead]:
            raise _unfitting(name, rows, self.layout.boxes, boxes)
        return np.asarray(rows[index] if lead == 2 else rows)

    def _add(self, index: int, reference: Boxes, candidate: Boxes) -> list[Match]:
        """Add the finite boxes of one sample with a score of at least `FAINT`.

        Return the matches of FP32's boxes that have at least the score `SCORE`.
        """
        sure_fp32, sure = reference.scores >= SCORE, candidate.scores >= SCORE
        pairs = matches(reference, candidate)
        found = [pair for pair in pairs if sure_fp32[pair.reference]]
        matched = np.zeros(len(sure_fp32), np.bool_)
        for pair in found:  # added one by one, so that the last bit does not depend on the batch
            matched[pair.reference] = True
            self._overlap += pair.iou
            self._score_error += abs(float(reference.scores[pair.reference] - candidate.scores[pair.candidate]))
        self._decisions.add(_numbered(reference.classes[sure_fp32]), matched[sure_fp32])
        self._indices.append(index)
        self._reference.append(int(sure_fp32.sum()))
        self._candidate.append(int(sure.sum()))
        self._matched.append(len(found))
        self._extra.append(int(sure.sum()) - sum(bool(sure[pair.candidate]) for pair in pairs))
        return found

    def _samples(self, outputs: Mapping[str, Array], batch: Outputs) -> list[Boxes]:
        """Return all boxes of one model, per sample."""
        name, roles, count = self.layout.boxes, self.layout.roles, len(batch.indices)
        width = 6 if self.layout.single else 4
        boxes = outputs[name]
        if boxes.ndim == 2 and count == 1:
            self._counted |= len(boxes) != 1
            boxes = boxes[None]
        if boxes.ndim != 3 or boxes.shape[0] != count or boxes.shape[2] != width:
            raise ModelError(f"output {name} does not contain boxes", why=f"its shape is {list(outputs[name].shape)}")
        lead = boxes.shape[:2]
        parts = {role: outputs[other] for role, other in roles.items()}
        for role, part in parts.items():
            wanted = count if role == "number" else lead[0] * lead[1]
            if part.size != wanted:
                raise _unfitting(roles[role], part, name, outputs[name])
        corners = boxes[..., :4].astype(np.float64)
        scores, classes = np.ones(lead), np.zeros(lead)
        if self.layout.single:
            scores, classes = boxes[..., 4].astype(np.float64), boxes[..., 5].astype(np.float64)
        if "scores" in parts:
            scores = parts["scores"].astype(np.float64).reshape(lead)
        if "classes" in parts:
            classes = parts["classes"].astype(np.float64).reshape(lead)
        number = parts["number"].reshape(count).astype(np.float64) if "number" in parts else np.full(count, lead[1])
        scores[~np.isfinite(number)] = np.nan  # it is unknown which rows are boxes, so the sample counts as bad
        samples = []
        for i in range(count):
            end = max(int(np.nan_to_num(number[i], nan=lead[1])), 0)
            samples.append(Boxes(corners=corners[i, :end], scores=scores[i, :end], classes=classes[i, :end]))
        return samples

    def _check(self, boxes: Boxes) -> None:
        """Check that FP32's boxes can be detections: ordered corners, integers as classes, scores in [0, 1].

        Raises:
            ModelError: the user named this kind, and the boxes are not corners.
        """
        real = boxes.chosen(boxes.scores > 0)
        corners = bool((real.corners[:, 2:] >= real.corners[:, :2]).all())
        if self._asked and not corners:
            raise ModelError(
                f"output {self.layout.boxes} cannot be read as detection",
                why="its boxes are not corners: x2 is less than x1, or y2 less than y1",
                fix="Export a model with corners (x1, y1, x2, y2) instead of centres and sizes",
            )
        indices = bool((real.classes == np.floor(real.classes)).all() and (real.classes >= 0).all())
        # Some detectors mark padding by a score of -1.
        likely = bool((boxes.scores >= -1).all() and (boxes.scores <= 1 + TOLERANCE).all())
        self._possible &= corners and indices and likely

    def fits(self) -> bool:
        """Return whether FP32 found boxes, and all of them look like boxes."""
        return self._asked or (self._possible and self._counted and sum(self._reference) > 0)

    def suspects(self, count: int) -> set[int]:
        """Return the indices of the samples with the most missed and extra boxes."""
        reference, matched, extra = (np.array(n, np.float64) for n in (self._reference, self._matched, self._extra))
        return suspects(reference - matched + extra, self._indices, count)

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the percentages of matched and of extra boxes, and how well matches agree."""
        reference, candidate, matched = sum(self._reference), sum(self._candidate), sum(self._matched)
        values = {}
        if reference:
            values["matched"] = 100.0 * matched / reference
            values |= self._decisions.values()
        if self._indices:
            values["extra"] = 100.0 * sum(self._extra) / candidate if candidate else 0.0
        if matched:
            values["iou"] = self._overlap / matched
            values["score_error"] = self._score_error / matched
            values |= self._attached.values()
        if self._indices:
            pairs = zip(self._reference, self._matched, strict=True)
            values["lost"] = float(sum(boxes >= _SEVERAL and not found for boxes, found in pairs))
        values["nonfinite"] = float(len(self._bad))
        unmatched = [self._missed(i) + extra for i, extra in enumerate(self._extra)]
        return OutputDrift(
            output=self.layout.boxes,
            kind="detection",
            values=values,
            counts={"samples": len(self._indices), "boxes": reference} | self._decisions.counts(),
            first_bad=first_bad(self._bad, self._bad_fp32, ids),
            worst=worst(unmatched, self._indices, ids, self._note),
        )

    def _missed(self, index: int) -> int:
        """Return the number of FP32's boxes without a match in one sample."""
        return self._reference[index] - self._matched[index]

    def _note(self, index: int) -> str:
        """Return a note on one sample."""
        return f"{self._missed(index)} of {self._reference[index]} boxes missed, {self._extra[index]} extra"


def reader(opening: Opening) -> Detection | None:
    """Return a reader of boxes, or None for an output that is not one of boxes.

    An output `[n, k, 4]` is read as boxes if its name contains `box` and an output of scores fits it. An output
    `[n, k, 6]` is read as boxes if all of its values allow it.
    """
    boxes, count = opening.first.reference[opening.name], len(opening.first.indices)
    alone = boxes.ndim == 2 and count == 1
    if not (alone or (boxes.ndim == 3 and len(boxes) == count)) or not is_float(boxes):
        return None
    if boxes.shape[-1] == 6:
        return Detection(Layout(boxes=opening.name, single=True, roles={}), asked=opening.asked, alone=alone)
    named = _BOXES.search(opening.name.lower()) is not None
    if boxes.shape[-1] != 4 or not (named or opening.asked):
        return None
    found = layout(opening.name, opening.first.reference, opening.beside, count)
    if not (opening.asked or "scores" in found.roles):
        return None
    return Detection(found, asked=opening.asked, alone=alone)


def _finite(boxes: Boxes) -> Mask:
    """Return, per box, whether all of its numbers are finite."""
    finite: Mask = np.isfinite(boxes.corners).all(axis=1) & np.isfinite(boxes.scores) & np.isfinite(boxes.classes)
    return finite


def _has_nan(boxes: Boxes) -> bool:
    return any(bool(np.isnan(part).any()) for part in (boxes.corners, boxes.scores, boxes.classes))


def _unfitting(name: str, output: Array, boxes: str, corners: Array) -> ModelError:
    return ModelError(
        f"output {name} does not fit the boxes of {boxes}",
        why=f"their shapes are {list(output.shape)} and {list(corners.shape)}",
        fix=f"Read it as another kind: --kind {name}=values",
    )


def _numbered(classes: Floats) -> Classes:
    """Return the classes as integers from 0, as they are in the output of a detector."""
    return np.clip(classes, 0, _MAX_CLASSES).astype(np.intp)
