"""Whether the default gates of `trtopt compare` catch damaged INT8 graphs, by a judge that shares no code with them.

    python benchmarks/damage.py [ZOO] [--models digits mnist ...]

Run it from the root of the repository. The damages (`damages.py`) are seeded. `compare` sees half of the evaluation
samples; on the other half the judge measures the task, and each sample's cosine with FP32. Without the ZOO that
`zoo.py` filled, only networks of `samples/` are damaged. What is measured is kept in `RUNS/damage.json`, and the page
is written from all that is there: networks may be measured in turn.

Touches: RUNS (run directories, which are made where they are missing, and `damage.json`), the page, a temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from damage_models import DRAWN, ROOT, ZOO, Case, drawn, opened, ready
from damage_page import page
from damages import KINDS, damaged
from quality import machine
from tasks import Array, Evaluated, cosine

from trtopt.compare.gate import judged
from trtopt.compare.run import Measure, Pair, Runner, compare
from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import open_runner
from trtopt.events import silent

SEED = 0
BATCH = 8
ATTEMPTS = 100
SEEN, UNSEEN = slice(0, None, 2), slice(1, None, 2)
"""The samples that `compare` sees, and those that only the judge sees."""

Feed = Mapping[str, Array]
Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, nargs="?", help="folder that zoo.py filled")
    parser.add_argument("--models", nargs="+", choices=list(DRAWN), help="default: all, without ZOO those of samples/")
    parser.add_argument("--runs", type=Path, default=ROOT / "trtopt-out/damage", help="folder of run directories")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/damage.md")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    results = args.runs / "damage.json"
    for name in args.models or [name for name in DRAWN if args.zoo or name not in ZOO]:
        found = measure(Bench(ready(opened(name, args.runs / name, args.zoo))))
        kept = json.loads(results.read_text()) if results.exists() else {}
        kept[name] = found
        results.write_text(json.dumps({key: kept[key] for key in DRAWN if key in kept}, indent=1))
        args.out.write_text(page(json.loads(results.read_text())))


def measure(bench: Bench) -> Record:
    """Return what the gates and the judge say of the INT8 network as it is, and of every damage drawn for it."""
    start = time.perf_counter()
    name, damages = bench.case.name, []
    for kind in KINDS:
        for record in bench.damages(kind, drawn(name, kind)):
            damages.append(record)
            print(f"{name}: {record['what']}: {record['verdict']}, {record['task']}, {record['cosine']}", flush=True)
    return {
        "metric": bench.case.task.metric if bench.case.task else "",
        "samples": [len(next(iter(feed.values()))) for feed in (bench.seen, bench.unseen)],
        "fp32": bench.task(bench.reference),
        "ran": bench.ran,
        "machine": machine(),
        "seconds": time.perf_counter() - start,
        "undamaged": bench.undamaged,
        "damages": damages,
    }


class Bench:
    """A network on the bench: `undamaged` is the record of its INT8 graph, and `damages` yields those of damaged ones.

    A record holds the `verdict` of the default gates on the samples that `compare` sees, the `gates`, and all metrics
    in `values`; of the other samples the `task` in percent, and by output the `cosine` of the worst one.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.seen, self.unseen = ({key: array[half] for key, array in case.feed.items()} for half in (SEEN, UNSEEN))
        fp32 = open_runner(case.fp32)
        self._baseline = Recalled(fp32, self.seen)
        self._dataset = _dataset(case, self.seen)
        self.reference = run(fp32, self.unseen)
        self.ran = open_runner(case.typed).where
        self._model = onnx.load(case.typed)
        self._outputs: Feed = {}
        self.undamaged = self.record(self._model)
        assert self.undamaged is not None

    def damages(self, kind: str, count: int) -> Iterator[Record]:
        """Yield `count` records of different damages of a kind, from the first layers to the last.

        Those after which all numbers are the same are drawn again.
        """
        random = np.random.default_rng([SEED, zlib.crc32(f"{self.case.name} {kind}".encode())])
        done: set[str] = set()
        for i in range(count):
            yield self._drawn(kind, (i, count), random, done)

    def _drawn(self, kind: str, turn: tuple[int, int], random: np.random.Generator, done: set[str]) -> Record:
        i, count = turn
        for attempt in range(ATTEMPTS):
            # A small network may have nothing left in this part of it.
            place = (i + random.random()) / count if attempt < ATTEMPTS // 2 else random.random()
            model, what = damaged(self._model, kind, place, random)
            if what in done:
                continue
            done.add(what)
            if record := self.record(model):
                return {"kind": kind, "what": what, **record}
        raise RuntimeError(f"{self.case.name} has no {count} different damages of the kind {kind!r}")

    def record(self, model: onnx.ModelProto) -> Record | None:
        """Return what gates and judge say of a graph; None where its numbers are those of the undamaged one."""
        with tempfile.TemporaryDirectory(prefix="trtopt-damage-") as folder:
            path = Path(folder) / "damaged.onnx"
            onnx.save(model, path)
            runner = open_runner(path)
        outputs = run(runner, self.unseen)
        if self._outputs and all(np.array_equal(outputs[name], array) for name, array in self._outputs.items()):
            return None
        self._outputs = self._outputs or outputs
        pair = Pair(baseline=self._baseline, candidate=runner, names=("fp32.onnx", "damaged.onnx"))
        found = judged(compare(pair, self._dataset, Measure(), emit=silent), gates="")
        return {
            "verdict": found.verdict,
            "gates": [[gate.output, gate.metric, gate.value, gate.limit, gate.verdict] for gate in found.gates],
            "values": {output.output: dict(output.values) for output in found.outputs},
            "task": self.task(outputs),
            "cosine": {
                name: float(np.min([*map(cosine, rows, outputs[name])]))  # np.min keeps a NaN
                for name, rows in self.reference.items()
            },
        }

    def task(self, outputs: Feed) -> float | None:
        """Return the score of the first output on the samples that `compare` does not see."""
        task, truth = self.case.task, self.case.truth
        if task is None:
            return None
        first = next(iter(self.reference))
        kept, reference = ([task.keep(row[None]) for row in each[first]] for each in (outputs, self.reference))
        return task.score(Evaluated(kept, reference, None if truth is None else truth[UNSEEN], self.case.plan.source))


class Recalled:
    """A network that was run on all samples, and gives again what it gave for each."""

    def __init__(self, runner: Runner, feed: Feed) -> None:
        self.where = runner.where
        self._outputs = run(runner, feed)
        self._rows = {key: row for row, key in enumerate(_digests(feed))}

    def run(self, feed: Feed) -> dict[str, Array]:
        """Return the outputs for some of the samples."""
        rows = [self._rows[key] for key in _digests(feed)]
        return {name: array[rows] for name, array in self._outputs.items()}


def run(runner: Runner, feed: Feed) -> dict[str, Array]:
    """Return the outputs for all samples, joined along the first axis."""
    count = len(next(iter(feed.values())))
    parts = [
        runner.run({name: array[start : start + BATCH] for name, array in feed.items()})
        for start in range(0, count, BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _digests(feed: Feed) -> list[bytes]:
    rows = zip(*(feed[name] for name in sorted(feed)), strict=True)
    return [hashlib.blake2b(b"".join(array.tobytes() for array in row)).digest() for row in rows]


def _dataset(case: Case, feed: Feed) -> Dataset:
    count = len(next(iter(feed.values())))
    return Dataset(
        source="seen",
        digest="",
        ids=tuple(f"seen[{i}]" for i in range(count)),
        load=lambda i: {name: array[i : i + 1] for name, array in feed.items()},
        batched=True,
        labels=tuple(map(int, case.truth[SEEN])) if case.classes and case.truth is not None else None,
    )


if __name__ == "__main__":
    main()
