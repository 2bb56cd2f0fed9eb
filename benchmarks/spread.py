"""How calibration and comparison of ResNet-50 scale with the workers of a Ray cluster, as ratios to one worker.

    python benchmarks/spread.py FOLDER [--gpus] [--workers 1 2] [--samples 100000] [--compare-samples 20000]

Images are made on the workers: uint8, 224x224x3, random with their index as the seed, and normalized to float32. Each
run has a local cluster and a process of its own. With `--gpus` a worker is a GPU, else `--cores` cores. The defaults
are for GPUs; `--samples 64 --compare-samples 64` rehearses it on two cores.

Prints JSON, a line for each run, and one for the ratios. `batches` is the time from the first image that is counted or
compared to the last one, over all workers; `startup` is what comes before, `merge` what follows the last shard.
`driver_images` must not grow with the number of samples. Lines are kept in the folder: `--only calibrate --workers 1`
makes one of them, and the ratios are those of all that are there.

Touches: the folder; a local Ray cluster; the GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COUNT, LOG = "SPREAD_SAMPLES", "SPREAD_LOG"
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
PARTS = ("calibrate", "compare")
SOURCE = "spread:Images"


class Images:
    """Random images by index. A process logs the index and the time of each that it makes, in a file of its own."""

    def __init__(self) -> None:
        self._count = int(os.environ[COUNT])
        self.digest = f"{self._count} random images"
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        self._log = os.open(Path(os.environ[LOG]) / str(os.getpid()), flags, 0o644)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, np.ndarray[Any, Any]]:
        pixels = np.random.default_rng(index).integers(0, 256, (224, 224, 3), np.uint8)
        image = pixels.transpose(2, 0, 1) * np.float32(1 / 255)
        os.write(self._log, f"{index} {time.time()}\n".encode())
        return {"input": np.ascontiguousarray((image - MEAN) / STD)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", action="store_true", help="a worker is a GPU")
    parser.add_argument("--cores", type=int, default=1, help="cores of a worker without a GPU")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=100_000, help="images to calibrate on")
    parser.add_argument("--compare-samples", type=int, default=20_000)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--run", choices=["prepare", *PARTS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    if args.run:
        {"prepare": prepare, "calibrate": calibrate, "compare": compare}[args.run](args)
        return
    if not (args.folder / "int8/typed.onnx").exists():
        spawn("prepare", args, 1, 16)
    for part in [args.only] if args.only else PARTS:
        for workers in args.workers:
            samples = args.samples if part == "calibrate" else args.compare_samples
            spawn(part, args, workers, samples)
            print((args.folder / f"{part}-{workers}.json").read_text())
    print(json.dumps(ratios(args.folder)))


def spawn(part: str, args: argparse.Namespace, workers: int, samples: int) -> None:
    """Run one part in a process of its own. The workers of its cluster inherit its environment."""
    log = args.folder / f"log-{part}-{workers}"
    log.mkdir(parents=True, exist_ok=True)
    for file in log.iterdir():  # of an earlier run
        file.unlink()
    command = [sys.executable, __file__, str(args.folder), "--run", part, "--workers", str(workers)]
    command += ["--cores", str(args.cores), *(["--gpus"] if args.gpus else [])]
    done = subprocess.run(command, env={**os.environ, COUNT: str(samples), LOG: str(log)}, check=False)
    if done.returncode:
        sys.exit(f"{part} with {workers} workers failed")


def prepare(args: argparse.Namespace) -> None:
    """Write the model, and its INT8 run for `compare`."""
    from models import resnet50

    from trtopt import convert

    model = resnet50(args.folder / "resnet50.onnx")
    options: dict[str, Any] = {"method": "minmax", "equalization": False, "compare": False, "guard": False}
    device = "cuda" if args.gpus else "cpu"
    convert(
        model, precision="int8", calib=SOURCE, backend="onnxruntime", device=device, out=args.folder / "int8", **options
    )


def calibrate(args: argparse.Namespace) -> None:
    from trtopt.plan import ConvertPlan, DataPlan

    plan = ConvertPlan(
        source=args.folder / "resnet50.onnx",
        precision="int8",
        run_dir=args.folder / f"calibrate-{args.workers[0]}",
        calib=DataPlan(source=SOURCE),
        device="cuda" if args.gpus else "cpu",
        cache="ignore",
    )
    measure("calibrate", args, plan, lambda table: {"method": table.method, "scales": dict(table.scales)})


def compare(args: argparse.Namespace) -> None:
    from trtopt.plan import ComparePlan, DataPlan

    plan = ComparePlan(
        baseline=args.folder / "resnet50.onnx",
        candidates=(args.folder / "int8",),
        run_dir=args.folder / f"compare-{args.workers[0]}",
        data=DataPlan(source=SOURCE),
        device="cuda" if args.gpus else "cpu",
        cache="ignore",
    )
    measure("compare", args, plan, lambda report: {"sqnr": report.comparison.outputs[0].values["sqnr"]})


def measure(part: str, args: argparse.Namespace, plan: Any, facts: Callable[[Any], dict[str, Any]]) -> None:
    """Run a plan on a local cluster, and write its times and facts to the folder."""
    import ray

    from trtopt.commands.spread import spread
    from trtopt.events import StageFinished
    from trtopt.shards.cluster import Cluster

    (workers,) = args.workers
    start = time.time()
    resources = {"num_gpus": workers} if args.gpus else {"num_gpus": 0, "num_cpus": workers * args.cores}
    ray.init(**resources, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    up = time.time()
    shards = 0.0

    def emit(event: object) -> None:
        nonlocal shards
        if isinstance(event, StageFinished) and event.stage == "shards":
            shards = time.time()

    result = spread(plan, Cluster(cores=args.cores), emit)
    end = time.time()
    first, last, on_driver = window(Path(os.environ[LOG]))
    times = {
        "part": part,
        "workers": workers,
        "samples": int(os.environ[COUNT]),
        "cluster": up - start,
        "startup": first - up,
        "batches": last - first,
        "merge": end - shards,
        "total": end - up,
        "driver_images": on_driver,
    }
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in times.items()}
    (args.folder / f"{part}-{workers}.facts").write_text(json.dumps(facts(result)))
    (args.folder / f"{part}-{workers}.json").write_text(json.dumps(rounded))


def window(log: Path) -> tuple[float, float, int]:
    """Return when the workers made the first and the last image of their shards, and how many the driver made.

    A worker makes a few images before, for trials, which it makes again if they are in its shard. The last time of
    each image is that of the shard.
    """
    made: dict[int, float] = {}
    on_driver = 0
    for file in log.iterdir():
        lines = [line.split() for line in file.read_text().splitlines()]
        if file.name == str(os.getpid()):
            on_driver = len(lines)
            continue
        for index, at in lines:
            made[int(index)] = max(made.get(int(index), 0.0), float(at))
    return min(made.values()), max(made.values()), on_driver


def ratios(folder: Path) -> dict[str, Any]:
    """Return the speedups over the smallest number of workers, and the differences from its results."""
    found: dict[str, Any] = {}
    for part in PARTS:
        times = {path: json.loads(path.read_text()) for path in folder.glob(f"{part}-*.json")}
        one, *more = sorted(times, key=lambda path: int(times[path]["workers"])) or [None]
        for other in more:
            name = f"{part}, {times[other]['workers']} workers to {times[one]['workers']}"
            found[name] = {key: round(times[one][key] / times[other][key], 3) for key in ("batches", "total")}
            facts = (json.loads(path.with_suffix(".facts").read_text()) for path in (one, other))
            found[name] |= differences(*facts)
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return both values of SQNR, or the methods and the largest relative difference of a scale."""
    if "scales" not in one:
        return {"sqnr": [one["sqnr"], other["sqnr"]]}
    assert one["scales"].keys() == other["scales"].keys()
    largest = max(abs(other["scales"][name] / scale - 1) for name, scale in one["scales"].items())
    return {"scales": largest, "methods": [one["method"], other["method"]]}


if __name__ == "__main__":
    main()
