"""Comparison of `trtopt tune` with plain INT8, a greedy search as in NNCF, and the placement of ModelOpt.

    python benchmarks/zoo.py ZOO
    python benchmarks/tune.py ZOO [--models silero ...] [--modelopt-python MODELOPT/bin/python] [--spearman]

Besides the networks of `zoo.py`, two of the tests are measured (`tests/nets`), with random weights. Each has the
default gates first, then a strict one: an output SQNR that is 6 dB above that of plain INT8, which is half of its
error.

The greedy search quantizes everything. While the gates fail, it keeps one more group, in the order of the error at the
outputs with only this group quantized, which it measures on up to 300 samples, NNCF's default. It searches on the same
half of the evaluation samples as `tune`, and both are judged on the other half, by the same gates. A forward pass is
one sample run by one candidate. ModelOpt's placement is judged with the scales of trtopt.

With `--spearman` also the rank correlation of the estimates with the errors measured on 16 samples is written.

Touches: the file with the results; a folder with the runs; networks of the tests that the zoo lacks.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tasks import TASKS, Evaluated, Task, labels

import trtopt.stages as stages
from trtopt.api.search import tune
from trtopt.compare.gate import judged
from trtopt.compare.pair import Pair
from trtopt.data.dataset import Dataset, batches, selected, spread
from trtopt.events import silent
from trtopt.plan import ConvertPlan
from trtopt.stages.compare import measured
from trtopt.stages.mixed import Remembered, Subject, Trials
from trtopt.tune.sequence import unacceptable

ROOT = Path(__file__).resolve().parent.parent
ZOO = ("mnist", "silero", "minilm", "ocrrec", "efflite0", "ocrdet")
TESTED = ("vit", "mobilenet")
SHAPES = {
    "ocrdet": {"x": "1x3x320x320:8x3x320x320:32x3x320x320"},
    "ocrrec": {"x": "1x3x48x480:8x3x48x480:32x3x48x480"},
}
METHODS = ("tune", "plain", "fp16", "modelopt", "greedy")
RANKED_ON = 300
HALF = 20 * math.log10(2)
"""dB by which half of the error is better."""
AS_FP32 = Task("as FP32 %", lambda output: np.asarray(output.ravel().argmax()), lambda each: _same(each))

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="folder that zoo.py filled")
    parser.add_argument("--models", nargs="+", choices=(*ZOO, *TESTED), default=[*ZOO, *TESTED])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--gates", nargs="+", choices=("default", "strict"), default=["default", "strict"])
    parser.add_argument("--out", type=Path, default=Path("tune.json"))
    parser.add_argument("--work", type=Path, help="folder that keeps the calibrations for the next time")
    parser.add_argument("--modelopt-python", type=Path, help="Python of ModelOpt; without it ModelOpt is skipped")
    parser.add_argument("--spearman", action="store_true")
    args = parser.parse_args()
    for name in args.models:
        with tempfile.TemporaryDirectory(prefix="trtopt-tune-") as folder:
            Measured(args, name, args.work / name if args.work else Path(folder)).all()
    print(table(json.loads(args.out.read_text())))


class Measured:
    """The measurements of one network."""

    def __init__(self, args: argparse.Namespace, name: str, work: Path) -> None:
        self.args = args
        self.name = name
        self.work = work
        self.errors: dict[str, float] = {}
        self.runners: dict[frozenset[str], Remembered] = {}
        self.placed: set[str] = set()

    def all(self) -> None:
        """Write the rows of all gates and methods, each as soon as it is known."""
        if self.name in TESTED:
            export(self.args.zoo, self.name)
        for kind in self.args.gates:
            gate = "" if kind == "default" else f"sqnr={self.rows('default')['plain']['searched'] + HALF:.2f}"
            self.convert(kind, gate)

    def rows(self, kind: str) -> dict[str, Row]:
        """Return what is known by method."""
        return dict(self.read().get(f"{self.name} {kind}", {}))

    def read(self) -> dict[str, Any]:
        """Return the content of the file with the results."""
        return dict(json.loads(self.args.out.read_text())) if self.args.out.exists() else {}

    def write(self, kind: str, **rows: Any) -> None:
        """Add rows to the file with the results, and print them."""
        found = self.read()
        found.setdefault(f"{self.name} {kind}", {}).update(rows)
        self.args.out.write_text(json.dumps(found, indent=1))
        print(self.name, kind, json.dumps(rows), flush=True)

    def convert(self, kind: str, gate: str) -> None:
        """Run `trtopt tune`, and the other methods in the place of its search."""
        original = stages.tune
        zoo, start = self.args.zoo, time.perf_counter()

        def instead(run: Any, subject: Subject, samples: stages.Halves, plan: ConvertPlan, *more: Any) -> Any:
            nonlocal start
            others = Others(self, Trials(run, subject), samples, plan)
            asked = [each for each in METHODS if each in self.args.methods and each != "tune"]
            if "tune" not in self.args.methods:
                for each in asked:
                    self.write(kind, **{each: getattr(others, each)()})
                raise Done
            start = time.perf_counter()
            run.store.discard("tune")  # an earlier version of this program may have made it
            target, found = original(run, subject, samples, plan, *more)
            seconds = time.perf_counter() - start
            kept = [
                group
                for group in others.trials.groups
                if group.name in {g.name for g in found.groups if not g.quantized}
            ]
            row = others.judged(samples.verdict, kept)
            passes = {"passes": found.passes, "verdict passes": found.judging, "trials": len(found.choices)}
            self.write(kind, gate=gate, groups=len(found.groups), samples=[found.searched, found.judged],
                       tune={**row, **passes, "seconds": round(seconds, 1)})  # fmt: skip
            for each in asked:
                self.write(kind, **{each: getattr(others, each)()})
            if self.args.spearman and kind == "default":
                self.write(kind, spearman=others.correlation())
            return target, found

        stages.tune = instead
        try:
            tune(
                zoo / f"{self.name}.onnx",
                calib=str(zoo / f"{self.name}.calib.npz"),
                data=str(zoo / f"{self.name}.eval.npz"),
                shape=SHAPES.get(self.name),
                gate=gate,
                backend="onnxruntime",
                out=self.work,
            )
        except Done:
            pass
        finally:
            stages.tune = original


class Done(Exception):  # noqa: N818
    """Nothing else is measured: the conversion ends."""


class Others:
    """The methods that `tune` is compared with, on one network."""

    def __init__(self, measured: Measured, trials: Trials, samples: stages.Halves, plan: ConvertPlan) -> None:
        self.of = measured
        self.trials = trials
        self.samples = samples
        self.plan = plan

    def plain(self) -> Row:
        """Return the result of quantizing everything, and its SQNR on the half that is searched on."""
        searched = self.results(self.samples.search, ())[1]
        return {**self.judged(self.samples.verdict, ()), "searched": searched}

    def fp16(self) -> Row:
        """Return the result of quantizing nothing."""
        return self.judged(self.samples.verdict, self.trials.groups)

    def modelopt(self) -> Row | None:
        """Return the result of quantizing what ModelOpt quantizes; None without it."""
        python = self.of.args.modelopt_python
        if python is None:
            return None
        if not self.of.placed:
            self.of.placed = placed(python, self.of.args.zoo, self.of.name)
        nodes = {node.name: {node.name, *(value.name for value in node.outputs)} for node in self.trials.graph.graph}
        groups = self.trials.groups
        kept = [group for group in groups if not any(nodes[node] & self.of.placed for node in group.nodes)]
        return self.judged(self.samples.verdict, kept)

    def greedy(self) -> Row:
        """Return the result of reverting the worst group, one after the other, until the gates pass."""
        search, start = self.samples.search, time.perf_counter()
        reference = self.results(search, self.trials.groups)[0]
        kept: list[Any] = []
        passes, count = 2 * search.samples, 1
        if unacceptable(self.results(search, ())[0], reference) is not None:
            subset = selected(search, spread(len(search), RANKED_ON))
            self.of.errors = self.of.errors or self.trials.alone(subset, self.trials.groups)
            passes += len(self.trials.groups) * subset.samples
            for group in sorted(self.trials.groups, key=lambda each: -self.of.errors[each.name]):
                kept.append(group)
                passes += search.samples
                count += 1
                if unacceptable(self.results(search, kept)[0], reference) is None:
                    break
        row = self.judged(self.samples.verdict, kept)
        more = {"passes": passes, "verdict passes": self.samples.verdict.samples, "trials": count}
        return {**row, **more, "seconds": round(time.perf_counter() - start, 1)}

    def correlation(self) -> float:
        """Return Spearman's rank correlation of the estimates with the errors measured on 16 samples."""
        from scipy.stats import spearmanr

        subset = selected(self.samples.search, spread(len(self.samples.search), 16))
        estimates = self.trials.estimated(subset)
        exact = self.trials.alone(subset, self.trials.groups)
        pairs = [(estimates[group.name], exact[group.name]) for group in self.trials.groups]
        return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 3)

    def judged(self, samples: Dataset, kept: Sequence[Any]) -> Row:
        """Return how a choice of groups to keep is judged on samples, as it would be built, and its task score."""
        gates, sqnr = self.results(samples, kept)
        worst = {gate.verdict for gate in gates}
        verdict = next(each for each in ("fail", "inconclusive", "pass") if each in worst)
        names = {group.name for group in kept}
        share = sum(each for name, each in self.trials.shares.items() if name not in names)
        return {
            "verdict": verdict, "sqnr": sqnr, "task": self.score(samples, kept), "kept": len(kept),
            "share": round(share, 4),
        }  # fmt: skip

    def results(self, samples: Dataset, kept: Sequence[Any]) -> tuple[Any, float]:
        """Return the results of the gates, and the lowest SQNR of the outputs in dB."""
        pair = Pair(baseline=self.trials.baseline, candidate=self.runner(kept), names=("", ""))
        found = judged(measured(pair, samples, self.plan.measure, silent), self.plan.gates)
        sqnr = min((each.values["sqnr"] for each in found.outputs if "sqnr" in each.values), default=math.nan)
        return found.gates, round(sqnr, 2)

    def runner(self, kept: Sequence[Any]) -> Remembered:
        """Return the network as it would be built; those that both gates ask for are remembered, and the last one."""
        key = frozenset(self.trials.nodes(kept))
        found = self.of.runners.get(key)
        if found is None:
            for last in list(self.of.runners)[2:]:
                del self.of.runners[last]
            found = self.of.runners[key] = Remembered(self.trials.quantized(key, self.plan.rest))
        return found

    def score(self, samples: Dataset, kept: Sequence[Any]) -> float:
        """Return the task score on the half of the evaluation samples that the verdict rests on."""
        task = TASKS.get(self.of.name, AS_FP32)
        pairs: list[list[Any]] = []
        for runner in (self.runner(kept), self.trials.baseline):
            pairs.append([])
            for batch in batches(samples, 8):
                output = np.asarray(next(iter(runner.run(batch.feed).values())))
                rows = [output] if not samples.batched else [output[i : i + 1] for i in range(len(output))]
                pairs[-1] += map(task.keep, rows)
        truth = labels(self.of.args.zoo, self.of.name)
        model = self.of.args.zoo / f"{self.of.name}.onnx"
        return round(task.score(Evaluated(*pairs, truth[1::2] if truth is not None else None, model)), 2)


def _same(evaluated: Evaluated) -> float:
    """Return the share of samples whose class is FP32's."""
    pairs = zip(evaluated.kept, evaluated.reference, strict=True)
    return 100 * float(np.mean([int(kept) == int(reference) for kept, reference in pairs]))


def placed(python: Path, zoo: Path, name: str) -> set[str]:
    """Return the names of the nodes that ModelOpt quantizes, and of their outputs."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        paths = f"Path({str(zoo)!r}), {name!r}, Path({folder!r})"
        code = f"from pathlib import Path; import peers; peers.quantize('max', {paths})"
        subprocess.run([python, "-c", code], cwd=ROOT / "benchmarks", check=True, stdout=sys.stderr)
        graph = onnx.load(Path(folder) / "model.onnx").graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {text for node in graph.node if {*node.input} & dequantized for text in (node.name, *node.output)}


def export(zoo: Path, name: str) -> None:
    """Write a network of the tests and its samples to the zoo, unless it is there."""
    if (zoo / f"{name}.onnx").exists():
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from nets.catalog import NETWORKS, Form
    from nets.catalog import export as exported

    exported(name, Form("script", 17), zoo / f"{name}.onnx")
    for part, count, seed in (("calib", 100, 1), ("eval", 400, 2)):
        np.savez(zoo / f"{name}.{part}.npz", **NETWORKS[name].draw(count, 40, np.random.default_rng(seed)))


def table(rows: dict[str, Any]) -> str:
    """Return the table of `docs/tune.md`."""
    shown = {"fp16": "FP16", "plain": "plain INT8", "modelopt": "ModelOpt", "greedy": "greedy", "tune": "tune"}
    lines = [
        f"| network, gates | task | {' | '.join(shown.values())} | passes of greedy | passes of tune |",
        "|" + "---|" * (len(shown) + 4),
    ]
    for name in (*ZOO, *TESTED):
        for kind in ("default", "strict"):
            found = rows.get(f"{name} {kind}")
            if found is None:
                continue
            gates = f"`{found['gate']}`" if found.get("gate") else "default"
            cells = [f"{name}, {gates}", TASKS.get(name, AS_FP32).metric.removesuffix(" %")]
            cells += [_cell(found.get(method)) for method in shown]
            cells += [_passes(found.get(method)) for method in ("greedy", "tune")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    return f"{row['verdict']}, {100 * row['share']:.1f} %, {row['task']:.1f}" if row else ""


def _passes(row: Row | None) -> str:
    return f"{row['passes']:,} + {row['verdict passes']:,}" if row and "passes" in row else ""


if __name__ == "__main__":
    main()
