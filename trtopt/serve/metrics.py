"""Latency and throughput of the models of a Triton server, from two readings of its metrics.

The metrics are counters (docs/user_guide/metrics.md of the server): what happened between two readings is their
difference. Percentiles are there if the server was started with `--metrics-config=summary_latencies=true`; they are
those of the last minute or so.

Touches: the network.
"""

from __future__ import annotations

import math
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException

from trtopt.bench.units import MILLISECONDS, quantity
from trtopt.errors import EnvironmentUnableError, UsageError

_LINE = re.compile(r"(?P<name>nv_inference_\w+)\{(?P<labels>[^}]*)\}\s+(?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_COUNTERS = {
    "nv_inference_request_success": "answered",
    "nv_inference_request_failure": "failed",
    "nv_inference_count": "samples",
    "nv_inference_exec_count": "runs",
    "nv_inference_request_duration_us": "request_us",
    "nv_inference_queue_duration_us": "queue_us",
}
_GAUGE = "nv_inference_pending_request_count"
_SUMMARY = "nv_inference_request_summary_us"
_SECONDS = 10
_FLOORS = ("throughput",)
_UNITS = {"latency": MILLISECONDS, "queue": MILLISECONDS}
READINGS = ("throughput", "latency_mean", "latency_p99", "queue_mean", "batch", "failed", "pending")
"""Readings of a model: answers per second, milliseconds, samples per run, failed requests, waiting requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Limit of a reading: from below for the throughput, from above for all others. Latencies are in milliseconds."""

    reading: str
    limit: float

    def broken(self, value: float) -> bool:
        """Return whether a reading breaks the limit. One that is not known (NaN), as without requests, does not."""
        return value < self.limit if self.reading in _FLOORS else value > self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Name of a model, and its `READINGS` over an interval (NaN: unknown, as without requests)."""

    model: str
    readings: Mapping[str, float]


Counters = Mapping[str, Mapping[str, float]]
"""Counters of each model, by their names here."""


def parse_alerts(texts: Sequence[str]) -> tuple[Alert, ...]:
    """Parse alerts such as `latency_p99=20ms,throughput=50,failed=0`.

    Raises:
        UsageError: one does not parse, or its reading is unknown.
    """
    alerts = []
    for part in ",".join(texts).split(",") if texts else ():
        reading, sign, limit = (word.strip() for word in part.partition("="))
        if not sign or reading not in READINGS:
            raise UsageError(
                f"--alert {part.strip()!r} does not parse",
                fix=f"Write READING=LIMIT, as in latency_p99=20ms, with one of {', '.join(READINGS)}",
            )
        alerts.append(Alert(reading=reading, limit=_limit(part.strip(), reading, limit)))
    return tuple(alerts)


def _limit(part: str, reading: str, text: str) -> float:
    units = _UNITS.get(reading.partition("_")[0])
    if units is not None:
        return quantity(text, units, f"--alert {part!r}", f"--alert {reading}=20ms")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise UsageError(f"invalid limit in --alert {part!r}", fix=f"Write --alert {reading}=50")
    return value


def address(url: str) -> str:
    """Return the URL of the metrics of a server, `http://HOST:8002/metrics`.

    Raises:
        UsageError: it is not a URL for HTTP.
    """
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        raise UsageError(
            f"--triton {url} is not the address of a server's metrics", fix="Write --triton http://HOST:8002"
        )
    return url if url.rstrip("/").endswith("/metrics") else f"{url.rstrip('/')}/metrics"


def read(url: str) -> Counters:
    """Return the counters of all models.

    Raises:
        EnvironmentUnableError: the server does not answer, or not with Triton's metrics.
    """
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            text = answer.read().decode("utf-8", "replace")
    except (OSError, ValueError, HTTPException) as error:
        why = str(getattr(error, "reason", error))
        raise EnvironmentUnableError(
            f"no metrics at {url}", why=why, fix="Check the address; their port is 8002 by default"
        ) from error
    if "nv_inference_" not in text:
        raise EnvironmentUnableError(f"{url} is not Triton's", why="it has no nv_inference_ metric")
    return parse(text)


def parse(text: str) -> Counters:
    """Return the counters of all models, summed over their versions and GPUs."""
    found: dict[str, dict[str, float]] = {}
    for match in _LINE.finditer(text):
        labels = dict(_LABEL.findall(match["labels"]))
        name = _COUNTERS.get(match["name"], "")
        if match["name"] == _GAUGE:
            name = "pending"
        elif match["name"] == _SUMMARY and labels.get("quantile") == "0.99":
            name = "p99_us"
        if not name or "model" not in labels:
            continue
        model = found.setdefault(labels["model"], {})
        value = float(match["value"])
        # A percentile cannot be summed: the largest is the one to watch.
        model[name] = max(model.get(name, value), value) if name == "p99_us" else model.get(name, 0.0) + value
    return found


def between(earlier: Counters, later: Counters, seconds: float) -> tuple[Served, ...]:
    """Return what each model did between two readings. A model that was reloaded counts from zero."""
    return tuple(
        Served(model=model, readings=_readings(earlier.get(model, {}), counters, seconds))
        for model, counters in sorted(later.items())
    )


def _readings(earlier: Mapping[str, float], later: Mapping[str, float], seconds: float) -> dict[str, float]:
    restarted = later.get("answered", 0.0) < earlier.get("answered", 0.0)
    done = {name: later.get(name, 0.0) - (0.0 if restarted else earlier.get(name, 0.0)) for name in _COUNTERS.values()}
    answered, runs = done["answered"], done["runs"]
    return {
        "throughput": answered / seconds,
        "latency_mean": done["request_us"] / answered / 1000 if answered else math.nan,
        "latency_p99": later.get("p99_us", math.nan) / 1000 if answered else math.nan,
        "queue_mean": done["queue_us"] / answered / 1000 if answered else math.nan,
        "batch": done["samples"] / runs if runs else math.nan,
        "failed": done["failed"],
        "pending": later.get("pending", math.nan),
    }


def broken(alerts: Sequence[Alert], served: Sequence[Served]) -> tuple[str, ...]:
    """Return a line for each alert that a model breaks."""
    lines = []
    for alert in alerts:
        for each in served:
            value = each.readings[alert.reading]
            if alert.broken(value):
                unit = " ms" if alert.reading.partition("_")[0] in _UNITS else ""
                side = "below" if alert.reading in _FLOORS else "above"
                lines.append(f"{each.model}: {alert.reading} is {value:.4g}{unit}, {side} {alert.limit:g}{unit}")
    return tuple(lines)
