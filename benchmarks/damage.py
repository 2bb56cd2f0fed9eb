"""Count which damaged INT8 graphs the default gates of `trtopt compare` catch.

    python benchmarks/damage.py ZOO [--models digits mnist ...]

Run it from the root of the repository, with the folder ZOO that `zoo.py` filled. The damages (`damages.py`) are seeded.
`compare` sees half of the evaluation samples. On the other half a judge that shares no code with `compare` measures the
task score and the cosine of each sample with FP32. The results are kept in `RUNS/damage.json`, and the page is written
from all results in it: networks may be measured one at a time.

Touches: RUNS (`damage.json`, and a run directory for each network, made where it is missing), the page, a temporary
folder.
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
from damage_models import DRAWN, ROOT, Case, converted, drawn, opened
from damage_page import page
from damages import KINDS, damaged
from quality import machine
from tasks import Array, Evaluated, cosine

from trtopt.compare.gate import judged
from trtopt.compare.pair import Pair, Runner
from trtopt.compare.run import Measure, compare
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
    parser.add_argument("zoo", type=Path, help="folder that zoo.py filled")
    parser.add_argument("--models", nargs="+", choices=list(DRAWN), default=list(DRAWN))
    parser.add_argument("--runs", type=Path, default=ROOT / "trtopt-out/damage", help="folder of run directories")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/damage.md")
    args = parser.parse_args()
    results = args.runs / "damage.json"
    for name in args.models:
        found = measure(Trial(converted(opened(name, args.runs / name, args.zoo))))
        kept = json.loads(results.read_text()) if results.exists() else {}
        kept[name] = found
        results.write_text(json.dumps({key: kept[key] for key in DRAWN if key in kept}, indent=1))
        args.out.write_text(page(json.loads(results.read_text())))


def measure(trial: Trial) -> Record:
    """Return the results for one network: the record of its undamaged INT8 graph, and those of the damaged ones."""
    start = time.perf_counter()
    name, task, damages = trial.case.name, trial.case.task, []
    for kind in KINDS:
        for record in trial.damages(kind, drawn(name, kind)):
            damages.append(record)
            print(f"{name}: {record['what']}: {record['verdict']}, {record['task']}, {record['cosine']}", flush=True)
    return {
        "metric": task.metric if task else "",
        "samples": [len(next(iter(feed.values()))) for feed in (trial.seen, trial.unseen)],
        "fp32": trial.score(trial.reference),
        "ran": trial.ran,
        "machine": machine(),
        "seconds": time.perf_counter() - start,
        "undamaged": trial.undamaged,
        "damages": damages,
    }


class Trial:
    """A network with its FP32 outputs, ready for damaged graphs to be judged.

    A record of a graph holds the `verdict` and the `gates` of `compare` on the seen samples with default gates, and all
    of its metrics as `values`; on the unseen samples, the `task` score in percent, and for each output the `cosine` of
    the worst sample.

    Attributes:
        case: the network.
        seen: the samples that `compare` sees, by input name.
        unseen: the samples that only the judge sees, by input name.
        reference: the outputs of FP32 for the unseen samples, by output name.
        ran: where the graphs run.
        undamaged: the record of the INT8 graph as trtopt made it.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.seen, self.unseen = ({key: array[half] for key, array in case.feed.items()} for half in (SEEN, UNSEEN))
        fp32, int8 = open_runner(case.fp32), open_runner(case.typed)
        self.reference, self.ran = run(fp32, self.unseen), int8.where
        self._baseline = Recalled(fp32, self.seen)
        self._dataset = _dataset(case, self.seen)
        self._model = onnx.load(case.typed)
        self._outputs = run(int8, self.unseen)
        self.undamaged = self._record(int8, self._outputs)

    def damages(self, kind: str, count: int) -> Iterator[Record]:
        """Yield the records of `count` different damages of one kind, spread over the layers.

        A damage that changes no output is drawn again.

        Raises:
            RuntimeError: the network does not have that many.
        """
        random = np.random.default_rng([SEED, zlib.crc32(f"{self.case.name} {kind}".encode())])
        done: set[str] = set()
        for i in range(count):
            for attempt in range(ATTEMPTS):
                # In a small network, this part of the layers may be used up.
                place = (i + random.random()) / count if attempt < ATTEMPTS // 2 else random.random()
                model, what = damaged(self._model, kind, place, random)
                record = None if what in done else self.record(model)
                done.add(what)
                if record:
                    yield {"kind": kind, "what": what, **record}
                    break
            else:
                raise RuntimeError(f"{self.case.name} has fewer than {count} different damages of the kind {kind!r}")

    def record(self, model: onnx.ModelProto) -> Record | None:
        """Return the record of a graph, or None if its outputs are those of the undamaged graph."""
        with tempfile.TemporaryDirectory(prefix="trtopt-damage-") as folder:
            path = Path(folder) / "damaged.onnx"
            onnx.save(model, path)
            runner = open_runner(path)
        outputs = run(runner, self.unseen)
        same = all(np.array_equal(outputs[name], array) for name, array in self._outputs.items())
        return None if same else self._record(runner, outputs)

    def _record(self, runner: Runner, outputs: Feed) -> Record:
        pair = Pair(baseline=self._baseline, candidate=runner, names=("fp32.onnx", "typed.onnx"))
        found = judged(compare(pair, self._dataset, Measure(), emit=silent), gates=())
        return {
            "verdict": found.verdict,
            "gates": [[gate.output, gate.metric, gate.value, gate.limit, gate.verdict] for gate in found.gates],
            "values": {output.output: dict(output.values) for output in found.outputs},
            "task": self.score(outputs),
            "cosine": {
                name: float(np.min([*map(cosine, rows, outputs[name])]))  # np.min keeps a NaN
                for name, rows in self.reference.items()
            },
        }

    def score(self, outputs: Feed) -> float | None:
        """Return the task score of the first output for the unseen samples, or None if there is no task."""
        task, truth = self.case.task, self.case.truth
        if task is None:
            return None
        first = next(iter(self.reference))
        kept, reference = ([task.keep(row[None]) for row in each[first]] for each in (outputs, self.reference))
        return task.score(Evaluated(kept, reference, None if truth is None else truth[UNSEEN], self.case.plan.source))


class Recalled:
    """A runner that returns the outputs of an earlier run of the same samples."""

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
