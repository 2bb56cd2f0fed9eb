"""Engines of a real TensorRT compared: FP32, TF32, FP16, trtopt's INT8, TensorRT's calibrated INT8, onnxruntime's Q/DQ.

    python benchmarks/engines.py MODEL OUT.json --calib CALIB.npz --data DATA.npz
        [--rows fp32 tf32 fp16 int8 native qdq] [--tuned RUN] [--labels LABELS.npy] [--tactic-sources -CUDNN]
        [--build-seconds 370]

The engines are made with one profile for batches 1 to 64 and timed in turns in one process, without copies. Errors are
those of the engines' own outputs. The row `tf32` is FP32 as TensorRT builds it by default. The rows `native` (the
entropy calibrator of TensorRT 8.5 to 10) and `qdq` (onnxruntime's `quantize_static`, configured as TensorRT requires)
get the FP32 graph that the row `fp32` is built from, and the same calibration samples. `--tuned` adds the engine of a
run of `trtopt tune`. One JSON file holds everything; it is written again after each step, so that a run that is cut off
leaves what it has. No row is begun after `--build-seconds`, and a conversion that takes longer is ended, so that the
others are timed. `engines_page.py` makes the tables of docs/engines.md from such files. Run it on a machine with a GPU
and TensorRT.

Touches: the GPU; temporary folders; writes OUT.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import Reader, quantized_as_tensorrt_requires
from tasks import TASKS, Evaluated

from trtopt.bench import gpu
from trtopt.bench.latency import measure
from trtopt.bench.targets import EngineSession
from trtopt.engine.cuda.device import open_device
from trtopt.engine.cuda.driver import read_driver
from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt import weak
from trtopt.engine.trt.audit import inspect_engine
from trtopt.engine.trt.options import configure
from trtopt.graph.file import describe
from trtopt.types import ShapeRange

BATCHES = (1, 8, 16, 32, 64)
KINDS = ("fp32", "tf32", "fp16", "int8", "native", "qdq")
"""Rows of the table."""
PEERS = {"tf32": ("TF32",), "native": ("INT8", "FP16"), "qdq": ("INT8", "FP16")}
"""Rows that are not made by trtopt, with the flags of their builder."""
ROWS = 64
"""Samples to calibrate on, and samples that the errors of the engines are measured on."""
CALIBRATION_BATCH = 8
"""Batch of TensorRT's own calibrator."""

Feed = dict[str, np.ndarray[Any, Any]]


def shapes(feed: Feed) -> tuple[ShapeRange, ...]:
    """Return the ranges 1:32:64 of the batch of every input; the other dimensions are those of the samples."""
    size = {name: array.shape[1:] for name, array in feed.items()}
    return tuple(ShapeRange(name=name, min=(1, *rest), opt=(32, *rest), max=(64, *rest)) for name, rest in size.items())


def samples(model: Path, path: Path) -> Feed:
    """Return the first `ROWS` samples of an .npz, by the names of the model's inputs."""
    with np.load(path) as archive:
        return {spec.name: np.ascontiguousarray(archive[spec.name][:ROWS]) for spec in describe(model).inputs}


def convert(model: Path, precision: str, folder: Path, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Convert with trtopt, and return its report.

    Raises:
        TimeoutError: it took more than `limit` seconds.
    """
    flags = [
        f"--shape={each.name}=" + ":".join("x".join(map(str, shape)) for shape in (each.min, each.opt, each.max))
        for each in shapes(samples(model, options.data))
    ]
    command = [
        sys.executable,
        "-m",
        "trtopt",
        "convert",
        str(model),
        "-p",
        precision,
        "-o",
        str(folder),
        *flags,
        "--no-speed",
    ]
    command += ["--calib", str(options.calib), "--data", str(options.data), *options.flag]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"not built within {limit:.0f} s") from error
    print(done.stdout[-1500:], done.stderr[-1500:], flush=True)
    return dict(json.loads((folder / "report.json").read_text()))


def build(
    model: Path,
    ranges: tuple[ShapeRange, ...],
    out: Path,
    tactic_sources: str,
    flags: tuple[str, ...],
    calibrator: Any = None,
) -> None:
    """Build an engine with these flags of the builder; INT8 is by `calibrator` or by the graph's Q/DQ nodes."""
    trt = tensorrt.find("tensorrt")
    module = trt.module
    builder = tensorrt._builder(trt)  # the same parser and options as trtopt's own engines
    parsed = tensorrt._parse(trt, builder, model)
    assert not parsed.rejections, parsed.rejections
    config = configure(trt, builder, tensorrt.BuildPlan(tactic_sources=tactic_sources))
    for flag in flags:
        config.set_flag(getattr(module.BuilderFlag, flag))
    profile = builder.create_optimization_profile()
    for each in ranges:
        profile.set_shape(each.name, each.min, each.opt, each.max)
    config.add_optimization_profile(profile)
    if calibrator is not None:
        fixed = builder.create_optimization_profile()
        for each in ranges:
            shape = (CALIBRATION_BATCH, *each.opt[1:])
            fixed.set_shape(each.name, shape, shape, shape)
        config.set_calibration_profile(fixed)
        config.int8_calibrator = calibrator
    plan = builder.build_serialized_network(parsed.network, config)
    assert plan is not None, "TensorRT cannot build it"
    out.write_bytes(memoryview(plan))


def native(model: Path, feed: Feed, out: Path, tactic_sources: str) -> None:
    """Build an INT8 engine with TensorRT's own entropy calibrator."""
    module = tensorrt.find("tensorrt").module
    size = CALIBRATION_BATCH
    with open_device() as device, device.stream() as stream, contextlib.ExitStack() as stack:
        buffers = {name: stack.enter_context(device.allocate(array[:size].nbytes)) for name, array in feed.items()}

        class Calibrator(module.IInt8EntropyCalibrator2):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.done = 0

            def get_batch_size(self) -> int:
                return size

            def get_batch(self, names: list[str]) -> list[int] | None:
                if self.done + size > min(map(len, feed.values())):
                    return None
                for name, array in feed.items():
                    stream.to_device(buffers[name], array[self.done : self.done + size])
                stream.synchronize()
                self.done += size
                return [buffers[name].pointer for name in names]

            def read_calibration_cache(self) -> None:
                return None

            def write_calibration_cache(self, cache: Any) -> None:
                pass

        build(model, shapes(feed), out, tactic_sources, PEERS["native"], Calibrator())


def outputs(run: Any, feed: dict[str, np.ndarray[Any, Any]], batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return all outputs for the samples, run in batches."""
    count = len(next(iter(feed.values())))
    parts = [run({name: array[i : i + batch] for name, array in feed.items()}) for i in range(0, count, batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sqnr(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> float:
    """Return the SQNR in dB."""
    error = ((reference.astype(np.float64) - candidate) ** 2).sum()
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / error)) if error else float("inf")


def load(device: gpu.Gpu, run: Callable[[], float]) -> float | None:
    """Return the mean utilization of the GPU in percent while `run` is repeated; None if the driver does not tell."""
    until = time.monotonic() + 0.3  # the driver averages over the time before a reading
    while time.monotonic() < until:
        run()
    with gpu.sampling(device) as sampled:
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            run()
    value = sampled.summary().get("gpu_utilisation")
    return None if value is None else round(value, 1)


def layer_counts(path: Path) -> dict[str, int]:
    """Return the number of layers of an engine by type."""
    counts: dict[str, int] = {}
    for layer in inspect_engine(tensorrt.find("tensorrt"), path.read_bytes()) or []:
        kind = str(layer.get("LayerType", "?"))
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def main() -> None:
    """Build, compare and time the engines of one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calib", type=Path, required=True, help="samples to calibrate on, .npz by input name")
    parser.add_argument("--data", type=Path, required=True, help="samples to judge on, .npz by input name")
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=["fp32", "fp16", "int8"])
    parser.add_argument("--tuned", type=Path, help="a run of trtopt tune, for a row of its own")
    parser.add_argument("--labels", type=Path, help=".npy of labels for those samples")
    parser.add_argument("--tactic-sources", default="")
    parser.add_argument("--flag", action="append", default=[], help="further flags of trtopt convert")
    parser.add_argument("--seconds", type=float, default=0.5, help="time of each row at each batch")
    parser.add_argument("--build-seconds", type=float, default=370.0, help="time for all builds together")
    options = parser.parse_args()
    if options.tactic_sources:
        options.flag += ["--tactic-sources", options.tactic_sources]
    with tempfile.TemporaryDirectory() as folder:
        Bench(options, Path(folder)).run()


class Bench:
    """The engines of one model, and what is known of each so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.rows: dict[str, dict[str, Any]] = {}
        self.paths: dict[str, Path] = {}
        self.start = time.monotonic()
        if options.labels and TASKS[options.model.stem].metric == "top-1 %":  # then the gates are about accuracy
            with np.load(options.data) as archive:
                count = len(archive[archive.files[0]])
                np.savez(folder / "data.npz", **archive, labels=np.load(options.labels)[:count])
            options.data = folder / "data.npz"

    def left(self) -> float:
        """Return the seconds that are left to build engines.

        Raises:
            TimeoutError: none are left.
        """
        left = self.options.build_seconds - (time.monotonic() - self.start)
        if left <= 0:
            raise TimeoutError(f"not begun: the rows before it took {self.options.build_seconds:.0f} s")
        return float(left)

    def run(self) -> None:
        """Build, compare and time the engines."""
        for kind in [*self.options.rows, *(["tuned"] if self.options.tuned else [])]:
            try:
                self.rows[kind] = self.built(kind)
            except Exception as error:  # noqa: BLE001 - the other rows are worth having
                self.rows[kind] = {"failed": [f"{type(error).__name__}: {str(error)[:500]}"]}
                self.paths.pop(kind, None)
            self.save(f"{kind} built")
        feed = samples(self.options.model, self.options.data)
        sessions = self.judged(feed)
        self.save("judged")
        if sessions:
            self.time(sessions, feed)

    def built(self, kind: str) -> dict[str, Any]:
        """Build one engine, and return what its report says."""
        if kind in PEERS:
            return self.peer(kind)
        if kind == "tuned":
            run, report = self.options.tuned, json.loads((self.options.tuned / "report.json").read_text())
        else:
            run = self.folder / kind
            report = convert(self.options.model, kind, run, self.options, self.left())
        if report["engine"] is None:
            return {"failed": report["warnings"]}
        self.paths[kind] = run / "model.engine"
        comparison = report["comparison"]
        return {
            "verdict": report["verdict"],
            "graph": comparison["engine"],
            "gates": [[g["output"], g["metric"], g["verdict"]] for g in comparison["gates"]],
            "audit": report["engine"]["audit"],
            "fault": report["fault"],
            "unfused": [layer["name"] for layer in report["engine"]["layers"] if layer["apart"]],
        }

    def peer(self, kind: str) -> dict[str, Any]:
        """Build the engine of a row that is not made by trtopt, from its FP32 graph."""
        self.left()
        trt, feed = tensorrt.find("tensorrt"), samples(self.options.model, self.options.calib)
        model = weak.write_widened(self.folder / "fp32" / "typed.onnx", self.folder, trt.can.opset)
        out = self.folder / f"{kind}.engine"
        if kind == "native":
            native(model, feed, out, self.options.tactic_sources)
        elif kind == "tf32":
            build(model, shapes(feed), out, self.options.tactic_sources, PEERS[kind])
        else:
            quantized = self.folder / "qdq.onnx"
            reader = Reader(
                {name: array[i : i + 1] for name, array in feed.items()} for i in range(len(next(iter(feed.values()))))
            )
            quantized_as_tensorrt_requires(model, quantized, reader, "MinMax")
            build(quantized, shapes(feed), out, self.options.tactic_sources, PEERS[kind])
        self.paths[kind] = out
        return {}

    def judged(self, feed: Feed) -> dict[str, EngineSession]:
        """Measure the errors of the engines' outputs, and return the open engines."""
        reference = outputs(open_runner(self.options.model).run, feed, 8)
        sessions = {}
        for kind, path in self.paths.items():
            runner = tensorrt.open_runner(path, tensorrt.find("tensorrt").title, streams=1)
            found = outputs(runner.run, feed, 8)
            row = self.rows[kind]
            row["sqnr"] = {out: round(sqnr(reference[out], found[out]), 2) for out in reference}
            row["score"] = self.score(found, reference)
            row |= {"bytes": path.stat().st_size, "memory": runner.memory, "layers": layer_counts(path)}
            row |= {"ms": {}, "load": {}}
            sessions[kind] = EngineSession(runner, load=0.0)
        return sessions

    def score(self, found: Feed, reference: Feed) -> tuple[str, float] | None:
        """Return the metric of the network's task and its value, or None if there is no task."""
        task = TASKS.get(self.options.model.stem)
        if task is None or (task.labelled and self.options.labels is None):
            return None
        first = next(iter(reference))
        count = len(reference[first])
        evaluated = Evaluated(
            kept=[task.keep(found[first][i : i + 1]) for i in range(count)],
            reference=[task.keep(reference[first][i : i + 1]) for i in range(count)],
            labels=np.load(self.options.labels)[:count] if self.options.labels else None,
            model=self.options.model,
        )
        return task.metric, round(task.score(evaluated), 2)

    def time(self, sessions: dict[str, EngineSession], feed: Feed) -> None:
        """Time the engines in turns, batch by batch: median and standard deviation of the means of blocks, in ms.

        Then each runs alone, for the mean utilization of the GPU in percent.
        """
        device = gpu.open_gpu()
        for batch in BATCHES:
            one = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in feed.items()}
            runs = [session.ways(one).plain for session in sessions.values()]
            for kind, series in zip(sessions, measure(runs, self.options.seconds, lambda *_: None), strict=True):
                means = series.blocks.mean(axis=1)
                self.rows[kind]["ms"][batch] = [round(float(np.median(means)), 4), round(float(means.std()), 4)]
            for kind, run in zip(sessions, runs, strict=True):
                self.rows[kind]["load"][batch] = load(device, run)
            self.save(f"batch {batch} timed")
        device.close()

    def save(self, step: str) -> None:
        """Write all that is known so far to the JSON file."""
        gpu = read_driver()
        found = {
            "model": self.options.model.stem,
            "tensorrt": tensorrt.find("tensorrt").version,
            "gpu": gpu.gpus[0].name,
            "driver": gpu.version,
            "date": datetime.date.today().isoformat(),
            "tactic_sources": self.options.tactic_sources,
            "rows": self.rows,
        }
        self.options.out.write_text(json.dumps(found, indent=1))
        print(f"{step} after {time.monotonic() - self.start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
