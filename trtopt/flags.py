"""Values of flags that the command line and the Python functions share, parsed once.

Touches: nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from trtopt.bench.gate import Gate as SpeedGate
from trtopt.compare.gates import Gate
from trtopt.errors import UsageError
from trtopt.precision import fallbacks, formats
from trtopt.types import Keep, Only


def gates(text: str) -> tuple[tuple[Gate, ...], tuple[SpeedGate, ...]]:
    """Return the gates on drift and those on speed in the text of `--gate`.

    Raises:
        UsageError: a part does not parse, names no metric, or has a limit that makes no sense.
    """
    from trtopt.bench import gate as speed
    from trtopt.compare import gates as drift
    from trtopt.compare.catalog import METRICS

    def is_timed(part: str) -> bool:
        name = re.split("[@=<>]", part, maxsplit=1)[0].strip()
        if name in speed.METRICS or name in METRICS or not name:
            return name in speed.METRICS
        # The gates on speed know what is similar to latency=5ms; latency<=5 is about a metric of the user's own.
        return bool(re.search("[^<>]=", part)) and any(name in metric for metric in speed.METRICS)

    parts = text.split(",")
    timed = [part for part in parts if is_timed(part)]
    others = [part for part in parts if part not in timed]
    return drift.parse_gates(",".join(others)), speed.parse_gates(",".join(timed))


def keeps(flags: Sequence[str], precision: str, rest: str) -> tuple[Keep, ...]:
    """Return the values of flags `--keep PATTERN[=PRECISION]`.

    Without a precision, a node of INT8 and FP8 is kept in the fallback precision, and one of FP16 and BF16 in FP32.

    Raises:
        UsageError: a flag has no pattern, or a precision that nodes cannot be kept in.
    """
    higher = rest if precision in formats(8) else "fp32"
    parsed = []
    for flag in flags:
        pattern, _, wanted = flag.rpartition("=")
        if wanted not in fallbacks():  # the names of nodes may contain "="
            pattern, wanted = flag, higher
        if not pattern:
            raise UsageError(
                f"--keep {flag} names no node", fix="Write --keep NODE, --keep NODE=fp32 or --keep OPERATOR"
            )
        if precision == "fp32" or wanted not in ("fp32", higher):
            why = "every node is in FP32" if precision == "fp32" else f"the other nodes are in {higher}"
            raise UsageError(f"--keep {flag}: nodes cannot be kept in {wanted}", why=why, fix="Use =fp32, or omit it")
        parsed.append(Keep(pattern=pattern, precision="fp32" if wanted == "fp32" else ""))
    return tuple(parsed)


def lowered_only(flags: Sequence[str], precision: str) -> Only | None:
    """Return the value of the flags `--only PATTERN`; None without any.

    The other nodes of INT8 and FP8 are kept in the fallback precision, and those of FP16 and BF16 in FP32.

    Raises:
        UsageError: a pattern is empty, or there is nothing to lower.
    """
    if not flags:
        return None
    if precision == "fp32":
        raise UsageError(f"--only {flags[0]} has no effect", why="every node is in FP32", fix="Leave it out")
    if not all(flag.strip() for flag in flags):
        raise UsageError("--only names no node", fix="Write --only NODE or --only OPERATOR")
    return Only(patterns=tuple(flags), precision="" if precision in formats(8) else "fp32")


def output_kinds(flags: Sequence[str]) -> dict[str, str]:
    """Return the kind of each output that a flag `--kind OUTPUT=KIND` names.

    Raises:
        UsageError: a flag does not parse, or an output is named twice.
    """
    kinds: dict[str, str] = {}
    for flag in flags:
        output, _, kind = flag.rpartition("=")
        if not output:
            raise UsageError(f"--kind {flag!r} does not parse", fix="Write OUTPUT=KIND, such as logits=scores")
        if output in kinds:
            raise UsageError(f"--kind is given twice for output {output}", fix="Keep one of the two")
        kinds[output] = kind
    return kinds


def input_dtypes(flags: Sequence[str]) -> dict[str, str]:
    """Return the type of each input that a flag `--dtype NAME=DTYPE` names.

    Raises:
        UsageError: a flag does not parse, its type is unknown, or an input is named twice.
    """
    from trtopt.export.request import DTYPES

    dtypes: dict[str, str] = {}
    for flag in flags:
        name, _, dtype = flag.rpartition("=")
        if not name or dtype not in DTYPES:
            raise UsageError(f"invalid --dtype {flag}", fix=f"Write NAME=DTYPE, with one of {', '.join(DTYPES)}")
        if name in dtypes:
            raise UsageError(f"--dtype is given twice for input {name}", fix="Keep one of the two")
        dtypes[name] = dtype
    return dtypes
