"""The part of `trtopt bench` that tests a served model: the values of its flags, and the table.

Touches: prints on stdout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trtopt.errors import UsageError

if TYPE_CHECKING:
    from trtopt.commands.load import LoadPlan, LoadTest

_MOST = 100_000


def rates(text: str) -> tuple[float, ...]:
    """Parse `--rate 10,50,100` and sort the rates.

    Raises:
        UsageError: one is not a positive number.
    """
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = [math.nan]
    if not all(0 < rate <= _MOST for rate in found):
        raise UsageError(f"invalid --rate {text}", fix="Write requests per second: --rate 10,50,100")
    return tuple(found)


def named(targets: Sequence[Path]) -> str:
    """Return the model to test.

    Raises:
        UsageError: several are given.
    """
    if len(targets) > 1:
        raise UsageError(f"--server takes one model, but {len(targets)} are given", fix="Run it once per model")
    return str(targets[0]) if targets else ""


def finish(plan: LoadPlan, *, format: str, quiet: bool, verbose: bool, allow_inconclusive: bool) -> NoReturn:
    """Run the load test, print it, and exit with the code of its gates.

    Raises:
        UsageError: the format is neither text nor json.
        TrtoptError: the test cannot be run.
    """
    import json

    import typer

    from trtopt.cli.console import Narrator
    from trtopt.codec import encode
    from trtopt.commands.load import run
    from trtopt.errors import EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS

    if format not in ("text", "json"):
        raise UsageError(f"bench --server does not support --format {format}", fix="Choose text or json")
    with Narrator(quiet=quiet, verbose=verbose) as emit:
        found = run(plan, emit)
    print(
        json.dumps({"schema_version": 1, **encode(found)}, indent=1) if format == "json" else "\n".join(_lines(found))
    )
    code = {"fail": EXIT_GATE_FAILED, "inconclusive": EXIT_INCONCLUSIVE}.get(found.verdict, EXIT_PASS)
    raise typer.Exit(EXIT_PASS if allow_inconclusive and code == EXIT_INCONCLUSIVE else code)


def _lines(found: LoadTest) -> list[str]:
    """Return the table, the limit and the gates."""
    from trtopt.report.page.words import plain

    lines = [f"{found.model} at {found.server}, mean batch {found.mean_batch:.1f}", ""]
    lines.append(
        f"{'requests/s':>10} {'answers/s':>10} {'p50':>8} {'p90':>8} {'p95':>8} {'p99':>8} {'max':>8} {'errors':>7}"
    )
    for each in found.results:
        times = " ".join(f"{each.latency[name]:8.2f}" for name in ("p50", "p90", "p95", "p99", "max"))
        lines.append(f"{each.rate:>10g} {each.throughput:>10.1f} {times} {sum(each.errors.values()):>7}")
    lines += ["", "latencies in ms, from when a request was due"]
    for each in found.results:
        lines += [f"{each.rate:g} requests/s: {count} x {message}" for message, count in list(each.errors.items())[:3]]
    if math.isfinite(found.latency_limit):
        limit = f"p99 within {found.latency_limit:g} ms"
        held = f"{limit} up to {found.holds:g} requests/s" if found.holds else f"{limit} at no rate"
        lines.append(f"{held}; broken at {found.breaks:g} requests/s" if found.breaks else held)
    for gate in found.gates:
        lines.append(f"{gate.verdict:<12} {gate.output}: {gate.metric}: {gate.reason}")
    lines.append(f"{found.verdict.upper()}" + ("" if found.gates else ": no gate was given"))
    return [plain(line) for line in lines]
