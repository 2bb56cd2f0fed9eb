"""Charts of `report.html` along the graph: drift layer by layer, and the precision of each node.

Each describes its content in words (`aria-label`). Precisions differ in shape or place as well as in colour.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element

from markupsafe import Markup

from trtopt.report.page import words
from trtopt.report.page.svg import (
    BOTTOM,
    LEFT,
    NAME,
    RIGHT,
    Axis,
    Scale,
    add,
    clipped,
    drawable,
    drawing,
    level,
    linear,
    note,
    path,
    pixels,
    rendered,
    x_axis,
    y_axis,
)
from trtopt.types import Decision, LayerDrift, Layers
from trtopt.wording import counted

PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int8")
"""Precisions that have their own colour and shape, the highest first."""

MAX_DOTS = 300
"""Largest number of layers that are drawn as single dots."""

_WIDTH = 960
_MAX_LANES = 8


def swatch(precision: str) -> Markup:
    """Draw the mark of a precision, for legends."""
    chart = drawing(12, 12, precision, name="swatch")
    chart.attrib.pop("role")
    chart.attrib.pop("aria-label")
    chart.set("aria-hidden", "true")
    _mark(chart, precision, 6, 6)
    return rendered(chart)


def layers(drift: Layers) -> Markup:
    """Draw the SQNR at the output of every layer in graph order, and below it the error that the layer adds."""
    found = drift.layers
    jump = next((place for place, layer in enumerate(found) if layer.node == drift.jump), None)
    finite = [layer.sqnr for layer in found if drawable(layer.sqnr)] or [0.0]
    worst = min(finite)
    said = f"SQNR at the output of {len(found)} layers in graph order, the lowest {worst:.4g} dB"
    if jump is not None:
        said += f"; the first divergent layer is number {jump + 1}, {clipped(drift.jump, NAME)}"
    chart = drawing(_WIDTH, 380, said, name="chart wide")
    across = _places(len(found), "layer, in graph order")
    up = replace(linear(min(0.0, worst), max(finite), 248, 34), title="SQNR, dB")
    y_axis(chart, up, LEFT, _WIDTH - RIGHT)
    _added(chart, found, across.scale)
    if jump is not None:
        x = across.scale.at(jump + 1)
        add(chart, "line", {"class": "limit", "x1": x, "x2": x, "y1": 24, "y2": 336})
    points = [(across.scale.at(place + 1), up.scale.at(level(layer.sqnr))) for place, layer in enumerate(found)]
    if len(found) <= MAX_DOTS:
        _dots(chart, found, points)
    else:
        _envelope(chart, points)
    if jump is not None:
        x, y = points[jump]
        add(chart, "circle", {"class": "ring", "cx": x, "cy": y, "r": 8})
        layer = found[jump]
        before, after = (words.number("sqnr", value) for value in (layer.sqnr_in, layer.sqnr))
        note(chart, f"first divergent layer: {clipped(layer.node, NAME)}, {before} → {after}", x, 18, _WIDTH)
    x_axis(chart, across, 336)
    return rendered(chart)


def lanes(decisions: Sequence[Decision]) -> Markup:
    """Draw the graph from left to right, with a lane for each precision."""
    counts: dict[str, int] = {}
    for decision in decisions:
        counts[decision.precision] = counts.get(decision.precision, 0) + 1
    order = [name for name in PRECISIONS if name in counts] + sorted(counts.keys() - set(PRECISIONS))
    order = order[:_MAX_LANES]
    said = ", ".join(f"{counts[name]} in {clipped(name, 12)}" for name in order)
    bottom = 8 + 26 * len(order)
    title = f"{counted(len(decisions), 'node')} in graph order: {said}"
    chart = drawing(_WIDTH, bottom + BOTTOM, title, name="chart wide")
    scale = Scale(0, len(decisions), 116, _WIDTH - RIGHT - 8)
    for lane, name in enumerate(order):
        y = 8 + 26 * lane
        add(chart, "rect", {"class": "lane", "x": 116, "y": y, "width": scale.end - 116, "height": 20})
        _mark(chart, name, 8, y + 10)
        add(chart, "text", {"x": 20, "y": y + 14}, f"{clipped(name, 8)}: {counts[name]}")
        columns = {int(scale.at(place)) for place, decision in enumerate(decisions) if decision.precision == name}
        width = max((scale.end - scale.start) / len(decisions), 1.0)
        runs = _runs(sorted(columns), width)
        boxes = "".join(f"M{pixels(start)} {y}h{pixels(end - start)}v20H{pixels(start)}z" for start, end in runs)
        add(chart, "path", {"class": f"fill {css_class(name)}", "d": boxes})
    middles = Scale(0.5, len(decisions) + 0.5, scale.start, scale.end)
    x_axis(chart, replace(_places(len(decisions), "node, in graph order"), scale=middles), bottom)
    return rendered(chart)


def _places(count: int, title: str) -> Axis:
    step = next(step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power) if step * 10 >= count)
    ticks = sorted({1, *range(step, count + 1, step)})
    return Axis(Scale(1, count, LEFT + 10, _WIDTH - RIGHT - 10), ticks, [str(tick) for tick in ticks], title)


def _dots(chart: Element, found: Sequence[LayerDrift], points: Sequence[tuple[float, float]]) -> None:
    add(chart, "path", {"class": "trace", "d": path(points)})
    for place, (layer, (x, y)) in enumerate(zip(found, points, strict=True), 1):
        mark = _mark(chart, layer.precision, x, y)
        text = f"{place}: {clipped(layer.node, NAME)} ({clipped(layer.op, 24)}), {clipped(layer.precision, 8)}, "
        add(mark, "title", {}, text + words.number("sqnr", layer.sqnr))


def _envelope(chart: Element, points: Sequence[tuple[float, float]]) -> None:
    """Draw the range from best to worst in each column of two pixels, where there are too many layers for dots."""
    columns: dict[int, list[float]] = {}
    for x, y in points:
        columns.setdefault(int(x / 2) * 2, []).append(y)
    best = [(float(x), min(ys)) for x, ys in sorted(columns.items())]
    worst = [(float(x), max(ys)) for x, ys in sorted(columns.items())]
    add(chart, "path", {"class": "band", "d": path([*best, *reversed(worst)]) + "z"})
    add(chart, "path", {"class": "trace strong", "d": path(worst)})


def _added(chart: Element, found: Sequence[LayerDrift], across: Scale) -> None:
    """Draw bars for the error that each layer adds, relative to its signal: the maximum in each pixel column."""
    columns: dict[int, float] = {}
    for place, layer in enumerate(found, 1):
        if drawable(layer.added) and layer.added > 0:
            x = int(across.at(place))
            columns[x] = max(columns.get(x, 0.0), 100 * layer.added)
    up = linear(0, max(columns.values(), default=1.0), 336, 276)
    ends = Axis(up.scale, [up.ticks[0], up.ticks[-1]], [up.labels[0], up.labels[-1]])
    y_axis(chart, ends, LEFT, _WIDTH - RIGHT)
    add(chart, "text", {"x": LEFT + 4, "y": 270}, "error added by the layer, % of its signal")
    width = min(max((across.end - across.start) / max(len(found), 1) * 0.6, 1.5), 14)
    boxes = "".join(
        f"M{pixels(x - width / 2)} 336V{pixels(up.scale.at(value))}h{pixels(width)}V336z"
        for x, value in sorted(columns.items())
    )
    add(chart, "path", {"class": "bar", "d": boxes})


def _runs(columns: Sequence[int], width: float) -> list[tuple[float, float]]:
    """Return the start and end of boxes of `width` that start at the columns; boxes that touch are merged."""
    runs: list[tuple[float, float]] = []
    for column in columns:
        if runs and column <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], column + width)
        else:
            runs.append((column, column + width))
    return runs


def css_class(precision: str) -> str:
    """Return the class of a precision in the style sheet."""
    return f"p-{precision}" if precision in PRECISIONS else "p-other"


def _mark(chart: Element, precision: str, x: float, y: float) -> Element:
    """Draw the shape of a precision: circle, square, diamond, triangle up or down, or a bar for any other."""
    shapes = {
        "int8": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
        "fp16": "m-3.5-3.5h7v7h-7z",
        "fp32": "m0-5l5 5l-5 5l-5-5z",
        "bf16": "m-4.5 3.5h9l-4.5-8z",
        "fp8": "m-4.5-3.5h9l-4.5 8z",
    }
    shape = shapes.get(precision, "m-4.5-1.5h9v3h-9z")
    return add(chart, "path", {"class": f"mark {css_class(precision)}", "d": f"M{pixels(x)} {pixels(y)}{shape}"})
