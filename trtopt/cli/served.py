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
        TrtoptError: the test cannot be run.
    """
    import json

    import typer

    from trtopt.cli.console import Narrator
    from trtopt.cli.show import Printed
    from trtopt.cli.show import finish as show
    from trtopt.codec import encode
    from trtopt.commands.load import report, run
    from trtopt.verdict import exit_code

    with Narrator(quiet=quiet, verbose=verbose) as emit:
        found = run(plan, emit)
    reported = report(found, allow_inconclusive=allow_inconclusive)
    if format not in ("text", "json"):
        show(reported, Printed(format=format, told=emit.told))
    print(
        json.dumps({"schema_version": 1, **encode(found)}, indent=1) if format == "json" else "\n".join(_lines(found))
    )
    raise typer.Exit(exit_code(reported))


def _lines(found: LoadTest) -> list[str]:
    """Return the table, the limit and the gates."""
    from trtopt.commands.load import limit, table
    from trtopt.report.page.words import aligned, plain

    rates = table(found.results)
    lines = [f"{found.model} at {found.server}, mean batch {found.mean_batch:.1f}", ""]
    lines += [*aligned(rates, left=()), "", rates.title, *limit(found)]
    for gate in found.gates:
        lines.append(f"{gate.verdict:<12} {gate.output}: {gate.metric}: {gate.reason}")
    lines.append(f"{found.verdict.upper()}" + ("" if found.gates else ": no gate was given"))
    return [plain(line) for line in lines]
