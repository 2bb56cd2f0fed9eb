"""The cost of calibration, relative to plain inference and to onnxruntime's calibration: ResNet-50, random weights.

    python benchmarks/calibration.py [--samples 32 128] [--skip-peers] [--full]

Each row runs in a process of its own, whose `ru_maxrss` is its peak memory. The rows are interleaved, `--repeats`
times, and the fastest run of each is shown, so that a busy moment does not affect one row only. CPU time depends less
on other work. Loading the session and one warm-up sample are not timed. `once` is the time that does not depend on the
number of samples: writing and loading the tapped copy, and loading the histogram kernels (the first time: compiling
them).

Touches: a temporary folder; numba's cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Cost = tuple[float, float, float]
"""Seconds that do not depend on the number of samples, wall-clock seconds and CPU seconds for all samples."""

SHAPE = (3, 224, 224)
ROWS = {
    "bare": "plain FP32, batch 1",
    "bare8": "plain FP32, batch 8",
    "trtopt": "trtopt entropy",
    "ort": "quantize_static Entropy",
}
PEER_SAMPLES = 32
"""onnxruntime keeps all activations in memory, about 0.1 GB per sample here: larger sets only with --full."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-peers", action="store_true", help="skip onnxruntime's quantize_static")
    parser.add_argument("--full", action="store_true", help=f"run it for more than {PEER_SAMPLES} samples as well")
    parser.add_argument("--row", choices=["prepare", "compile", *ROWS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(run_row(args.row, args.folder, args.samples[0])))
        return
    with tempfile.TemporaryDirectory(prefix="trtopt-bench-") as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    spawn("prepare", folder, max(args.samples))
    first, again = (spawn("compile", folder, 1)["once"] for _ in range(2))
    console = Console()
    console.print(f"histogram kernels: {first:.2f} s to compile or load, {again:.2f} s to load again")
    for samples in args.samples:
        with_peer = not args.skip_peers and (samples <= PEER_SAMPLES or args.full)
        best: dict[str, dict[str, float]] = {}
        for turn in range(args.repeats):
            # The peer is slow: once is enough.
            peer = ("ort",) if with_peer and turn == 0 else ()
            for row in ("bare", "bare8", "trtopt", *peer):
                result = spawn(row, folder, samples)
                if row not in best or result["seconds"] < best[row]["seconds"]:
                    best[row] = result
        table = Table(title=f"ResNet-50, {samples} samples")
        table.add_column("", no_wrap=True)
        for column in ("s", "ms/sample", "cpu ms", "once s", "x plain", "x plain cpu", "x trtopt", "peak MB"):
            table.add_column(column, justify="right")
        for row, result in best.items():
            seconds = result["seconds"]
            table.add_row(
                ROWS[row],
                f"{seconds:.2f}",
                f"{1000 * seconds / samples:.1f}",
                f"{1000 * result['cpu'] / samples:.1f}",
                f"{result['once']:.2f}",
                f"{seconds / best['bare']['seconds']:.2f}",
                f"{result['cpu'] / best['bare']['cpu']:.2f}",
                f"{seconds / best['trtopt']['seconds']:.2f}",
                f"{result['peak_mb']:.0f}",
            )
        console.print(table)
        if not with_peer:
            console.print("quantize_static was skipped")


def spawn(row: str, folder: Path, samples: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--row", row, "--folder", str(folder), "--samples", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{row} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_row(row: str, folder: Path, samples: int) -> dict[str, float]:
    rows = {
        "prepare": prepare,
        "compile": load_kernels,
        "bare": lambda folder, samples: bare(folder, samples, 1),
        "bare8": lambda folder, samples: bare(folder, samples, 8),
        "trtopt": trtopt,
        "ort": onnxruntime_entropy,
    }
    once, seconds, cpu = rows[row](folder, samples)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"once": once, "seconds": seconds, "cpu": cpu, "peak_mb": peak}


def prepare(folder: Path, samples: int) -> Cost:
    import numpy as np
    from models import resnet50

    resnet50(folder / "model.onnx")
    random = np.random.default_rng(0)
    for i in range(samples):
        np.save(folder / f"{i}.npy", random.standard_normal((1, *SHAPE), np.float32))
    return 0.0, 0.0, 0.0


def load_kernels(_folder: Path, _samples: int) -> Cost:
    start = time.perf_counter()
    from trtopt.calibrate import kernels  # noqa: F401

    return time.perf_counter() - start, 0.0, 0.0


class Clock:
    """A clock that starts when it is created, for wall-clock time and for CPU time of all threads."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the wall-clock seconds and the CPU seconds since the start."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def dataset(folder: Path, samples: int) -> Any:
    import numpy as np

    from trtopt.data.dataset import Dataset

    return Dataset(
        source="random",
        digest="random",
        ids=tuple(str(i) for i in range(samples)),
        load=lambda i: {"input": np.load(folder / f"{i}.npy")},
        batched=True,
    )


def bare(folder: Path, samples: int, size: int) -> Cost:
    from trtopt.data.dataset import batches
    from trtopt.engine.onnxruntime import open_runner

    start = time.perf_counter()
    run = open_runner(folder / "model.onnx").run
    once = time.perf_counter() - start
    run(next(batches(dataset(folder, samples), size)).feed)
    clock = Clock()
    for batch in batches(dataset(folder, samples), size):
        run(batch.feed)
    return once, *clock.read()


def trtopt(folder: Path, samples: int) -> Cost:
    from trtopt.calibrate.observe import callers, tap
    from trtopt.calibrate.source import observe_where_it_runs
    from trtopt.calibrate.table import make_table
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.events import silent
    from trtopt.graph.file import describe

    model = describe(folder / "model.onnx")
    names = tensors(model.path)
    start = time.perf_counter()
    from trtopt.calibrate import kernels  # noqa: F401

    tap(model, names, folder / "tapped.onnx")
    runner = open_runner(folder / "tapped.onnx", callers=callers())
    once = time.perf_counter() - start
    observe_where_it_runs(runner, names, dataset(folder, callers()), stage="calibrate", emit=silent)
    clock = Clock()
    data = dataset(folder, samples)
    histograms = observe_where_it_runs(runner, names, data, stage="calibrate", emit=silent)
    make_table("entropy", histograms, model=model, dataset=data)
    return once, *clock.read()


def tensors(path: Path) -> list[str]:
    """Return the tensors that INT8 quantizes in this network.

    They are the inputs of Conv, Gemm and the final pool, and the skip input of each Add.
    """
    import onnx

    names = []
    for node in onnx.load(path).graph.node:
        if node.op_type in ("Conv", "Gemm", "GlobalAveragePool"):
            names.append(node.input[0])
        if node.op_type == "Add":
            names.append(node.input[1])
    return list(dict.fromkeys(names))


def onnxruntime_entropy(folder: Path, samples: int) -> Cost:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[Any] = iter(range(samples))
            self.data = dataset(folder, samples)

        def get_next(self) -> Any:
            index = next(self.samples, None)
            return None if index is None else self.data.load(index)

    clock = Clock()
    quantize_static(
        folder / "model.onnx",
        folder / "ort.onnx",
        Reader(),
        calibrate_method=CalibrationMethod.Entropy,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True},
    )
    return 0.0, *clock.read()


if __name__ == "__main__":
    main()
