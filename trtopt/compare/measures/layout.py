"""The outputs that make up the detections of a model, found by their names and shapes.

Touches: nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtopt.compare.measures.outputs import Array, is_float

_ROLES = {
    "scores": re.compile(r"score|conf"),
    "classes": re.compile(r"class|label|categor"),
    "number": re.compile(r"num.*(det|box|obj)|valid|^num$"),
}
_ATTACHED = re.compile(r"mask|keypoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The outputs that make up the detections.

    Attributes:
        boxes: the output with the corners.
        single: true if that output also contains scores and classes.
        roles: the outputs by role: `scores`, `classes`, `number`.
        attached: outputs with one row per box, such as masks.
    """

    boxes: str
    single: bool
    roles: Mapping[str, str]
    attached: tuple[str, ...] = ()


def layout(boxes: str, outputs: Mapping[str, Array], beside: Sequence[str], count: int) -> Layout:
    """Return the layout of the boxes in one output, [n, k, 4] or [k, 4], and the outputs beside it.

    Args:
        boxes: the name of the output with the corners.
        outputs: the outputs of a batch.
        beside: the names of those that may belong to the boxes.
        count: the number of samples in the batch.
    """
    lead = outputs[boxes].shape[:-1]
    roles: dict[str, str] = {}
    for role, pattern in _ROLES.items():
        fitting = [
            other
            for other in beside
            if other not in roles.values()
            and pattern.search(other.lower())
            and _fits(outputs[other], role, lead, count)
        ]
        if fitting:  # among several, the one that is named most like the boxes
            roles[role] = max(fitting, key=lambda other: difflib.SequenceMatcher(None, other, boxes).ratio())
    attached = tuple(
        other
        for other in beside
        if other not in roles.values()
        and _ATTACHED.search(other.lower())
        and outputs[other].shape[: len(lead)] == lead
        and (is_float(outputs[other]) or outputs[other].dtype.kind in "iub")
    )
    return Layout(boxes=boxes, single=False, roles=roles, attached=attached)


def _fits(part: Array, role: str, lead: tuple[int, ...], count: int) -> bool:
    """Return whether the shape of an output allows the role."""
    if role == "number":
        return part.shape in ((count,), (count, 1)) or (count == 1 and not part.shape)
    return part.shape in (lead, (*lead, 1)) and (role == "classes" or is_float(part))
