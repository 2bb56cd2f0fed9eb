"""Sentences, rows and charts about a search for a mixed precision, and about the sensitivity of groups.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from trtopt.report.page import words
from trtopt.report.page.svg import (
    BOTTOM,
    LEFT,
    NAME,
    RIGHT,
    TOP,
    Attributes,
    add,
    clipped,
    drawable,
    drawing,
    linear,
    path,
    rendered,
    x_axis,
    y_axis,
)
from trtopt.types import Choice, SensitiveGroup, Sensitivity, TunedGroup, Tuning

_NAMED = 8
_BARS = 20
SENSITIVITY_HEAD = ("group", "only it", "95 %", "all but it", "weight", "clipped", "rounded", "bias")


def said(tuning: Tuning, precision: str) -> list[str]:
    """Return what the search found, in sentences."""
    kept = [group for group in tuning.groups if not group.quantized]
    lines = [
        f"{len(tuning.groups) - len(kept)} of {len(tuning.groups)} groups are in {precision}: {_percent(tuning.share)} "
        f"of the multiplications; the cost ({tuning.speed}) is {_percent(tuning.cost)} of that without any of them"
    ]
    if tuning.failed is not None:
        lines.append(
            f"no choice can pass: with nothing quantized, {_gate(tuning)}. Loosen the gate, or keep the other nodes in "
            "higher precision (--rest fp32)"
        )
    elif kept:
        names = ", ".join(words.plain(group.name) for group in kept[:_NAMED])
        more = f" and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
        count = "this one" if len(kept) == 1 else f"these {len(kept)}"
        lines.append(f"{count} cannot be {precision}: {names}{more}")
    if tuning.stopped:
        lines.append(f"the search ended early: {tuning.stopped}; this is the best so far")
    searched = sum(each.half == "search" for each in tuning.choices)
    judged = sum(each.half == "verdict" for each in tuning.choices)
    passes = f"{tuning.judging:,} forward passes"
    if not searched and not kept:
        lines.append(f"with everything quantized, the verdict on {tuning.judged} samples needs no search; {passes}")
        return lines
    lines.append(
        f"{searched} choices were tried on {tuning.searched} samples, and {judged} were judged on the other "
        f"{tuning.judged}, which the search did not see; {tuning.passes:,} and {passes}"
    )
    lines.append(
        "the choices were judged in a fixed order, up to the first that fails: each test is at 5 %, and their number "
        "needs no correction"
    )
    return lines


def _gate(tuning: Tuning) -> str:
    failed = tuning.failed
    assert failed is not None
    return f"{words.gate_title(failed)}: {failed.reason}"


def decisions(tuning: Tuning) -> list[TunedGroup]:
    """Return the groups, those that are not quantized first, otherwise by their error."""
    return sorted(tuning.groups, key=lambda group: (group.quantized, -_number(group.error)))


def _number(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def pareto(tuning: Tuning) -> Markup:
    """Draw the drift of each choice over its cost; the chosen one is marked. Empty without two choices to draw."""
    points = [each for each in tuning.choices if drawable(each.drift) and drawable(each.cost)]
    if len(points) < 2:
        return Markup()
    chosen = next((each for each in points if each.chosen), None)
    label = f"Drift and cost of {len(points)} choices"
    if chosen is not None:
        label += f"; chosen: cost {_percent(chosen.cost)}, {chosen.drift:.1f} dB, {_percent(chosen.share)} quantized"
    chart = drawing(640, 320, label, name="chart middle")
    right, bottom = 640 - RIGHT, 320 - BOTTOM
    costs, drifts = [100 * each.cost for each in points], [each.drift for each in points]
    across = replace(linear(min(costs), max(costs), LEFT, right), title=f"cost ({tuning.speed}), % of none quantized")
    up = replace(linear(min(drifts), max(drifts), bottom, TOP + 8), title="SQNR of the worst output, dB")
    y_axis(chart, up, LEFT, right)
    x_axis(chart, across, bottom)

    def at(each: Choice) -> tuple[float, float]:
        return across.scale.at(100 * each.cost), up.scale.at(each.drift)

    front = _front([each for each in points if each.acceptable and each.half == "verdict"])
    if len(front) > 1:
        add(chart, "path", {"class": "front", "d": path([at(each) for each in front])})
    for each in points:
        x, y = at(each)
        if each.acceptable:
            kind = "best" if each.half == "verdict" else "other"
            add(chart, "circle", {"class": kind, "cx": x, "cy": y, "r": 6 if each.chosen else 4})
        else:
            add(chart, "path", {"class": "other", "d": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"})
    if chosen is not None:
        x, y = at(chosen)
        anchor = "end" if x > right * 0.7 else "start"
        beside = x + (-11 if anchor == "end" else 11)
        place: Attributes = {"class": "label", "x": beside, "y": y - 8, "text-anchor": anchor}
        add(chart, "text", place, f"★ chosen: {_percent(chosen.share)} of the multiplications quantized")
    return rendered(chart)


def _front(points: Sequence[Choice]) -> list[Choice]:
    """Return the choices of which no other is cheaper and has less drift, the cheapest first."""
    front: list[Choice] = []
    for each in sorted(points, key=lambda each: (each.cost, -each.drift)):
        if not front or each.drift > front[-1].drift:
            front.append(each)
    return front


def error(value: float) -> str:
    """Format a relative error energy as the SQNR at the outputs."""
    if math.isnan(value):
        return ""
    return words.decibels(-10 * math.log10(value)) if value > 0 else "none"


def sensitivity_rows(found: Sensitivity) -> list[tuple[str, ...]]:
    """Return one row per group under `SENSITIVITY_HEAD`; an estimate is marked by ~."""
    return [
        (
            group.name + (f" and {len(group.nodes) - 1} more" if len(group.nodes) > 1 else ""),
            ("" if group.exact else "~") + _number_of(group.alone),
            _interval(group),
            ("" if group.exact else "~") + _number_of(group.others),
            *(_number_of(group.parts.get(part, math.nan)) for part in ("weight", "clipped", "rounded")),
            _change(group),
        )
        for group in found.groups
    ]


def _interval(group: SensitiveGroup) -> str:
    if math.isnan(group.low):
        return ""
    return f"{_number_of(group.high)} to {_number_of(group.low)}"


def _number_of(value: float) -> str:
    """Format a relative error energy as the number of decibels."""
    return error(value).removesuffix(" dB")


def _change(group: SensitiveGroup) -> str:
    """Return by how many dB the correction of the bias raises the SQNR of the group alone."""
    change, alone = group.parts.get("bias", math.nan), group.parts.get("all", math.nan)
    if math.isnan(change) or not change or not 0 < alone - change < math.inf or alone <= 0:
        return ""
    return f"{10 * math.log10((alone - change) / alone):+.1f}"


def sensitivity_said(found: Sensitivity) -> list[str]:
    """Return how the numbers of a sensitivity analysis were obtained."""
    exact = sum(group.exact for group in found.groups)
    return [
        "SQNR at the outputs in dB, with only the group quantized, with all but it, and with a part of it; bias is "
        f"the gain by the correction of its bias. With all groups quantized it is {error(found.whole)}",
        f"{exact} of {len(found.groups)} groups were measured on {found.samples} samples; the others (~), and the "
        f"parts, are estimates from {found.few} samples",
    ]


def bars(found: Sensitivity) -> Markup:
    """Draw the error of the worst groups, each with only it quantized. Empty if there is nothing to draw."""
    groups = [group for group in found.groups[:_BARS] if 0 < group.alone < math.inf]
    if not groups:
        return Markup()
    height, left, right = 24 * len(groups) + TOP + BOTTOM, 240, 640 - RIGHT
    label = f"Error at the outputs with only one group quantized, of the {len(groups)} worst groups"
    chart = drawing(640, height, label, name="chart middle")
    errors = [100 * group.alone for group in groups]
    across = replace(linear(0.0, max(errors), left, right), title="error energy at the outputs, % of the signal")
    for place, (group, value) in enumerate(zip(groups, errors, strict=True)):
        y = TOP + 24 * place
        width = max(across.scale.at(value) - left, 1)
        add(chart, "rect", {"class": "bar", "x": left, "y": y + 4, "width": width, "height": 14})
        name = clipped(group.name, min(NAME, 34)) + ("" if group.exact else " ~")
        add(chart, "text", {"class": "label", "x": left - 6, "y": y + 15, "text-anchor": "end"}, name)
    x_axis(chart, across, height - BOTTOM)
    return rendered(chart)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
