"""Comparison of `trtopt tune` with plain INT8, and with a greedy search as in NNCF, on the networks of `zoo.py`.

    python benchmarks/zoo.py ZOO
    python benchmarks/tune.py ZOO [--models silero ...] [--out tune.json] [--spearman]

The greedy search quantizes everything. While the gates fail, it keeps one more group, in the order of the error at the
outputs with only this group quantized, which it measures on up to 300 samples, NNCF's default. It searches on the same
half of the evaluation samples as `tune`, and both are judged on the other half, by the same gates (the defaults). A
forward pass is one sample run by one candidate.

With `--spearman` also the rank correlation of the estimates with the errors measured on 16 samples is printed.

Touches: the file with the results; a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trtopt.stages as stages
from trtopt.api.search import tune
from trtopt.data.dataset import selected, spread
from trtopt.stages.mixed import Subject, Trials
from trtopt.tune.sequence import unacceptable

NAMES = ("mnist", "silero", "minilm", "efflite0", "ocrrec", "ocrdet")
SHAPES = {
    "ocrdet": {"x": "1x3x320x320:8x3x320x320:32x3x320x320"},
    "ocrrec": {"x": "1x3x48x480:8x3x48x480:32x3x48x480"},
}
RANKED_ON = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="folder that zoo.py filled")
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--out", type=Path, default=Path("tune.json"))
    parser.add_argument("--gate", default="", help="gates beside the default ones")
    parser.add_argument("--spearman", action="store_true")
    args = parser.parse_args()
    for name in args.models:
        row = measure(args.zoo, name, args.gate, spearman=args.spearman)
        rows = json.loads(args.out.read_text()) if args.out.exists() else {}
        rows[f"{name} {args.gate}".strip()] = row
        args.out.write_text(json.dumps(rows, indent=1))
        print(name, json.dumps(row), flush=True)


def measure(zoo: Path, name: str, gate: str, *, spearman: bool) -> dict[str, Any]:
    """Return what `tune`, the greedy search, plain INT8 and all FP16 reach on one network."""
    row: dict[str, Any] = {}
    original = stages.tune

    def both(run: Any, subject: Subject, samples: stages.Halves, plan: Any) -> Any:
        trials = Trials(run, subject)
        judge = judged_by(trials, plan)
        row["fp16"] = judge(samples.verdict, {*trials.groups})
        row["plain"] = {"share": share(trials, ()), **judge(samples.verdict, set())}
        start = time.perf_counter()
        row["greedy"] = greedy(trials, judge, samples) | {"seconds": round(time.perf_counter() - start, 1)}
        if spearman:
            row["spearman"] = correlation(trials, samples)
        start = time.perf_counter()
        found = original(run, subject, samples, plan)
        row["tune"] = {"seconds": round(time.perf_counter() - start, 1)}
        return found

    stages.tune = both
    try:
        with tempfile.TemporaryDirectory(prefix="trtopt-tune-") as folder:
            report = tune(
                zoo / f"{name}.onnx",
                calib=str(zoo / f"{name}.calib.npz"),
                data=str(zoo / f"{name}.eval.npz"),
                shape=SHAPES.get(name),
                gate=gate,
                backend="onnxruntime",
                out=folder,
            )
    finally:
        stages.tune = original
    found = report.tuning
    assert found is not None
    row["tune"] |= {
        "verdict": report.verdict,
        "share": round(found.share, 4),
        "kept": len([group for group in found.groups if not group.quantized]),
        "passes": found.passes,
        "trials": len(found.choices),
    }
    row |= {"groups": len(found.groups), "searched": found.searched, "judged": found.judged}
    return row


def judged_by(trials: Trials, plan: Any) -> Callable[..., dict[str, Any]]:
    """Return a function that judges a choice of groups to keep as it would be built."""

    def judge(samples: Any, kept: Any) -> dict[str, Any]:
        found = trials.judged(samples, trials.nodes(kept), plan.measure, plan.gates, as_built=True)
        sqnr = min((each.values["sqnr"] for each in found.outputs if "sqnr" in each.values), default=0.0)
        return {"verdict": found.verdict, "sqnr": round(sqnr, 2), "gates": found.gates}

    return lambda samples, kept: Row(judge(samples, kept))


class Row(dict[str, Any]):
    """A judgement; its gates are an attribute, and not written."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.gates = values.pop("gates")
        super().__init__(values)


def greedy(trials: Trials, judge: Callable[..., Row], samples: stages.Halves) -> dict[str, Any]:
    """Return the result of reverting the worst group, one after the other, until the gates pass."""
    size = len(samples.search)
    reference = judge(samples.search, {*trials.groups}).gates
    kept: list[Any] = []
    passes, count = 2 * samples.search.samples, 1
    if unacceptable(judge(samples.search, ()).gates, reference) is not None:
        subset = selected(samples.search, spread(size, RANKED_ON))
        errors = trials.alone(subset, trials.groups)
        passes += len(trials.groups) * subset.samples
        for group in sorted(trials.groups, key=lambda each: -errors[each.name]):
            kept.append(group)
            passes += samples.search.samples
            count += 1
            if unacceptable(judge(samples.search, kept).gates, reference) is None:
                break
    final = judge(samples.verdict, kept)
    return {
        **final,
        "share": round(share(trials, kept), 4),
        "kept": len(kept),
        "passes": passes + samples.verdict.samples,
        "trials": count,
    }


def share(trials: Trials, kept: Any) -> float:
    """Return the share of all multiplications that is quantized."""
    names = {group.name for group in kept}
    return round(sum(each for name, each in trials.shares.items() if name not in names), 4)


def correlation(trials: Trials, samples: stages.Halves) -> float:
    """Return Spearman's rank correlation of the estimates with the errors measured on 16 samples."""
    from scipy.stats import spearmanr

    subset = selected(samples.search, spread(len(samples.search), 16))
    estimates = trials.estimated(subset)
    exact = trials.alone(subset, trials.groups)
    pairs = [(estimates[group.name], exact[group.name]) for group in trials.groups]
    return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 3)


if __name__ == "__main__":
    main()
