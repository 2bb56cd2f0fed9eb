"""SVG elements, scales and axes. Text is escaped by the serializer, so that no name can become markup.

Colours and fonts are those of `templates/style.css`, by class. Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from trtopt.report.page import words

LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 40
"""Margins of a chart for its axes, in pixels."""

Attributes = Mapping[str, str | float]

NAME = 48
"""Maximum length of a name in a chart, in characters."""

_MAX_TICKS = 8


@dataclass(frozen=True, slots=True)
class Scale:
    """Map of values from `low` to `high` to pixels from `start` to `end`; values outside are clamped."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, max(value, self.low)))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Axis:
    """Scale with its ticks, their labels, and a title."""

    scale: Scale
    ticks: Sequence[float]
    labels: Sequence[str]
    title: str = ""


def drawing(width: int, height: int, label: str, *, name: str = "chart") -> Element:
    """Create an empty chart; `label` describes its content, `name` is its class."""
    size = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    return Element("svg", {**size, "class": name, "role": "img", "aria-label": words.plain(label)})


def add(parent: Element, tag: str, attributes: Attributes, text: str = "") -> Element:
    """Add a new element to `parent`; numbers are written with one decimal."""
    written = {name: value if isinstance(value, str) else pixels(value) for name, value in attributes.items()}
    child = SubElement(parent, tag, written)
    child.text = words.plain(text) or None
    return child


def rendered(chart: Element) -> Markup:
    """Return the chart as markup for an HTML page."""
    return Markup(tostring(chart, encoding="unicode"))


def pixels(value: float) -> str:
    """Format a coordinate with one decimal, which is precise enough."""
    return f"{value:.1f}".removesuffix(".0")


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return a line through points, as the attribute `d`."""
    return "M" + "L".join(f"{pixels(x)} {pixels(y)}" for x, y in points)


def clipped(text: str, length: int) -> str:
    """Return the text without control characters, cut to `length` characters."""
    text = words.plain(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose `low` to `high`."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * size else size or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * count >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{step * index:.12g}") for index in range(first, max(last, first + 1) + 1)]


def linear(low: float, high: float, start: float, end: float) -> Axis:
    """Return an axis from one round number to another; labels have as few digits as distinguish the ticks."""
    ticks = round_ticks(low, high)
    return Axis(Scale(ticks[0], ticks[-1], start, end), ticks, [f"{tick:.6g}" for tick in ticks])


def logarithmic(low: float, high: float, start: float, end: float) -> Axis:
    """Return an axis whose ends and ticks are 1, 2 or 5 times a power of ten; too many ticks are thinned out."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    round_numbers = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(number for number in round_numbers if number <= low * 1.001)
    last = min(number for number in round_numbers if number >= high * 0.999 and number > first)
    ticks = [number for number in round_numbers if first <= number <= last]
    if len(ticks) > _MAX_TICKS:
        tens = [10.0**power for power in powers if first <= 10.0**power <= last]
        ticks = tens[:: math.ceil(len(tens) / 5)]
    return Axis(Scale(first, last, start, end, log=True), ticks, [compact(tick) for tick in ticks])


def drawable(value: float) -> bool:
    """Return whether a value has a place on an axis: a report read from a file may contain any number."""
    return abs(value) < 1e100


def compact(value: float) -> str:
    """Format a number in few characters: `1k`, `2.5M`, `0.01`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def x_axis(chart: Element, axis: Axis, bottom: float) -> None:
    """Draw ticks and their labels below the chart, and the title below them."""
    start, end = axis.scale.start, axis.scale.end
    add(chart, "line", {"class": "axis", "x1": start, "x2": end, "y1": bottom, "y2": bottom})
    for tick, label in zip(axis.ticks, axis.labels, strict=True):
        add(chart, "text", {"x": axis.scale.at(tick), "y": bottom + 15, "text-anchor": "middle"}, label)
    if axis.title:
        add(chart, "text", {"x": (start + end) / 2, "y": bottom + 32, "text-anchor": "middle"}, axis.title)


def y_axis(chart: Element, axis: Axis, left: float, right: float) -> None:
    """Draw a line across the chart at every tick, its label on the left, and the title upright."""
    for tick, label in zip(axis.ticks, axis.labels, strict=True):
        y = axis.scale.at(tick)
        add(chart, "line", {"class": "grid", "x1": left, "x2": right, "y1": y, "y2": y})
        add(chart, "text", {"x": left - 6, "y": y + 4, "text-anchor": "end"}, label)
    if axis.title:
        middle = (axis.scale.start + axis.scale.end) / 2
        turned = f"rotate(-90 11 {pixels(middle)})"
        add(chart, "text", {"x": 11, "y": middle, "text-anchor": "middle", "transform": turned}, axis.title)


def note(chart: Element, text: str, x: float, y: float, width: float) -> None:
    """Draw text at a point, aligned to the side that has room."""
    anchor = "start" if x < width * 0.3 else "end" if x > width * 0.7 else "middle"
    add(chart, "text", {"class": "label", "x": x, "y": y, "text-anchor": anchor}, text)


def level(sqnr: float) -> float:
    """Return the value at which an SQNR is drawn: NaN is drawn at the bottom."""
    return -math.inf if math.isnan(sqnr) else sqnr
