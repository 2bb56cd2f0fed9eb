"""Boxes around objects: which of FP32's the candidate finds again.

Boxes are the output `[n, k, 4]` of corners, with the outputs of scores, classes and their number that stand beside it
(`[k, 4]` where every sample has a number of its own), or one output `[n, k, 6]` of corners, score and class. The two
models may give different numbers of boxes.

Touches: nothing.
"""

from __future__ import annotations

import difflib
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtopt.compare.kinds import Opening
from trtopt.compare.kinds.boxes import Boxes, matches
from trtopt.compare.kinds.outputs import TOLERANCE, Array, Mask, Outputs, is_float
from trtopt.compare.kinds.worst import first_bad, worst
from trtopt.errors import ModelError
from trtopt.types import OutputDrift

TAKES = (
    "corners of boxes, [n, k, 4] or, one sample at a time, [k, 4], with the outputs of scores and labels [n, k] beside "
    "them; or corners, score and class in one, [n, k, 6]"
)
PLAIN = False

SCORE = 0.3
"""Boxes from this score on must be in the other model, too. Programs that draw detections start at 0.25 to 0.5."""

FAINT = SCORE / 2
"""The least score of a box's partner: a box at the threshold is not lost when rounding moves its score below."""

_BOXES = re.compile(r"box")
_ROLES = {
    "scores": re.compile(r"score|conf"),
    "classes": re.compile(r"class|label|categor"),
    "number": re.compile(r"num"),
}
_UNREAD = re.compile(r"mask|keypoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The outputs that hold the parts of a detection: `single` means that `boxes` holds scores and classes, too.

    `unread` have a row for each box, and are not compared: their rows are not those of the other model.
    """

    boxes: str
    single: bool
    roles: Mapping[str, str]
    unread: tuple[str, ...] = ()


class Detection:
    """Counts boxes: FP32's, the candidate's, and those that are the same."""

    def __init__(self, layout: Layout, *, asked: bool, alone: bool) -> None:
        self.layout = layout
        self._asked = asked
        self._possible = True
        # A sample that comes alone, with one row, may be anything; with more or none they are boxes.
        self._counted = not alone
        self._indices = array("q")
        # Boxes of a sample: FP32's, the candidate's, those of FP32 that the candidate has, those that only it has.
        self._reference, self._candidate = array("q"), array("q")
        self._matched, self._extra = array("q"), array("q")
        self._overlap = 0.0
        self._bad = array("q")
        self._bad_fp32 = 0

    @property
    def reads(self) -> tuple[str, ...]:
        """The outputs of scores, classes and numbers, and those that are not compared."""
        return (*self.layout.roles.values(), *self.layout.unread)

    @property
    def note(self) -> str:
        """Which outputs make up the detections, and which have no metric."""
        name, roles, unread = self.layout.boxes, self.layout.roles, self.layout.unread
        read = f"{name} is read as detections" + (f", with {', '.join(roles.values())}" if roles else "")
        return read + (f"; not compared: {', '.join(unread)}" if unread else "")

    def add(self, batch: Outputs) -> None:
        """Take one batch.

        Raises:
            ModelError: the parts do not fit together, or the user says that boxes are corners and they are not.
        """
        both = [self._samples(outputs, batch) for outputs in (batch.reference, batch.candidate)]
        for index, reference, candidate in zip(batch.indices, *both, strict=True):
            # Padding may be infinite. Boxes have no place in common, so infinities are compared by their number.
            bad_fp32 = _has_nan(reference)
            infinite_fp32, infinite = (~_finite(boxes) for boxes in (reference, candidate))
            if bad_fp32 or _has_nan(candidate) or infinite.sum() > infinite_fp32.sum():
                self._bad.append(index)
                self._bad_fp32 += bad_fp32
                continue
            reference, candidate = reference.chosen(~infinite_fp32), candidate.chosen(~infinite)
            self._check(reference)
            self._add(index, *(boxes.chosen(boxes.scores >= FAINT) for boxes in (reference, candidate)))

    def _add(self, index: int, reference: Boxes, candidate: Boxes) -> None:
        sure, own = reference.scores >= SCORE, candidate.scores >= SCORE
        pairs = matches(reference, candidate)
        for pair in pairs:  # one by one: the last bit does not depend on how samples are batched
            self._overlap += pair.iou if sure[pair.reference] else 0.0
        self._indices.append(index)
        self._reference.append(int(sure.sum()))
        self._candidate.append(int(own.sum()))
        self._matched.append(sum(bool(sure[pair.reference]) for pair in pairs))
        self._extra.append(int(own.sum()) - sum(bool(own[pair.candidate]) for pair in pairs))

    def _samples(self, outputs: Mapping[str, Array], batch: Outputs) -> list[Boxes]:
        """The boxes of one model, sample by sample, all of them."""
        name, roles, count = self.layout.boxes, self.layout.roles, len(batch.indices)
        width = 6 if self.layout.single else 4
        boxes = outputs[name]
        if boxes.ndim == 2 and count == 1:
            self._counted |= len(boxes) != 1
            boxes = boxes[None]
        if boxes.ndim != 3 or boxes.shape[0] != count or boxes.shape[2] != width:
            raise ModelError(f"output {name} holds no boxes", why=f"its shape is {list(outputs[name].shape)}")
        lead = boxes.shape[:2]
        parts = {role: outputs[other] for role, other in roles.items()}
        for role, part in parts.items():
            wanted = count if role == "number" else lead[0] * lead[1]
            if part.size != wanted:
                raise ModelError(
                    f"output {roles[role]} does not go with the boxes of {name}",
                    why=f"their shapes are {list(part.shape)} and {list(outputs[name].shape)}",
                    fix=f"Read it in another way: --kind {roles[role]}=values",
                )
        corners = boxes[..., :4].astype(np.float64)
        scores, classes = np.ones(lead), np.zeros(lead)
        if self.layout.single:
            scores, classes = boxes[..., 4].astype(np.float64), boxes[..., 5].astype(np.float64)
        if "scores" in parts:
            scores = parts["scores"].astype(np.float64).reshape(lead)
        if "classes" in parts:
            classes = parts["classes"].astype(np.float64).reshape(lead)
        number = parts["number"].reshape(count).astype(np.float64) if "number" in parts else np.full(count, lead[1])
        scores[~np.isfinite(number)] = np.nan  # which rows are boxes, nobody knows
        cuts = [(i, slice(max(int(np.nan_to_num(number[i], nan=lead[1])), 0))) for i in range(count)]
        return [Boxes(corners=corners[at], scores=scores[at], classes=classes[at]) for at in cuts]

    def _check(self, boxes: Boxes) -> None:
        """Rule out what cannot be detections, by FP32's boxes: scores beyond [0, 1], or boxes that are not corners."""
        real = boxes.chosen(boxes.scores > 0)
        corners = bool((real.corners[:, 2:] >= real.corners[:, :2]).all())
        if self._asked and not corners:
            raise ModelError(
                f"output {self.layout.boxes} cannot be read as detection",
                why="its boxes are no corners: x2 is less than x1, or y2 less than y1",
                fix="Let the model give corners (x1, y1, x2, y2), not centres and sizes",
            )
        whole = bool((real.classes == np.floor(real.classes)).all() and (real.classes >= 0).all())
        likely = bool((boxes.scores >= -1).all() and (boxes.scores <= 1 + TOLERANCE).all())  # -1 says: not a box
        self._possible &= corners and whole and likely

    def fits(self) -> bool:
        """Whether all of FP32's boxes look like boxes, and there are some."""
        return self._asked or (self._possible and self._counted and sum(self._reference) > 0)

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return the shares of boxes that have a partner in the other model."""
        reference, candidate, matched = sum(self._reference), sum(self._candidate), sum(self._matched)
        values = {}
        if reference:
            values["matched"] = 100.0 * matched / reference
        if self._indices:
            values["extra"] = 100.0 * sum(self._extra) / candidate if candidate else 0.0
        if matched:
            values["iou"] = self._overlap / matched
        values["nonfinite"] = float(len(self._bad))
        alone = [self._lost(i) + extra for i, extra in enumerate(self._extra)]
        return OutputDrift(
            output=self.layout.boxes,
            kind="detection",
            values=values,
            counts={"samples": len(self._indices), "boxes": reference},
            first_bad=first_bad(self._bad, self._bad_fp32, ids),
            worst=worst(alone, self._indices, ids, self._story),
        )

    def _lost(self, place: int) -> int:
        return self._reference[place] - self._matched[place]

    def _story(self, place: int) -> str:
        return f"{self._lost(place)} of {self._reference[place]} boxes lost, {self._extra[place]} extra"


def reader(opening: Opening) -> Detection | None:
    """Return a reader of boxes.

    An output is taken for boxes where its name has `box` in it and an output of scores fits it, or where the values of
    a `[n, k, 6]` can be nothing else.
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
    roles = _roles(opening, boxes.shape[:-1])
    if not (opening.asked or "scores" in roles):
        return None
    unread = tuple(
        other
        for other in opening.beside
        if other not in roles.values()
        and _UNREAD.search(other.lower())
        and opening.first.reference[other].shape[: boxes.ndim - 1] == boxes.shape[:-1]
    )
    layout = Layout(boxes=opening.name, single=False, roles=roles, unread=unread)
    return Detection(layout, asked=opening.asked, alone=alone)


def _roles(opening: Opening, lead: tuple[int, ...]) -> dict[str, str]:
    """The outputs beside the boxes that their names and shapes fit; of several, the one with the most similar name."""
    found: dict[str, str] = {}
    for role, pattern in _ROLES.items():
        fitting = [
            other
            for other in opening.beside
            if other not in found.values()
            and pattern.search(other.lower())
            and _fits(opening.first.reference[other], role, lead, len(opening.first.indices))
        ]
        if fitting:
            found[role] = max(fitting, key=lambda other: difflib.SequenceMatcher(None, other, opening.name).ratio())
    return found


def _fits(part: Array, role: str, lead: tuple[int, ...], count: int) -> bool:
    if role == "number":
        return part.shape in ((count,), (count, 1)) or (count == 1 and not part.shape)
    return part.shape in (lead, (*lead, 1)) and (role == "classes" or is_float(part))


def _finite(boxes: Boxes) -> Mask:
    """Return which boxes are finite in all their numbers."""
    finite: Mask = np.isfinite(boxes.corners).all(axis=1) & np.isfinite(boxes.scores) & np.isfinite(boxes.classes)
    return finite


def _has_nan(boxes: Boxes) -> bool:
    return any(bool(np.isnan(part).any()) for part in (boxes.corners, boxes.scores, boxes.classes))
