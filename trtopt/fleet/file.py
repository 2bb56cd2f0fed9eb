"""The file of a fleet: models with their rates and limits, and what of them is stated instead of measured.

Touches: reads the file.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtopt.bench.units import BYTES, MILLISECONDS, quantity
from trtopt.errors import UsageError
from trtopt.fleet.demand import Demand, Memory, Time, constant
from trtopt.requires import require

_MODEL = (
    "run name rate priority latency-limit share instances memory urgent weights context activations times"
).split()
_PROCESS = 600_000_000
"""Bytes that a server takes on each GPU before it loads a model; a CUDA context and its libraries take some 500 MB."""
_MOST_RATE = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """A model as a file states it; 0, or empty, is what it does not say.

    Attributes:
        where: the entry, for error messages.
        run: the run directory or ONNX file.
        name: the name of the model.
        rate, priority, limit, share, instances, budget, urgent: as in `Demand`.
        weights, context, per_sample: as in `Memory`; NaN if they are to be measured.
        times: the time of batches.
    """

    where: str
    run: Path | None
    name: str
    rate: float
    priority: int
    limit: float
    share: float
    instances: int
    budget: int
    urgent: float
    weights: float
    context: float
    per_sample: float
    times: tuple[Time, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Knowledge of a run: memory (NaN: unknown), time by batch, the largest batch (0: none), how to measure it."""

    weights: float = math.nan
    context: float = math.nan
    per_sample: float = math.nan
    times: tuple[Time, ...] = ()
    largest: int = 0
    measure: str = ""


def read(path: Path) -> tuple[tuple[Stated, ...], int]:
    """Return the models of a file, and the bytes of a server process.

    Raises:
        UsageError: the file cannot be read, or an entry is wrong.
    """
    toml: Any = require("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        data = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error)) from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML", why=str(error)) from error
    _check_keys(data, ("process", "model"), str(path))
    models = data.get("model")
    if not isinstance(models, list) or not models or not all(isinstance(each, dict) for each in models):
        raise UsageError(f"{path} names no models", fix="Write a [[model]] for each, with its run and its rate")
    found = tuple(_stated(entry, f"{path}, model {number}", path.parent) for number, entry in enumerate(models, 1))
    for each in found:
        if each.name and [other.name for other in found].count(each.name) > 1:
            raise UsageError(f"{path}: two models are named {each.name}", fix="Give them different names")
    return found, int(_bytes(data, "process", str(path), _PROCESS))


def _check_keys(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            fix = f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {key!r}", fix=fix)


def _stated(data: Mapping[str, Any], where: str, folder: Path) -> Stated:
    _check_keys(data, _MODEL, where)
    run, name = _text(data, "run", where), _text(data, "name", where)
    if not run and not name:
        raise UsageError(f"{where} has no run", fix='Name its run directory, run = "trtopt-out/model/int8"')
    if name and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"{where}: {name!r} cannot be a name", fix="Use letters, digits, '_', '-' and '.'")
    limit = _text(data, "latency-limit", where)
    return Stated(
        where=where,
        run=folder / run if run else None,
        name=name,
        rate=_number(data, "rate", where, (0.0, _MOST_RATE)),
        priority=int(_number(data, "priority", where, (0, 100), 1)),
        limit=quantity(limit, MILLISECONDS, f"{where}: latency-limit", "20ms") if limit else math.inf,
        share=_number(data, "share", where, (0.0, 1.0), 1.0),
        instances=int(_number(data, "instances", where, (0, 64), 1)),
        budget=int(_bytes(data, "memory", where, 0.0)),
        urgent=_number(data, "urgent", where, (0.0, 1.0), 0.0),
        weights=_bytes(data, "weights", where),
        context=_bytes(data, "context", where),
        per_sample=_bytes(data, "activations", where),
        times=_times(data, where),
    )


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"{where}: {key} must be a text", fix=f'Write {key} = "..."')
    return value


def _number(
    data: Mapping[str, Any], key: str, where: str, within: tuple[float, float], default: float | None = None
) -> float:
    """Return a number above the first bound and not above the second; an integer where the bounds are."""
    value = data.get(key, default)
    kinds = (int,) if isinstance(within[0], int) else (int, float)
    if key not in data and default is not None:
        return default
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not isinstance(value, kinds)
        or not within[0] < value <= within[1]
    ):
        described = "an integer" if kinds == (int,) else "a number"
        raise UsageError(
            f"{where}: {key} must be {described} above {within[0]:g} and at most {within[1]:g}",
            why="it is missing" if value is None else f"it is {value!r}",
        )
    return float(value)


def _bytes(data: Mapping[str, Any], key: str, where: str, default: float = math.nan) -> float:
    value = data.get(key)
    if value is None:
        return default
    if value == 0 and not isinstance(value, bool):
        return 0.0
    return quantity(str(value), BYTES, f"{where}: {key}", '"200MB"')


def _times(data: Mapping[str, Any], where: str) -> tuple[Time, ...]:
    entries = data.get("times", {})
    fix = 'Write times = {1 = "2ms", 8 = "9ms"}'
    if not isinstance(entries, dict):
        raise UsageError(f"{where}: times must be a table", fix=fix)
    found = []
    for key, value in entries.items():
        if not re.fullmatch(r"[1-9][0-9]{0,5}", key):
            raise UsageError(f"{where}: {key!r} in times is not a batch size", fix=fix)
        found.append(constant(int(key), quantity(str(value), MILLISECONDS, f"{where}: times", '{1 = "2ms"}')))
    return tuple(sorted(found, key=lambda time: time.batch))


def demand(stated: Stated, name: str, known: Known) -> Demand:
    """Return a model with what is stated of it, and else what was measured.

    Args:
        stated: the entry in the file.
        name: the name of the model.
        known: what is known of its run.

    Raises:
        UsageError: its memory or its time is neither stated nor measured.
    """
    times = stated.times or known.times
    parts = {
        "weights": known.weights if math.isnan(stated.weights) else stated.weights,
        "context": known.context if math.isnan(stated.context) else stated.context,
        "activations": known.per_sample if math.isnan(stated.per_sample) else stated.per_sample,
    }
    unknown = [key for key, value in parts.items() if math.isnan(value)] + ([] if times else ["times"])
    if unknown:
        fix = f"Measure it: {known.measure}; or state" if known.measure else "State"
        raise UsageError(f"{stated.where} ({name}): {' and '.join(unknown)} not known", fix=f"{fix} {unknown[0]} there")
    return Demand(
        name=name,
        rate=stated.rate,
        memory=Memory(
            weights=int(parts["weights"]), context=int(parts["context"]), per_sample=float(parts["activations"])
        ),
        times=times,
        largest=min(known.largest, times[-1].batch) if known.measure else times[-1].batch,
        priority=stated.priority,
        limit=stated.limit,
        share=stated.share,
        instances=max(stated.instances, 2 if stated.urgent else 1),
        budget=stated.budget,
        urgent=stated.urgent,
    )
