"""The cost of trtopt on a GPU: `trtopt bench` compared with a plain loop, calibration compared with inference.

    python benchmarks/gpu.py models FOLDER        write ResNet-50 in FP32 and FP16
    python benchmarks/gpu.py bare FOLDER          time a plain onnxruntime loop with I/O binding, without trtopt
    python benchmarks/gpu.py calibration FOLDER   compare calibration on the GPU with plain inference and with the CPU
    python benchmarks/gpu.py agreement FOLDER     compare the scales of GPU and CPU, for every method
    python benchmarks/gpu.py against FOLDER       compare `trtopt bench` (FOLDER/bench) with the plain loop
    python benchmarks/gpu.py limit FOLDER         compare `trtopt bench --max-batch` (FOLDER/limit) with a full search

`benchmarks/gpu.sh` runs all of them. The network has random weights, so it is suitable to measure time and memory, but
not accuracy.

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
    parser.add_argument("--samples", type=int, default=2048, help="calibration samples (default 2048)")
    parser.add_argument("--cpu-samples", type=int, default=512, help="samples of runs on the CPU (default 512)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    PARTS[args.part](args)


def models(args: argparse.Namespace) -> None:
    from models import resnet50

    from calibration import tensors
    from trtopt.calibrate.observe import tap
    from trtopt.graph.file import describe, load_ir
    from trtopt.graph.prepare import save
    from trtopt.precision import Request, precision

    fp32 = resnet50(args.folder / "resnet50.onnx")
    graph = load_ir(fp32)
    precision("fp16").apply(graph, Request())
    save(graph, args.folder / "resnet50-fp16.onnx")
    tap(describe(fp32), tensors(fp32), args.folder / "tapped.onnx")
    print(f"ResNet-50 with {len(tensors(fp32))} tensors to calibrate")


def bare(args: argparse.Namespace) -> None:
    """Time the fastest plain use of onnxruntime: inputs and outputs bound on the device, TF32 on, channels last."""
    import onnxruntime as ort

    ort.preload_dlls()
    options = {"use_tf32": "1", "prefer_nhwc": "1"}
    rows, throughput = [], {}
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
            throughput[f"{name} {batch}"] = batch / mean
    (args.folder / "bare.json").write_text(json.dumps(throughput))
    table("a plain loop with I/O binding", ["model", "batch", "mean ms", "p50 ms", "samples/s"], rows)


def timed(run: Callable[[], object], warm_up: int, runs: int) -> list[float]:
    """Return the seconds of each run."""
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
    from trtopt.calibrate.source import DeviceCounting, observe_where_it_runs
    from trtopt.calibrate.table import make_table
    from trtopt.engine.cuda.device import open_device
    from trtopt.engine.onnxruntime import CudaOptions, open_runner
    from trtopt.events import silent
    from trtopt.graph.file import describe

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
            workloads: dict[str, Callable[[], object]] = {
                "plain inference": partial(infer, plain, inputs),
                "inference of the tapped copy": partial(infer, tapped, inputs),
                "calibration": partial(calibrate, tapped, inputs, gpu, names),
            }
            seconds = interleaved(workloads, args.repeats)
            for name in workloads:
                row = [name, "on" if tf32 else "off", *numbers(seconds[name], samples)]
                row += [f"{seconds[name] / seconds['plain inference']:.2f}"]
                rows.append([*row, f"{on_cpu * samples / seconds[name]:.1f}" if name == "calibration" else ""])
    columns = ["", "TF32", *NUMBERS, "x plain", "x the CPU's rate"]
    table(f"{samples} samples in GPU memory, batch {BATCH}", columns, rows)

    runner, data = open_runner(args.folder / "tapped.onnx", device="cuda"), dataset(samples)
    start = time.perf_counter()
    histograms = observe_where_it_runs(runner, names, data, stage="", emit=silent)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    make_table("entropy", histograms, model=describe(args.folder / "resnet50.onnx"), dataset=data)
    search = time.perf_counter() - start
    rows = [[cpu.where, str(len(hosted)), *numbers(on_cpu * len(hosted), len(hosted))]]
    rows.append([runner.where, str(samples), *numbers(whole, samples)])
    rows.append(["entropy search, once", "", f"{search:.3f}", "", ""])
    table("calibration of samples in host memory, with joining, copies and setup", ["", "samples", *NUMBERS], rows)


NUMBERS = ["s", "ms/batch", "samples/s"]


def numbers(seconds: float, samples: int) -> list[str]:
    return [f"{seconds:.3f}", f"{1e3 * seconds * BATCH / samples:.2f}", f"{samples / seconds:,.0f}"]


def interleaved(workloads: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each workload. They are interleaved, so that clock drift affects all equally."""
    times: dict[str, list[float]] = {name: [] for name in workloads}
    for turn in range(repeats + 1):
        for name, run in workloads.items():
            start = time.perf_counter()
            run()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def on_device(device: Any, samples: int) -> list[Any]:
    """Return batches in the memory of the GPU. They all differ, or they would be read from the cache."""
    from trtopt.engine.runner.binding import DeviceTensor

    x = batch_of(0, BATCH)
    data, stream = device.allocate(samples // BATCH * x.nbytes), device.stream()
    tensors = [DeviceTensor(data.pointer + i * x.nbytes, x.shape, "float32") for i in range(samples // BATCH)]
    for i, tensor in enumerate(tensors):
        stream.to_device(tensor.pointer, np.roll(x, i, axis=3) * np.float32(1 + i / len(tensors) / 9))
    stream.synchronize()
    return tensors


def infer(bound: Any, batches: list[Any]) -> None:
    for batch in batches:
        bound.read_from({"input": batch})
        bound.run()


def calibrate(bound: Any, batches: list[Any], gpu: Any, names: list[str]) -> Any:
    """Calibrate as `observe_on_gpu` does, for batches that are already in the memory of the GPU."""
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
    from trtopt.calibrate import method_names
    from trtopt.calibrate.source import observe_where_it_runs
    from trtopt.calibrate.table import make_table
    from trtopt.engine.onnxruntime import CudaOptions, open_runner
    from trtopt.events import silent
    from trtopt.graph.file import describe

    data, names = dataset(args.cpu_samples), tensors(args.folder / "resnet50.onnx")
    model = describe(args.folder / "resnet50.onnx")

    def observed(device: str, cuda: CudaOptions) -> Any:
        runner = open_runner(args.folder / "tapped.onnx", device=device, cuda=cuda)
        return observe_where_it_runs(runner, names, data, stage="", emit=silent)

    cpu = observed("cpu", CudaOptions())
    rows = []
    for tf32 in (False, True):
        gpu = observed("cuda", CudaOptions(tf32=tf32))
        for method in method_names():
            on_cpu = make_table(method, cpu, model=model, dataset=data).scales
            on_gpu = make_table(method, gpu, model=model, dataset=data).scales
            difference = {name: abs(on_gpu[name] / on_cpu[name] - 1) for name in names}
            worst = max(difference, key=lambda name: difference[name])
            rows.append([method, "on" if tf32 else "off", f"{difference[worst]:.2e}", worst])
            rows[-1].append(str(sum(share > 0.01 for share in difference.values())))
    title = f"{len(names)} scales of the GPU compared with the CPU's, {len(data)} samples"
    table(title, ["method", "TF32", "largest difference", "tensor", "above 1 %"], rows)


def against(args: argparse.Namespace) -> None:
    """Compare throughput without copies, because the plain loop has none."""
    bare = json.loads((args.folder / "bare.json").read_text())
    timings = json.loads((args.folder / "bench/benchmark.json").read_text())["timings"]
    rows = []
    for timing in (timing for timing in timings if not timing["copies"]):
        loop = bare[f"{Path(timing['target']).stem} {timing['batch']}"]
        numbers = [f"{timing['throughput']:,.0f}", f"{100 * timing['noise']:.1f} %", f"{loop:,.0f}"]
        rows.append([timing["target"], str(timing["batch"]), *numbers, f"{timing['throughput'] / loop:.3f}"])
    title = "trtopt bench compared with the plain loop"
    table(title, ["model", "batch", "samples/s", "noise", "plain loop", "ratio"], rows)


def limit(args: argparse.Namespace) -> None:
    """Try every batch above the result of `--max-batch`, until four in a row do not fit."""
    from dataclasses import replace

    from trtopt.bench import probe
    from trtopt.bench.inputs import Sizes
    from trtopt.graph.file import describe
    from trtopt.shapes import profile

    inputs = describe(args.folder / "resnet50-fp16.onnx").inputs
    result = json.loads((args.folder / "limit/benchmark.json").read_text())["limit"]
    question = probe.Question(
        path=args.folder / "resnet50-fp16.onnx",
        engine=None,
        sizes=Sizes(inputs=inputs, ranges=profile(inputs, ())[0]),
        device="cuda",
        batch=1,
        limit=result["memory_limit"],
    )
    largest, failures, batch = result["batch"], 0, result["batch"]
    while failures < 4:
        batch += 1
        failed = probe.ask(replace(question, batch=batch), 120.0).failed
        largest, failures = (largest, failures + 1) if failed else (batch, 0)
    memory = f"{result['memory_limit'] / 2**20:,.0f} MiB"
    row = [memory, str(result["batch"]), str(largest), f"{result['batch'] / largest:.3f}"]
    table("the largest batch of ResNet-50 FP16", ["memory", "--max-batch", "exhaustive", "ratio"], [row])


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    rendered = Table(title=title)
    for index, column in enumerate(columns):
        rendered.add_column(column, justify="right" if index else "left")
    for row in rows:
        rendered.add_row(*row)
    Console(width=120).print(rendered)


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
