"""The cost of `compare`, relative to running both models on the same samples.

    python benchmarks/compare.py [--samples 1000 10000] [--repeats 3] [--model MODEL.onnx --data SAMPLES.npz]

The model is compared with itself, in one session per side, because a slower candidate would hide the cost of the
comparison. Plain inference runs the same sessions on the same batches from the same loader. If there are fewer samples
than requested, they are repeated.

Each row runs in a process of its own. Opening the sessions is not timed. `once` is the time of the same work on two
batches, for imports and first runs, before the measurement. The rows are interleaved, `--repeats` times, and the
fastest run of each is shown. Peak memory is `ru_maxrss` of the process, including Python, numpy and onnxruntime.

Touches: reads the samples; prints a table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIGITS = Path(__file__).resolve().parent.parent / "samples/digits"
ROWS = {"bare": "plain, both models", "compare": "compare"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, default=DIGITS / "model.onnx")
    parser.add_argument("--data", type=Path, default=DIGITS / "eval.npz", help="arrays by input name, and `labels`")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(run_row(args.row, args.model, args.data, args.samples[0])))
    else:
        show(args)


def show(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{args.model.parent.name}/{args.model.name}, batches of 8")
    for column in ("samples", "", "once s", "s", "ms/sample", "x plain", "peak MB"):
        table.add_column(column, justify="left" if not column else "right")
    for samples in args.samples:
        best: dict[str, dict[str, float]] = {}
        for _ in range(args.repeats):
            for row in ROWS:
                result = spawn(row, args, samples)
                if row not in best or result["seconds"] < best[row]["seconds"]:
                    best[row] = result
        for row, result in best.items():
            seconds = result["seconds"]
            table.add_row(
                str(samples),
                ROWS[row],
                f"{result['once']:.2f}",
                f"{seconds:.2f}",
                f"{1000 * seconds / samples:.3f}",
                f"{seconds / best['bare']['seconds']:.2f}",
                f"{result['peak_mb']:.1f}",
            )
    Console().print(table)


def spawn(row: str, args: argparse.Namespace, samples: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--row", row, "--samples", str(samples)]
    done = subprocess.run(
        [*command, "--model", args.model, "--data", args.data], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{row} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_row(row: str, model: Path, data: Path, samples: int) -> dict[str, float]:
    from trtopt.compare.pair import Pair
    from trtopt.compare.run import BATCH, Measure, compare
    from trtopt.data.dataset import batches
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.events import silent

    runners = open_runner(model), open_runner(model)
    pair = Pair(baseline=runners[0], candidate=runners[1], names=("fp32", "candidate"))

    def bare(dataset: Any) -> None:
        for batch in batches(dataset, BATCH):
            for runner in runners:
                runner.run(batch.feed)

    work = {"bare": bare, "compare": lambda dataset: compare(pair, dataset, Measure(), emit=silent)}[row]
    once, seconds = (clocked(work, read(data, runners[0].inputs, count)) for count in (2 * BATCH, samples))
    return {"once": once, "seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def clocked(work: Callable[[Any], object], dataset: Any) -> float:
    start = time.perf_counter()
    work(dataset)
    return time.perf_counter() - start


def read(path: Path, inputs: tuple[str, ...], samples: int) -> Any:
    import numpy as np

    from trtopt.data.dataset import Dataset

    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    labels = arrays.pop("labels", None)
    count = len(arrays[inputs[0]])
    return Dataset(
        source=path.name,
        digest="",
        ids=tuple(f"{path.name}[{i}]" for i in range(samples)),
        load=lambda i: {name: arrays[name][i % count : i % count + 1] for name in inputs},
        batched=True,
        labels=None if labels is None else tuple(int(labels[i % count]) for i in range(samples)),
    )


if __name__ == "__main__":
    main()
