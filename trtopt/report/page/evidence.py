"""The worst samples and the accuracy by class, of one candidate or of several side by side.

Touches: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from trtopt.report.page import words
from trtopt.types import Answer, Classification, ClassScore, Comparison, Exhibit, Report
from trtopt.verdict import comparisons

_URI = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_MOST_URI = 20_000
_MOST_SAMPLES = 8
_MOST_CANDIDATES = 8
_MOST_MATRIX = 20
"""Number of classes up to which confusions are drawn as a matrix."""

_MOST_PAIRS = 20


@dataclass(frozen=True, slots=True)
class Said:
    """Answer of one model: its name, the answer as text, the rest of it, and whether it is `right` (None: unknown).

    `changed` is true if it is another class than FP32's. `figures` are metrics of the sample, as text.
    """

    who: str
    first: str
    rest: str
    right: bool | None
    changed: bool = False
    figures: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """One output of a sample: its name, and FP32's and each candidate's answer."""

    output: str
    answers: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A sample: `image` is a data URI that was checked, or empty. `scored` is true if its answers are classes."""

    sample: str
    label: str
    image: Markup
    inputs: str
    outputs: tuple[Shown, ...]
    scored: bool


def names(report: Report) -> list[str]:
    """Return the names of the candidates."""
    return [name or "candidate" for name, _ in comparisons(report)]


@dataclass(frozen=True, slots=True)
class Row:
    """A metric of an output, and its value in each candidate as text."""

    output: str
    metric: str
    values: tuple[str, ...]


def side_by_side(report: Report) -> list[Row]:
    """Return every metric of every output, with a value per candidate; empty where it was not measured."""
    measured: dict[str, list[dict[str, str]]] = {}
    compared = comparisons(report)
    for place, (_, comparison) in enumerate(compared):
        for output in comparison.outputs:
            measured.setdefault(output.output, [{} for _ in compared])[place] = dict(words.metrics(output))
    return [
        Row(output, metric, tuple(values.get(metric, "") for values in of))
        for output, of in measured.items()
        for metric in dict.fromkeys(name for values in of for name in values)
    ]


def cards(report: Report) -> list[Card]:
    """Return the worst samples of all candidates: the worst of each, then the second worst of each, and so on."""
    compared = [(name or "candidate", comparison) for name, comparison in comparisons(report)][:_MOST_CANDIDATES]
    longest = max((len(comparison.exhibits) for _, comparison in compared), default=0)
    order = [
        comparison.exhibits[place]
        for place in range(longest)
        for _, comparison in compared
        if place < len(comparison.exhibits)
    ]
    first = {exhibit.index: exhibit for exhibit in reversed(order)}
    chosen = list(dict.fromkeys(exhibit.index for exhibit in order))[:_MOST_SAMPLES]
    return [_card(first[index], compared) for index in chosen]


def _card(exhibit: Exhibit, compared: Sequence[tuple[str, Comparison]]) -> Card:
    outputs = []
    for answer in exhibit.answers:
        theirs = [
            (name, found)
            for name, comparison in compared
            for each in comparison.exhibits
            if each.index == exhibit.index
            for found in each.answers
            if found.output == answer.output
        ]
        said = [_said("FP32", answer.fp32, answer.fp32_values, exhibit.label)]
        for name, found in theirs:
            one = _said(name, found.candidate, found.candidate_values, exhibit.label)
            changed = bool(found.fp32 and found.candidate) and found.fp32[0].index != found.candidate[0].index
            said.append(replace(one, changed=changed, figures=_figures(found)))
        outputs.append(Shown(answer.output, tuple(said)))
    sound = len(exhibit.image) <= _MOST_URI and _URI.fullmatch(exhibit.image)
    return Card(
        sample=exhibit.sample,
        label=exhibit.label,
        image=Markup(exhibit.image if sound else ""),
        inputs=exhibit.inputs,
        outputs=tuple(outputs),
        scored=any(answer.fp32 for answer in exhibit.answers),
    )


def _said(who: str, scores: Sequence[ClassScore], values: str, label: str) -> Said:
    if not scores:
        return Said(who, values, "", None)
    first, *rest = [f"{_called(each)} ({each.score:.3g})" for each in scores]
    right = None if not label else label in (scores[0].name, str(scores[0].index))
    return Said(who, first, ", ".join(rest), right)


def _called(each: ClassScore) -> str:
    return each.name or str(each.index)


def _figures(answer: Answer) -> str:
    shown = {"sqnr": ("SQNR", words.decibels), "max_abs": ("largest error", "{:.3g}".format)}
    return ", ".join(
        f"{name} {say(answer.figures[key])}" for key, (name, say) in shown.items() if key in answer.figures
    )


@dataclass(frozen=True, slots=True)
class ClassRow:
    """Accuracy of one class in percent: of FP32, and of each candidate (None: not measured)."""

    index: int
    name: str
    samples: int
    fp32: float
    candidates: tuple[float | None, ...]

    @property
    def loss(self) -> float:
        """Largest drop from FP32, in points."""
        return max((self.fp32 - share for share in self.candidates if share is not None), default=0.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two classes that are confused: by name, how often by FP32, and how often by each candidate."""

    label: str
    chosen: str
    fp32: int
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Confusion matrix of a candidate. A cell is the count, and the difference from FP32's."""

    candidate: str
    names: tuple[str, ...]
    rows: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class ByClass:
    """Accuracy by class of one output; `found` is the number of classes.

    Few classes are in order, with matrices. Of many, those with the largest losses come first, and there are pairs.
    """

    output: str
    found: int
    rows: tuple[ClassRow, ...]
    matrices: tuple[Matrix, ...]
    pairs: tuple[Pair, ...]


def by_class(report: Report) -> list[ByClass]:
    """Return the accuracy by class of every output that has labels."""
    measured: dict[str, list[Classification | None]] = {}
    compared = comparisons(report)
    for place, (_, comparison) in enumerate(compared):
        for output in comparison.outputs:
            if output.by_class is not None:
                measured.setdefault(output.output, [None] * len(compared))[place] = output.by_class
    return [_by_class(output, found, names(report)) for output, found in measured.items()]


def _by_class(output: str, found: Sequence[Classification | None], candidates: Sequence[str]) -> ByClass:
    known = [each for each in found if each is not None]
    called = {int(index): name for each in known for index, name in each.names.items() if index.isdigit()}
    called |= {row.index: row.name for each in known for row in each.classes if row.name}
    shares = [{row.index: row for row in each.classes} if each else {} for each in found]
    rows = [
        ClassRow(
            index=index,
            name=called.get(index, str(index)),
            samples=row.samples,
            fp32=100.0 * row.fp32 / max(row.samples, 1),
            candidates=tuple(
                100.0 * of[index].candidate / max(of[index].samples, 1) if index in of else None for of in shares
            ),
        )
        for index, row in sorted({index: row for of in shares for index, row in of.items()}.items())
    ]
    classes = sorted(
        {row.index for row in rows} | {i for each in known for c in each.confusions for i in (c.label, c.chosen)}
    )
    few = len(classes) <= _MOST_MATRIX and all(each.found == len(each.classes) for each in known)
    matrices = [_matrix(each, name, classes, called) for each, name in zip(found, candidates, strict=True) if each]
    return ByClass(
        output=output,
        found=max(each.found for each in known),
        rows=tuple(rows if few else sorted(rows, key=lambda row: (-row.loss, row.index))),
        matrices=tuple(matrices) if few else (),
        pairs=() if few else _pairs(found, called),
    )


def _matrix(found: Classification, candidate: str, classes: Sequence[int], called: dict[int, str]) -> Matrix:
    right = {row.index: (row.candidate, row.candidate - row.fp32) for row in found.classes}
    wrong = {(each.label, each.chosen): (each.candidate, each.candidate - each.fp32) for each in found.confusions}
    rows = tuple(tuple(right.get(i, (0, 0)) if i == j else wrong.get((i, j), (0, 0)) for j in classes) for i in classes)
    return Matrix(candidate, tuple(called.get(index, str(index)) for index in classes), rows)


def _pairs(found: Sequence[Classification | None], called: dict[int, str]) -> tuple[Pair, ...]:
    """Return the pairs of classes that the candidates confuse most often, and FP32's count of each."""
    counts = [
        {(each.label, each.chosen): each for each in one.confusions} if one else {} for one in found
    ]  # fmt: skip
    pairs = []
    for pair in dict.fromkeys(pair for of in counts for pair in of):
        any_of = next(of[pair] for of in counts if pair in of)
        label, chosen = (called.get(index, str(index)) for index in pair)
        theirs = tuple(of[pair].candidate if pair in of else 0 for of in counts)
        pairs.append(Pair(label, chosen, any_of.fp32, theirs))
    return tuple(sorted(pairs, key=lambda pair: -max(pair.candidates))[:_MOST_PAIRS])
