"""`trtopt compare --from`: new gates for what an earlier run measured.

Touches: reads the earlier run's report.
"""

from __future__ import annotations

from dataclasses import replace

from trtopt.commands import checks
from trtopt.errors import UsageError
from trtopt.plan import JudgePlan
from trtopt.run import invocation, load
from trtopt.types import Report


def judge_again(plan: JudgePlan) -> Report:
    """Judge the measurements of an earlier run by new gates; nothing is run, and nothing is written.

    Raises:
        UsageError: the directory has no report of this version, or its measurements are not those asked for.
    """
    from trtopt.compare.gate import verdict
    from trtopt.compare.witness import judged

    earlier = load(plan.run)
    before = [earlier.comparison] if earlier.comparison else [row.comparison for row in earlier.candidates]
    if not before:
        why = f"its report is one of trtopt {earlier.command}"
        raise UsageError(f"{plan.run} does not contain a comparison", why=why, fix="Run trtopt compare")
    for comparison in before:
        checks.measured(plan.run, plan.measure, comparison)
        outputs = {output.output: output.kind for output in comparison.outputs}
        # As in `compare`, a metric that an output does not have fails its gate, unless the flags contradict each other.
        checks.measures(plan.gates, plan.measure.kinds, all_known=plan.measure.kinds.keys() >= outputs.keys())
        checks.custom(plan.gates, measured="own" in outputs.values())
        checks.gated(plan.gates, list(outputs))
    precisions = [earlier.precision] if earlier.comparison else [row.precision for row in earlier.candidates]
    after = [judged(each, plan.gates, precision) for each, precision in zip(before, precisions, strict=True)]
    # Remarks about the old gates must not stay among the notes.
    stale = {line for comparison in before for line in comparison.remarks}
    rows = () if earlier.comparison else zip(earlier.candidates, after, strict=True)
    return replace(
        earlier,
        command="compare",
        verdict=verdict(after),
        comparison=after[0] if earlier.comparison else None,
        candidates=tuple(replace(row, comparison=new) for row, new in rows),
        stages=(),  # those of the earlier run did not run now
        notes=tuple(
            dict.fromkeys(
                [line for line in earlier.notes if line not in stale]
                + [line for comparison in after for line in comparison.remarks]
            )
        ),
        allow_inconclusive=plan.allow_inconclusive,
        list_worst=plan.worst,
        written=False,
        tune_with="",
        invocation=invocation(),
    )
