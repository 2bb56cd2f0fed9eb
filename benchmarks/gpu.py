"""What trtopt costs on a GPU: a bare loop to hold `trtopt bench` against, calibration beside inference, and its tables.

    python benchmarks/gpu.py models FOLDER          write ResNet-50 as FP32 and FP16
    python benchmarks/gpu.py bare FOLDER            a bare onnxruntime I/O-binding loop, without trtopt
    python benchmarks/gpu.py calibration FOLDER     calibration on the GPU beside bare inference, and beside the CPU
    python benchmarks/gpu.py agreement FOLDER       how far the GPU's scales are from the CPU's, for every method
    python benchmarks/gpu.py against FOLDER         what `trtopt bench` measured (FOLDER/bench) beside the bare loop
    python benchmarks/gpu.py limit FOLDER           `trtopt bench --max-batch` (FOLDER/limit) beside a full search

`benchmarks/gpu.sh` runs all of it. The network has random weights: fit for measuring time and memory, not accuracy.

Touches: the folder; the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
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
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=2048, help="of the calibration (default 2048)")
    parser.add_argument("--cpu-samples", type=int, default=512, help="of what also runs on the CPU (default 512)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    PARTS[args.part](args)


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
    rows, found = [], {}
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
            found[f"{name} {batch}"] = batch / mean
    (args.folder / "bare.json").write_text(json.dumps(found))
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
    from trtopt.calibrate.observe import callers
    from trtopt.calibrate.table import make_table
    from trtopt.engine.cuda import open_device
    from trtopt.engine.observing import DeviceCounting, observe_where_it_runs
    from trtopt.engine.onnxruntime import CudaOptions, open_runner
    from trtopt.events import silent
    from trtopt.export.onnx import describe

    names = tensors(args.folder / "resnet50.onnx")
    hosted, cpu = dataset(args.cpu_samples), open_runner(args.folder / "tapped.onnx", callers=callers())
    observe_where_it_runs(cpu, names, dataset(2 * callers()), stage="", emit=silent)
    start = time.perf_counter()
    observe_where_it_runs(cpu, names, hosted, stage="", emit=silent)
    on_cpu = (time.perf_counter() - start) / len(hosted)

    samples = args.samples // BATCH * BATCH
    rows = []
    with open_device() as device:
        print(f"{device.info.name}, driver for CUDA {device.info.driver}, {device.info.package}, {cpu.where}")
        inputs = on_device(device, samples)
        gpu = DeviceCounting(device)
        for tf32 in (False, True):
            plain, tapped = (
                open_runner(args.folder / f"{name}.onnx", device="cuda", cuda=CudaOptions(tf32=tf32)).bind(
                    {"input": inputs[0]}
                )
                for name in ("resnet50", "tapped")
            )
            ways: dict[str, Callable[[], object]] = {
                "bare inference": partial(infer, plain, inputs),
                "inference of the tapped copy": partial(infer, tapped, inputs),
                "calibration": partial(calibrate, tapped, inputs, gpu, names),
            }
            seconds = in_turn(ways, args.repeats)
            for name in ways:
                row = [name, "on" if tf32 else "off", *numbers(seconds[name], samples)]
                row += [f"{seconds[name] / seconds['bare inference']:.2f}"]
                rows.append([*row, f"{on_cpu * samples / seconds[name]:.1f}" if name == "calibration" else ""])
    columns = ["", "TF32", *NUMBERS, "x bare", "x the CPU's rate"]
    table(f"{samples} samples that are on the GPU, batch {BATCH}", columns, rows)

    runner, given = open_runner(args.folder / "tapped.onnx", device="cuda"), dataset(samples)
    start = time.perf_counter()
    histograms = observe_where_it_runs(runner, names, given, stage="", emit=silent)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    make_table("entropy", histograms, model=describe(args.folder / "resnet50.onnx"), dataset=given)
    search = time.perf_counter() - start
    rows = [[cpu.where, str(len(hosted)), *numbers(on_cpu * len(hosted), len(hosted))]]
    rows.append([runner.where, str(samples), *numbers(whole, samples)])
    rows.append(["entropy's search, once", "", f"{search:.3f}", "", ""])
    table("calibration of samples on the host, joining, copies and setting up in it", ["", "samples", *NUMBERS], rows)


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


def on_device(device: Any, samples: int) -> list[Any]:
    """Batches in the memory of the GPU, each another one, or they would be read from the cache."""
    from trtopt.engine.binding import DeviceTensor

    x = batch_of(0, BATCH)
    data, stream = device.allocate(samples // BATCH * x.nbytes), device.stream()
    made = [DeviceTensor(data.pointer + i * x.nbytes, x.shape, "float32") for i in range(samples // BATCH)]
    for i, tensor in enumerate(made):
        stream.to_device(tensor.pointer, np.roll(x, i, axis=3) * np.float32(1 + i / len(made) / 9))
    stream.synchronize()
    return made


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


def against(args: argparse.Namespace) -> None:
    """Throughput without copies, as the bare loop has none."""
    bare = json.loads((args.folder / "bare.json").read_text())
    timings = json.loads((args.folder / "bench/benchmark.json").read_text())["timings"]
    rows = []
    for timing in (timing for timing in timings if not timing["copies"]):
        loop = bare[f"{Path(timing['target']).stem} {timing['batch']}"]
        numbers = [f"{timing['throughput']:,.0f}", f"{100 * timing['noise']:.1f} %", f"{loop:,.0f}"]
        rows.append([timing["target"], str(timing["batch"]), *numbers, f"{timing['throughput'] / loop:.3f}"])
    table("trtopt bench beside the bare loop", ["model", "batch", "samples/s", "noise", "bare loop", "ratio"], rows)


def limit(args: argparse.Namespace) -> None:
    """Every batch above the one that was found, until four in a row do not fit."""
    from dataclasses import replace

    from trtopt.bench import probe
    from trtopt.bench.inputs import Sizes
    from trtopt.export.onnx import describe
    from trtopt.shapes import profile

    inputs = describe(args.folder / "resnet50-fp16.onnx").inputs
    found = json.loads((args.folder / "limit/benchmark.json").read_text())["limit"]
    question = probe.Question(
        path=args.folder / "resnet50-fp16.onnx",
        builder="",
        sizes=Sizes(inputs=inputs, ranges=profile(inputs, ())[0]),
        device="cuda",
        batch=1,
        limit=found["memory_limit"],
    )
    largest, failures, batch = found["batch"], 0, found["batch"]
    while failures < 4:
        batch += 1
        failed = probe.ask(replace(question, batch=batch), 120.0).failed
        largest, failures = (largest, failures + 1) if failed else (batch, 0)
    memory = f"{found['memory_limit'] / 2**20:,.0f} MiB"
    row = [memory, str(found["batch"]), str(largest), f"{found['batch'] / largest:.3f}"]
    table("the largest batch of ResNet-50 FP16", ["memory", "--max-batch", "exhaustive", "ratio"], [row])


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    for row in rows:
        made.add_row(*row)
    Console(width=120).print(made)


PARTS = {
    "models": models,
    "bare": bare,
    "calibration": calibration,
    "agreement": agreement,
    "against": against,
    "limit": limit,
}

if __name__ == "__main__":
    main()
