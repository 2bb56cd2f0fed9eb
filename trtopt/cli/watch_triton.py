"""The part of `trtopt watch` that watches a Triton server: the table, and alerts.

Touches: prints on stdout.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import NoReturn

import typer

from trtopt.errors import EXIT_GATE_FAILED, EXIT_INTERRUPTED, EXIT_PASS, UsageError
from trtopt.serve import metrics

_COLUMNS = {
    "throughput": "answers/s",
    "latency_mean": "mean ms",
    "latency_p99": "p99 ms",
    "queue_mean": "queue ms",
    "batch": "batch",
    "failed": "failed",
    "pending": "waiting",
}


def watch(
    url: str, alerts: Sequence[str], model: str | None, *, interval: float, once: bool, as_json: bool
) -> NoReturn:
    """Print a table for each interval, until Ctrl-C, an alert, or the first one with `once`.

    Raises:
        UsageError: the address or an alert does not parse, or the server has no such model.
        EnvironmentUnableError: the server does not answer.
    """
    limits, place = metrics.parse_alerts(alerts), metrics.address(url)
    try:
        earlier, start = metrics.read(place), time.monotonic()
        if model is not None and model not in earlier:
            raise UsageError(f"{url} has no model {model}", fix=f"Name one of {', '.join(sorted(earlier))}")
        while True:
            time.sleep(interval)
            later, now = metrics.read(place), time.monotonic()
            served = metrics.between(earlier, later, now - start)
            served = tuple(each for each in served if model in (None, each.model))
            earlier, start = later, now
            lines = metrics.broken(limits, served)
            _print(served, lines, as_json=as_json)
            if once or lines:
                raise typer.Exit(EXIT_GATE_FAILED if lines else EXIT_PASS)
    except KeyboardInterrupt:  # the normal end: nothing was lost, so no message is needed
        raise SystemExit(EXIT_INTERRUPTED) from None


def _print(served: Sequence[metrics.Served], alerts: Sequence[str], *, as_json: bool) -> None:
    from trtopt.codec import encode
    from trtopt.report.page.words import plain

    if as_json:
        found = {"schema_version": 1, "models": encode(tuple(served)), "alerts": list(alerts)}
        print(json.dumps(found), flush=True)
        return
    width = max([5, *(len(each.model) for each in served)])
    print(f"{'model':<{width}} {' '.join(f'{name:>9}' for name in _COLUMNS.values())}")
    for each in served:
        cells = " ".join(_cell(each.readings[name]) for name in _COLUMNS)
        print(plain(f"{each.model:<{width}} {cells}"))
    for line in alerts:
        print(plain(f"alert: {line}"))
    print(flush=True)


def _cell(value: float) -> str:
    return f"{'–' if math.isnan(value) else f'{value:,.1f}':>9}"
