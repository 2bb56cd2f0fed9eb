"""Charts of `report.html` as inline SVG, each drawn from its own part of a report.

Each describes its content in words (`aria-label`), and no information depends on colour alone. Touches: nothing.

Each says in words (`aria-label`) what it shows, and no meaning rests on colour alone. Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

from markupsafe import Markup

from trtopt.report.page import words
from trtopt.report.page.svg import (
    BOTTOM,
    LEFT,
    NAME,
    RIGHT,
    TOP,
    Axis,
    Scale,
    add,
    clipped,
    drawable,
    drawing,
    level,
    linear,
    logarithmic,
    note,
    path,
    pixels,
    rendered,
    x_axis,
    y_axis,
)
from trtopt.types import CalibratedTensor, GateResult, Spread
from trtopt.wording import counted

_HALF, _THIRD = 460, 340
_MAX_BARS = 80
_NEAR = 150


@dataclass(frozen=True, slots=True)
class Series:
    """Line of a chart: its name and its points."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """Candidate in the scatter plot of size and drift."""

    name: str
    size: float
    sqnr: float
    best: bool


def interval(gate: GateResult) -> Markup:
    """Draw a gate's value, its confidence bounds and its limit; return empty markup if there are no bounds."""
    if not all(map(drawable, (gate.low, gate.high, gate.value, gate.limit))):
        return Markup()
    low, high = min(gate.low, gate.limit, gate.value), max(gate.high, gate.limit, gate.value)
    scale = Scale(low, high, 8, 132)
    said = [words.number(gate.metric, value) for value in (gate.value, gate.low, gate.high, gate.limit)]
    chart = drawing(140, 24, "{}, between {} and {}; limit {}".format(*said), name="interval")
    add(chart, "line", {"class": "axis", "x1": 2, "x2": 138, "y1": 12, "y2": 12})
    width = max(scale.at(gate.high) - scale.at(gate.low), 2)
    add(chart, "rect", {"class": "bounds", "x": scale.at(gate.low), "y": 8, "width": width, "height": 8, "rx": 2})
    limit = scale.at(gate.limit)
    add(chart, "line", {"class": "limit", "x1": limit, "x2": limit, "y1": 1, "y2": 23})
    add(chart, "circle", {"class": "value", "cx": scale.at(gate.value), "cy": 12, "r": 4})
    return rendered(chart)


def samples(spread: Spread) -> Markup:
    """Draw a histogram of SQNR over samples."""
    total = sum(spread.counts)
    low, high = spread.edges[0], spread.edges[-1]
    chart = drawing(_HALF, 240, f"Histogram of the SQNR of {counted(total, 'sample')}, from {low:.4g} to {high:.4g} dB")
    bars = _rebinned(spread)
    bottom = 240 - BOTTOM
    across = replace(linear(low, high, LEFT, _HALF - RIGHT), title="SQNR per sample, dB (left is worse)")
    up = replace(linear(0, max(max(bars.counts), 1), bottom, TOP), title="samples")
    y_axis(chart, _whole(up), LEFT, _HALF - RIGHT)
    _bars(chart, bars, across.scale, up.scale)
    x_axis(chart, across, bottom)
    return rendered(chart)


def calibration(tensor: CalibratedTensor) -> Markup:
    """Draw a histogram of magnitudes with the threshold beyond which values are clipped."""
    bottom, bars = 190 - BOTTOM, _rebinned(tensor.spread)
    label = (
        f"Histogram of the magnitudes of {clipped(tensor.tensor, NAME)}, up to {tensor.largest:.4g}; "
        f"threshold {tensor.amax:.4g}, {100 * tensor.clipped:.3g} % of the values are clipped"
    )
    chart = drawing(_THIRD, 190, label)
    across = replace(linear(0, max(bars.edges[-1], tensor.amax), LEFT, _THIRD - RIGHT), title="magnitude")
    up = replace(logarithmic(0.5, max(max(bars.counts), 1), bottom, TOP + 14), title="values")
    y_axis(chart, up, LEFT, _THIRD - RIGHT)
    at = across.scale.at(tensor.amax)
    top, width = TOP + 14, _THIRD - RIGHT - at
    add(chart, "rect", {"class": "beyond", "x": at, "y": top, "width": width, "height": bottom - top})
    _bars(chart, bars, across.scale, up.scale)
    add(chart, "line", {"class": "limit", "x1": at, "x2": at, "y1": TOP + 2, "y2": bottom})
    note(chart, f"threshold {tensor.amax:.4g}", at, TOP + 6, _THIRD)
    x_axis(chart, across, bottom)
    return rendered(chart)


def scatter(points: Sequence[Point]) -> Markup:
    """Draw size against drift; a candidate is best if no other is both smaller and higher in SQNR."""
    said = "; ".join(
        f"{clipped(point.name, 24)} {words.size(int(point.size))}, {words.number('sqnr', point.sqnr)}"
        + (", Pareto-best" if point.best else "")
        for point in points
    )
    chart = drawing(640, 320, f"Size and drift of {len(points)} candidates: {said}", name="chart middle")
    finite = [point.sqnr for point in points if drawable(point.sqnr)] or [0.0]
    unit, name = (1e6, "MB") if max(point.size for point in points) >= 1e6 else (1e3, "kB")
    right, bottom = 640 - RIGHT, 320 - BOTTOM
    across = replace(linear(0, max(point.size for point in points) / unit, LEFT, right), title=f"size, {name}")
    up = replace(linear(min(0.0, *finite), max(finite), bottom, TOP + 8), title="SQNR of the worst output, dB")
    y_axis(chart, up, LEFT, right)
    x_axis(chart, across, bottom)
    placed = [(across.scale.at(point.size / unit), up.scale.at(level(point.sqnr)), point) for point in points]
    best = sorted((x, y) for x, y, point in placed if point.best)
    if len(best) > 1:
        add(chart, "path", {"class": "front", "d": path(best)})
    lines: list[tuple[float, float]] = []
    for x, y, point in sorted(placed, key=lambda each: each[1]):
        add(chart, "circle", {"class": "best" if point.best else "other", "cx": x, "cy": y, "r": 5})
        near = [line for other, line in lines if abs(other - x) < _NEAR]
        line = max([y + 4, *(other + 15 for other in near)])
        lines.append((x, line))
        left = x > right * 0.7
        name = ("★ " if point.best else "") + clipped(point.name, 24)
        beside, anchor = (x - 11, "end") if left else (x + 11, "start")
        add(chart, "text", {"class": "label", "x": beside, "y": line, "text-anchor": anchor}, name)
    return rendered(chart)


def curves(series: Sequence[Series], what: str, unit: str) -> Markup:
    """Draw a measurement over batch size, one line per series, distinguished by colour and dashes."""
    points = [point for each in series for point in each.points]
    chart = drawing(_HALF, 280, f"{what} over batch size for {', '.join(clipped(each.name, 24) for each in series)}")
    batches = sorted({x for x, _ in points})
    bottom, right = 280 - BOTTOM, _HALF - RIGHT
    low, high = batches[0] / 1.2, batches[-1] * 1.2
    shown = batches if len(batches) <= 8 else batches[:: math.ceil(len(batches) / 8)]
    across = Axis(Scale(low, high, LEFT, right, log=True), shown, [f"{batch:g}" for batch in shown], "batch size")
    values = [y for _, y in points if drawable(y) and y > 1e-100] or [1.0]
    up = replace(logarithmic(min(values), max(values), bottom, TOP), title=f"{what}, {unit}")
    y_axis(chart, up, LEFT, right)
    x_axis(chart, across, bottom)
    for place, each in enumerate(series):
        drawn = [(across.scale.at(x), up.scale.at(y)) for x, y in each.points if drawable(y) and y > 1e-100]
        if not drawn:
            continue
        add(chart, "path", {"class": f"line s{place % 4}", "d": path(drawn)})
        for x, y in drawn:
            add(chart, "circle", {"class": f"dot s{place % 4}", "cx": x, "cy": y, "r": 3.5})
    return rendered(chart)


def _bars(chart: Element, bars: Spread, across: Scale, up: Scale) -> None:
    boxes = []
    for left, right, count in zip(bars.edges, bars.edges[1:], bars.counts, strict=False):
        if count:
            start, width = across.at(left), across.at(right) - across.at(left)
            width = max(width - 1 if width > 5 else width, 1)
            top = up.at(count)
            boxes.append(f"M{pixels(start)} {pixels(up.start)}V{pixels(top)}h{pixels(width)}V{pixels(up.start)}z")
    add(chart, "path", {"class": "bar", "d": "".join(boxes)})


def _rebinned(spread: Spread) -> Spread:
    """Merge neighbouring bins until there are at most `_MAX_BARS`."""
    step = math.ceil(len(spread.counts) / _MAX_BARS)
    starts = range(0, len(spread.counts), step)
    counts = tuple(sum(spread.counts[start : start + step]) for start in starts)
    return Spread(edges=(*(spread.edges[start] for start in starts), spread.edges[-1]), counts=counts)


def _whole(axis: Axis) -> Axis:
    """Return the axis with integer ticks only, for counts of samples."""
    kept = [(tick, label) for tick, label in zip(axis.ticks, axis.labels, strict=True) if tick == int(tick)]
    return replace(axis, ticks=[tick for tick, _ in kept], labels=[label for _, label in kept])
