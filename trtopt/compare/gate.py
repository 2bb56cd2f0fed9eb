"""The gates of a comparison: which apply to which output, and the verdict of all of them.

A gate on a fraction of samples passes if the samples *show* that it holds, and fails if they show that it does not. It
is inconclusive if there are too few samples to decide, or if the samples cannot reveal a failure: agreement on samples
of a single class shows nothing. A gate that cannot be evaluated fails. Any NaN fails, whatever the gates, and so does
an infinity that FP32 does not have.

Touches: nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from trtopt.compare.defaults import DEFAULTS, FLOORS, WHERE_MEASURED
from trtopt.compare.evaluate import evaluated, finds_nothing, unjudged
from trtopt.compare.gates import Gate
from trtopt.compare.gates import gate as default_gate
from trtopt.compare.kinds import kind, kinds
from trtopt.types import Comparison, GateResult, OutputDrift, Verdict
from trtopt.wording import counted

_NAMED = 3


def judged(comparison: Comparison, gates: Sequence[Gate]) -> Comparison:
    """Return the comparison with its verdict, gate results and remarks; `gates` are the user's."""
    results = judge(comparison.outputs, gates, comparison.samples)
    remarks = (*_ungated(comparison.outputs, results), *_farthest(comparison.outputs, results))
    return replace(comparison, gates=results, verdict=verdict(results), remarks=remarks)


def verdict(results: Iterable[GateResult | Comparison]) -> Verdict:
    """Return the worst of the verdicts, or `fail` if there are none."""
    verdicts = {result.verdict for result in results}
    if not verdicts or not verdicts <= {"pass", "inconclusive"}:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def judge(
    outputs: Sequence[OutputDrift], gates: Sequence[Gate], samples: int, *, defaults: bool = True
) -> tuple[GateResult, ...]:
    """Return the results of the gates on the outputs.

    With `defaults`, an output without a gate of the user is judged by the default gates of its kind. One with such a
    gate keeps those of them that tell a ruined output, unless the user has a limit for the same metric. The result has
    at least one entry, and a failed one for everything that could not be judged.
    """
    if any("both" in output.counts for output in outputs):  # the labels belong to another output
        outputs = [_without_unfit(output) for output in outputs]
    results = [_nonfinite(output, samples) for output in outputs if output.values.get("nonfinite")]
    if not samples:
        results.append(unjudged("", "samples", 1.0, "there are no samples"))
    elif not outputs:
        results.append(unjudged("", "outputs", 1.0, "there are no outputs"))
    for gate in gates:
        applicable = [output for output in outputs if _applies(gate, output)]
        results += [evaluated(gate, output) for output in applicable]
        if not applicable:
            reason = f"{gate.metric} could not be evaluated: {_why_unable(gate, outputs)}"
            results.append(unjudged(gate.output, gate.metric, gate.limit, reason))
    for output in outputs if defaults else ():
        # A gate on the engine says nothing about drift, and replaces no gate that does.
        asked = {gate.metric for gate in gates if _applies(gate, output)} - {"engine"}
        results += _defaults(output, asked)
    return tuple(results)


def _applies(gate: Gate, output: OutputDrift) -> bool:
    """Return whether the gate is for this output, and the output has its metric."""
    known = gate.metric in output.values or (gate.metric == "matched" and finds_nothing(output))
    return known and gate.output in ("", output.output)


def _defaults(output: OutputDrift, asked: Collection[str]) -> list[GateResult]:
    """Return the results of the default gates on an output that the user has gates on the metrics `asked` for."""
    results = []
    for metric, limit in DEFAULTS.get(output.kind, ()):
        if metric in asked or (asked and metric not in FLOORS):
            continue
        if metric not in output.values and output.values.get("nonfinite"):  # no sample could be measured
            continue
        if metric in output.values or metric not in WHERE_MEASURED:
            results.append(evaluated(default_gate(metric, limit), output, default=True))
    return results


def _without_unfit(output: OutputDrift) -> OutputDrift:
    """Return the output without the remark that the labels do not fit it."""
    return replace(
        output, counts={name: count for name, count in output.counts.items() if name not in ("unfit", "contradicted")}
    )


def _why_unable(gate: Gate, outputs: Sequence[OutputDrift]) -> str:
    """Return why the gate applies to none of the outputs."""
    if not outputs:
        return "nothing was compared"
    named = [output for output in outputs if gate.output in ("", output.output)]
    read = [f"{output.output} ({output.kind})" for output in named]
    bad = [output.output for output in named if output.values.keys() == {"nonfinite"} and output.values["nonfinite"]]
    if bad:
        return f"every sample of {', '.join(bad)} has a NaN or Inf"
    if not read:
        return f"unknown output {gate.output}; the outputs are {', '.join(output.output for output in outputs)}"
    if gate.metric == "engine":
        return "no engine was run: it needs TensorRT and a GPU that it can run on"
    what = "labels that fit" if gate.metric.startswith("accuracy") else "this metric"
    return f"{', '.join(read)} {'does' if len(read) == 1 else 'do'} not have {what}{_other_kind(gate, named)}"


def _other_kind(gate: Gate, outputs: Sequence[OutputDrift]) -> str:
    """Return how to read an output as the kind that has the gate's metric, if both are the only ones."""
    having = [name for name in kinds() if gate.metric in kind(name).METRICS]
    if len(outputs) != 1 or len(having) != 1 or outputs[0].kind in having or kind(having[0]).PLAIN:
        return ""
    return f": if it is {having[0]}, add --kind {shlex.quote(outputs[0].output)}={having[0]}"


def _nonfinite(output: OutputDrift, samples: int) -> GateResult:
    bad = output.values["nonfinite"]
    reason = f"NaN or Inf in {bad:.0f} of {counted(samples, 'sample')}, first in {output.first_bad}"
    return GateResult(
        output=output.output, metric="nonfinite", value=bad, limit=0.0, verdict="fail", reason=reason, default=True
    )


def _ungated(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Return a remark on outputs without a gate. Custom metrics have no default gates."""
    judged = {gate.output for gate in gates}
    free = [output.output for output in outputs if output.output not in judged]
    if not free:
        return []
    return [f"{', '.join(free)} {'has' if len(free) == 1 else 'have'} no gate and did not affect the verdict"]


def _farthest(outputs: Sequence[OutputDrift], gates: Sequence[GateResult]) -> list[str]:
    """Return, per output with a gate that did not pass, a remark with the samples to look at first."""
    failed = {gate.output for gate in gates if not gate.passed}
    worst = {output.output: output.worst[:_NAMED] for output in outputs if output.output in failed}
    return [
        f"output {name} has its lowest SQNR in {', '.join(worst.sample for worst in samples)}"
        for name, samples in worst.items()
        if samples
    ]
