"""The grammar of `--gate`: text to gates, with the limits that make no sense refused.

Touches: nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trtopt.compare.catalog import METRICS, Sense
from trtopt.compare.defaults import DEFAULTS
from trtopt.errors import UsageError

_WRITTEN = re.compile(r"(?:(?P<output>.*):)?(?P<metric>[^:=<>]*?)\s*(?P<sign><=|>=|=)(?P<limit>[^=]*)", re.DOTALL)
_SIGNS: dict[str, Sense] = {"<=": "at most", ">=": "at least"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A limit on a metric of one output, or (`output` empty) of every output that has the metric."""

    metric: str
    limit: float
    sense: Sense
    output: str = ""


def gate(metric: str, limit: float, output: str = "") -> Gate:
    """Return a gate on one of the `METRICS`."""
    return Gate(metric=metric, limit=limit, sense=METRICS[metric].sense, output=output)


def parse_gates(text: str) -> tuple[Gate, ...]:
    """Parse `top1=1%,cosine=0.99,logits:sqnr=20,mine>=0.5`. A blank text gives no gates.

    A gate that is written twice is one gate.

    Raises:
        UsageError: a part does not parse, names no metric, or has a limit that makes no sense.
    """
    return tuple(dict.fromkeys(_parse(part.strip()) for part in text.split(","))) if text.strip() else ()


def written(gates: Sequence[Gate]) -> str:
    """Return gates as `parse_gates` reads them."""
    return ",".join(map(_written, gates))


def _written(gate: Gate) -> str:
    known = METRICS.get(gate.metric)
    sign = "=" if known else next(sign for sign, sense in _SIGNS.items() if sense == gate.sense)
    output = f"{gate.output}:" if gate.output else ""
    return f"{output}{gate.metric}{sign}{gate.limit!r}{known.unit if known else ''}"


def _parse(part: str) -> Gate:
    written = _WRITTEN.fullmatch(part)
    if not written or not written["metric"].strip():
        fix = "Write METRIC=LIMIT, such as top1=1%, cosine=0.99 or cosine>=0.99"
        raise UsageError(f"--gate {part!r} does not parse", fix=fix)
    metric, sign, output = written["metric"].strip(), written["sign"], (written["output"] or "").strip()
    known = METRICS.get(metric) if metric != "nonfinite" else None
    if known is None and sign == "=":
        names = [name for name in METRICS if name != "nonfinite"]
        near = difflib.get_close_matches(metric, names, 1)
        own = f"for a metric of your own write {metric}>=LIMIT or {metric}<=LIMIT"
        raise UsageError(
            f"--gate names an unknown metric {metric!r}",
            fix=f"Did you mean {near[0]}?" if near else f"--gate help lists them; {own}",
        )
    unit = known.unit if known else ""
    digits = written["limit"].strip().removesuffix(unit)
    try:
        limit = float(digits)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(
            f"--gate {part!r} has no limit",
            why=f"{written['limit'].strip()!r} is not a number" + (f" in {unit}" if unit else ", and it takes no unit"),
            fix=f"Write {example(metric) if known else f'{metric}{sign}0.99'}",
        )
    if known is None:
        return Gate(metric=metric, limit=limit, sense=_SIGNS[sign], output=output)
    if sign != "=" and _SIGNS[sign] != known.sense:
        meaning = "takes the largest drop allowed" if known.sense == "drop" else f"must be {known.sense} its limit"
        raise UsageError(
            f"invalid limit in --gate {part!r}", why=f"{metric} {meaning}", fix=f"Write {_nearest(metric, limit)}"
        )
    _check_meaning(metric, limit, part, with_unit=digits != written["limit"].strip())
    return Gate(metric=metric, limit=limit, sense=known.sense, output=output)


def example(metric: str) -> str:
    """Return a gate on a metric with a limit that makes sense: the default one if there is any."""
    limits = [limit for of_kind in DEFAULTS.values() for name, limit in of_kind if name == metric]
    known = METRICS[metric]
    usual = {"drop": 1.0, "at least": 0.99, "at most": 0.01}[known.sense]
    if known.unit == "%" and known.sense == "at least":
        usual = 99.0
    elif known.unit == "dB":
        usual = 20.0 if known.sense == "at least" else 1.0
    elif metric == "lost":
        usual = 0.0
    return f"{metric}={limits[0] if limits else usual:g}{known.unit}"


def _nearest(metric: str, limit: float) -> str:
    """Return the gate with a limit if that makes sense, with the drop that a share of samples means, or an example."""
    known = METRICS[metric]
    meant = 100 - limit if known.sense == "drop" and 50 < limit <= 100 else limit
    text = f"{metric}={meant:g}{known.unit}"
    try:
        parse_gates(text)
    except UsageError:
        return example(metric)
    return text


def _check_meaning(metric: str, limit: float, part: str, *, with_unit: bool) -> None:
    """Refuse limits that cannot be what the user wants: such a gate would always pass, or never."""
    known = METRICS[metric]
    low, high = known.range
    why = fix = ""
    if known.sense == "drop":
        if not 0 <= limit < 50:
            why = f"{metric} takes the largest drop allowed, in points from 0 to 50"
            fix = f"Write {_nearest(metric, limit)}" if 50 < limit <= 100 else f"Write {example(metric)}"
    elif (low, high) == (0.0, 100.0) and known.unit == "%":
        if not low <= limit <= high:
            why, fix = f"{metric} is a percentage", f"Write {example(metric)}"
        elif 0 < limit <= 1 and not with_unit:
            why, fix = (
                f"{metric} is in percent",
                f"Write {metric}={100 * limit:g}%, or {metric}={limit:g}% if that is what you want",
            )
    elif limit < low and math.isinf(high):
        why, fix = f"{metric} is never negative", f"Write {example(metric)}"
    elif not low <= limit <= high:
        why, fix = f"{metric} lies between {low:g} and {high:g}", f"Write {example(metric)}"
    if why:
        raise UsageError(f"invalid limit in --gate {part!r}", why=why, fix=fix)
