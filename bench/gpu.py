"""What trtopt costs on a GPU: a bare loop to hold `trtopt bench` against, calibration beside inference, and its tables.

    python bench/gpu.py models FOLDER          write ResNet-50 as FP32 and FP16
    python bench/gpu.py bare FOLDER            a bare onnxruntime io-binding loop, without trtopt, over the batch sweep
    python bench/gpu.py calibration FOLDER     calibration on the GPU beside bare inference, and beside the CPU
    python bench/gpu.py agreement FOLDER       how far the GPU's scales are from the CPU's, for every method

`bench/gpu.sh` runs all of it. The network has random weights: fit for measuring time and memory, not accuracy.

Touches: the folder; the GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (3, 224, 224)
SWEEP = (1, 8, 16, 32, 64)
BATCH = 64
Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["models", "bare", "calibration", "agreement"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=2048, help="of the calibration (default 2048)")
    parser.add_argument("--cpu-samples", type=int, default=128, help="of what also runs on the CPU (default 128)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    {"models": models, "bare": bare, "calibration": calibration, "agreement": agreement}[args.part](args)


def models(args: argparse.Namespace) -> None:
    from models import resnet50

    from calibration import tensors
    from trtopt.calibrate.observe import tap
    from trtopt.export.onnx import describe, load_ir
    from trtopt.export.prepare import save
    from trtopt.precision import Request, precision

    fp32 = resnet50(args.folder / "resnet50.onnx")
    graph = load_ir(fp32)
    precision("fp16").apply(graph, Request())
    save(graph, args.folder / "resnet50-fp16.onnx")
    tap(describe(fp32), tensors(fp32), args.folder / "tapped.onnx")
    print(f"ResNet-50 with {len(tensors(fp32))} tensors to calibrate")


def bare(args: argparse.Namespace) -> None:
    """The fastest plain use of onnxruntime: everything bound on the device, TF32 on, channels last."""
    import onnxruntime as ort

    ort.preload_dlls()
    options = {"use_tf32": "1", "prefer_nhwc": "1"}
    rows = []
    for name in ("resnet50", "resnet50-fp16"):
        path = str(args.folder / f"{name}.onnx")
        session = ort.InferenceSession(path, providers=[("CUDAExecutionProvider", options)])
        for batch in SWEEP:
            binding = session.io_binding()
            x = np.random.default_rng(0).standard_normal((batch, *SHAPE), np.float32)
            binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
            logits = ort.OrtValue.ortvalue_from_shape_and_type((batch, 1000), np.float32, "cuda", 0)
            binding.bind_ortvalue_output("logits", logits)
            times = timed(partial(session.run_with_iobinding, binding), 20, 200)
            mean = statistics.fmean(times)
            rows.append([name, str(batch), *(f"{1e3 * t:.3f}" for t in (mean, statistics.median(times)))])
            rows[-1].append(f"{batch / mean:,.0f}")
    table("a bare io-binding loop", ["model", "batch", "mean ms", "p50 ms", "samples/s"], rows)


def timed(run: Callable[[], object], warm_up: int, runs: int) -> list[float]:
    """Seconds of each run."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def calibration(args: argparse.Namespace) -> None:
    from calibration import tensors
    from trtopt.calibrate.observe import observe
    from trtopt.calibrate.table import make_table
    from trtopt.engine.binding import DeviceTensor
    from trtopt.engine.cuda import open_device
    from trtopt.engine.observing import DeviceCounting, observe_where_it_runs
    from trtopt.engine.onnxruntime import CudaOptions, open_runner
    from trtopt.events import silent
    from trtopt.export.onnx import describe

    samples = args.samples // BATCH * BATCH
    with open_device() as device:
        print(f"{device.info.name}, driver for CUDA {device.info.driver}, {device.info.package}")
        x = batch_of(0, BATCH)
        data = device.allocate(samples * x[0].nbytes)
        stream = device.stream()
        for start in range(0, samples, BATCH):  # every batch another one, or they would be read from the cache
            stream.to_device(data.pointer + start * x[0].nbytes, np.roll(x, start, axis=3) * (1 + start / samples / 9))
        stream.synchronize()
        first = DeviceTensor(data.pointer, x.shape, "float32")
        inputs = [replace(first, pointer=data.pointer + start * x[0].nbytes) for start in range(0, samples, BATCH)]
        gpu, names = DeviceCounting(device), tensors(args.folder / "resnet50.onnx")
        rows = []
        for tf32 in (False, True):
            cuda = CudaOptions(tf32=tf32)
            plain, tapped = (
                open_runner(args.folder / f"{name}.onnx", device="cuda", cuda=cuda).bind({"input": first})
                for name in ("resnet50", "tapped")
            )
            ways: dict[str, Callable[[], object]] = {
                "bare inference": partial(infer, plain, inputs),
                "inference of the tapped copy": partial(infer, tapped, inputs),
                "calibration": partial(calibrate, tapped, inputs, gpu, names),
            }
            best = in_turn(ways, args.repeats)
            for name, seconds in best.items():
                ratio = seconds / best["bare inference"]
                rows.append([name, "on" if tf32 else "off", *numbers(seconds, samples), f"{ratio:.2f}"])
        histograms = calibrate(tapped, inputs, gpu, names)
    model = describe(args.folder / "resnet50.onnx")
    table(f"calibration, {samples} samples on the GPU, batch {BATCH}", ["", "TF32", *NUMBERS, "x bare"], rows)

    rows = []
    hosted = dataset(args.cpu_samples)
    for device_name, count, observer in (
        ("cpu", args.cpu_samples, lambda runner, given: observe(runner.run, names, given, stage="", emit=silent)),
        ("cuda", samples, lambda runner, given: observe_where_it_runs(runner, names, given, stage="", emit=silent)),
    ):
        runner = open_runner(args.folder / "tapped.onnx", device=device_name)
        given = hosted if count == args.cpu_samples else dataset(count)
        observer(runner, dataset(2))
        start = time.perf_counter()
        observer(runner, given)
        rows.append([runner.where, str(count), *numbers(time.perf_counter() - start, count)])
    start = time.perf_counter()
    make_table("entropy", histograms, model=model, dataset=hosted)
    rows.append(["entropy's search, once", "", f"{time.perf_counter() - start:.3f}", "", ""])
    table("calibration of samples on the host, copies and setting up in it", ["", "samples", *NUMBERS], rows)


NUMBERS = ["s", "ms/batch", "samples/s"]


def numbers(seconds: float, samples: int) -> list[str]:
    return [f"{seconds:.3f}", f"{1e3 * seconds * BATCH / samples:.2f}", f"{samples / seconds:,.0f}"]


def in_turn(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each way, measured in turn so that a drift of clocks favours none."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first warms up
                seen[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seen.items()}


def infer(bound: Any, batches: list[Any]) -> None:
    for batch in batches:
        bound.read_from({"input": batch})
        bound.run()


def calibrate(bound: Any, batches: list[Any], gpu: Any, names: list[str]) -> Any:
    """What `observe_on_gpu` does, for samples that are on the device already."""
    from trtopt.calibrate.gpu_histogram import Counters

    counters = Counters(gpu, names)
    for batch in batches:
        bound.read_from({"input": batch})
        bound.run()
        largest = counters.add({name: bound.tensors[name] for name in names})
        assert all(map(np.isfinite, largest.values()))
    return counters.histograms()


def batch_of(seed: int, size: int) -> Array:
    return np.random.default_rng(seed).standard_normal((size, *SHAPE), np.float32)


def dataset(samples: int) -> Any:
    from trtopt.data.dataset import Dataset

    x = batch_of(0, BATCH)

    def load(index: int) -> dict[str, Array]:
        return {"input": np.roll(x[index % BATCH], index // BATCH, axis=2)[None]}

    ids = tuple(map(str, range(samples)))
    return Dataset(source="random", digest="random", ids=ids, load=load, batched=True)


def agreement(args: argparse.Namespace) -> None:
    from calibration import tensors
    from trtopt.calibrate import methods
    from trtopt.calibrate.table import make_table
    from trtopt.engine.observing import observe_where_it_runs
    from trtopt.engine.onnxruntime import CudaOptions, open_runner
    from trtopt.events import silent
    from trtopt.export.onnx import describe

    data, names = dataset(args.cpu_samples), tensors(args.folder / "resnet50.onnx")
    model = describe(args.folder / "resnet50.onnx")

    def observed(device: str, cuda: CudaOptions) -> Any:
        runner = open_runner(args.folder / "tapped.onnx", device=device, cuda=cuda)
        return observe_where_it_runs(runner, names, data, stage="", emit=silent)

    cpu = observed("cpu", CudaOptions())
    rows = []
    for tf32 in (False, True):
        gpu = observed("cuda", CudaOptions(tf32=tf32))
        for method in methods():
            wanted, found = (make_table(method, seen, model=model, dataset=data).scales for seen in (cpu, gpu))
            off = {name: abs(found[name] / wanted[name] - 1) for name in names}
            worst = max(off, key=lambda name: off[name])
            rows.append([method, "on" if tf32 else "off", f"{off[worst]:.2e}", worst])
            rows[-1].append(str(sum(share > 0.01 for share in off.values())))
    title = f"{len(names)} scales of the GPU beside the CPU's, {len(data)} samples"
    table(title, ["method", "TF32", "largest difference", "of", "above 1 %"], rows)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    for row in rows:
        made.add_row(*row)
    Console(width=120).print(made)


if __name__ == "__main__":
    main()
