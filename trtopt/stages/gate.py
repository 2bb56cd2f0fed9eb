"""The stage `gate`: the verdict on a comparison.

Touches: the run directory, through the store.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trtopt.codec import encode
from trtopt.compare.gates import Gate
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.types import Comparison


def gate(
    run: Run, comparison: Comparison, gates: Sequence[Gate], precision: str = "", name: str = "gate"
) -> Comparison:
    """Return the comparison with the results of its gates and a verdict.

    Args:
        run: the run.
        comparison: the measured drift.
        gates: the thresholds of the user; the defaults if there are none.
        precision: the precision of the candidate, for the gate `engine`.
        name: the name of the stage, if there are several.
    """

    def make(_: Path) -> Comparison:
        from trtopt.compare.witness import judged

        return judged(comparison, gates, precision)

    # Gates are judged again only if the measured drift or the thresholds have changed.
    measured = hashlib.sha256(json.dumps(encode(comparison)).encode()).hexdigest()
    key = {"comparison": measured, "gates": encode(tuple(gates)), "precision": precision, **versions("scipy")}
    return run.store.stage(name, key, Comparison, make, judged_line)


def judged_line(comparison: Comparison) -> str:
    """Return the summary line of the gates: how many passed, and how many did not."""
    counts = Counter(gate.verdict for gate in comparison.gates)
    line = f"{counts['pass']}/{len(comparison.gates)} gates passed"
    line += f", {counts['fail']} failed" if counts["fail"] else ""
    return line + (f", {counts['inconclusive']} inconclusive" if counts["inconclusive"] else "")
