"""Drawing in SVG: elements, scales, axes. Text is escaped by the serializer, so that no name can become markup.

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
"""Room around a chart for its axes, in pixels."""

Attributes = Mapping[str, str | float]

NAME = 48
"""So many characters of a name fit into a chart."""

_MAX_TICKS = 8


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low` to `high` on pixels from `start` to `end`; values beyond land on the nearer end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, max(value, self.low)))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale, the values that get a tick, what a tick says, and what is measured."""

    scale: Scale
    ticks: Sequence[float]
    labels: Sequence[str]
    title: str = ""


def drawing(width: int, height: int, label: str, *, name: str = "chart") -> Element:
    """An empty picture; `label` says in words what it shows, `name` is its class."""
    size = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    return Element("svg", {**size, "class": name, "role": "img", "aria-label": words.plain(label)})


def add(parent: Element, tag: str, attributes: Attributes, text: str = "") -> Element:
    """A new element in `parent`; numbers are written with one decimal."""
    written = {name: value if isinstance(value, str) else pixels(value) for name, value in attributes.items()}
    child = SubElement(parent, tag, written)
    child.text = words.plain(text) or None
    return child


def rendered(picture: Element) -> Markup:
    """The picture as markup for an HTML page."""
    return Markup(tostring(picture, encoding="unicode"))


def pixels(value: float) -> str:
    """A coordinate: tenths of a pixel are enough."""
    return f"{value:.1f}".removesuffix(".0")


def path(points: Sequence[tuple[float, float]]) -> str:
    """A line through points, as the attribute `d`."""
    return "M" + "L".join(f"{pixels(x)} {pixels(y)}" for x, y in points)


def clipped(text: str, length: int) -> str:
    """The text without control characters, at most `length` characters of it."""
    text = words.plain(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose `low` to `high`."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * size else size or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * count >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{step * index:.12g}") for index in range(first, max(last, first + 1) + 1)]


def linear(low: float, high: float, start: float, end: float) -> Axis:
    """An axis from one round number to another, ticks with as few digits as tell them apart."""
    ticks = round_ticks(low, high)
    return Axis(Scale(ticks[0], ticks[-1], start, end), ticks, [f"{tick:.6g}" for tick in ticks])


def logarithmic(low: float, high: float, start: float, end: float) -> Axis:
    """An axis whose ends and ticks are 1, 2 or 5 times a power of ten; too many ticks are thinned out."""
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
    """Whether a value has a place on an axis: a report read from a file may hold any number."""
    return abs(value) < 1e100


def compact(value: float) -> str:
    """A number in few characters: `1k`, `2.5M`, `0.01`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def x_axis(picture: Element, axis: Axis, bottom: float) -> None:
    """Ticks and their labels below the chart, and the title below them."""
    start, end = axis.scale.start, axis.scale.end
    add(picture, "line", {"class": "axis", "x1": start, "x2": end, "y1": bottom, "y2": bottom})
    for tick, label in zip(axis.ticks, axis.labels, strict=True):
        add(picture, "text", {"x": axis.scale.at(tick), "y": bottom + 15, "text-anchor": "middle"}, label)
    if axis.title:
        add(picture, "text", {"x": (start + end) / 2, "y": bottom + 32, "text-anchor": "middle"}, axis.title)


def y_axis(picture: Element, axis: Axis, left: float, right: float) -> None:
    """A line across the chart at every tick, its label on the left, and the title upright."""
    for tick, label in zip(axis.ticks, axis.labels, strict=True):
        y = axis.scale.at(tick)
        add(picture, "line", {"class": "grid", "x1": left, "x2": right, "y1": y, "y2": y})
        add(picture, "text", {"x": left - 6, "y": y + 4, "text-anchor": "end"}, label)
    if axis.title:
        middle = (axis.scale.start + axis.scale.end) / 2
        turned = f"rotate(-90 11 {pixels(middle)})"
        add(picture, "text", {"x": 11, "y": middle, "text-anchor": "middle", "transform": turned}, axis.title)


def note(picture: Element, text: str, x: float, y: float, width: float) -> None:
    """Text at a point, turned to the side that has room."""
    anchor = "start" if x < width * 0.3 else "end" if x > width * 0.7 else "middle"
    add(picture, "text", {"class": "label", "x": x, "y": y, "text-anchor": anchor}, text)


def level(sqnr: float) -> float:
    """Where a value is drawn: identical at the top, unknown at the bottom."""
    return -math.inf if math.isnan(sqnr) else sqnr
