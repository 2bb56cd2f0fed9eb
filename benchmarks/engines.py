"""Engines of a real TensorRT compared: FP32, FP16, trtopt's INT8, and TensorRT's own calibrated INT8.

    python benchmarks/engines.py MODEL OUT.json --calib CALIB --data DATA --evaluate DATA.npz
        [--rows fp32 fp16 int8 native] [--native CALIB.npz] [--labels LABELS.npy] [--tactic-sources -CUDNN]

The engines are made with one profile for batches 1 to 64 and timed in turns in one process, without copies. Errors are
those of the engines' own outputs. TensorRT's entropy calibrator (TensorRT 8.5 to 10) is fed with samples of an .npz.
One JSON file holds everything; it is written again after each step, so that a run that is cut off leaves what it has.
`engines_page.py` makes the tables of docs/engines.md from such files. Run it on a machine with a GPU and TensorRT.

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
from pathlib import Path
from typing import Any

import numpy as np

from trtopt.bench.latency import measure
from trtopt.bench.targets import EngineSession
from trtopt.engine.cuda.device import open_device
from trtopt.engine.cuda.driver import read_driver
from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt import builder as tensorrt
from trtopt.engine.trt.audit import inspect_engine
from trtopt.engine.trt.options import configure
from trtopt.graph.file import describe
from trtopt.types import ShapeRange

BATCHES = (1, 8, 16, 32, 64)
KINDS = ("fp32", "fp16", "int8", "native")
"""Rows of the table; `native` is TensorRT's own calibrated INT8."""
ROWS = 64
"""Samples that the errors of the engines are measured on."""

Feed = dict[str, np.ndarray[Any, Any]]


def shapes(model: Path) -> tuple[ShapeRange, ...]:
    """Return the ranges 1:32:64 of the batch of every input; other dimensions must be fixed."""
    specs = describe(model).inputs
    size = {spec.name: tuple(dim for dim in spec.shape[1:] if isinstance(dim, int)) for spec in specs}
    return tuple(ShapeRange(name=name, min=(1, *rest), opt=(32, *rest), max=(64, *rest)) for name, rest in size.items())


def convert(model: Path, precision: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Convert with trtopt, and return its report."""
    flags = [
        f"--shape={each.name}=" + ":".join("x".join(map(str, shape)) for shape in (each.min, each.opt, each.max))
        for each in shapes(model)
    ]
    command = [sys.executable, "-m", "trtopt", "convert", str(model), "-p", precision, "-o", str(folder), *flags]
    command += ["--calib", options.calib, "--data", options.data, *options.flag]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-1500:], done.stderr[-1500:], flush=True)
    return dict(json.loads((folder / "report.json").read_text()))


def native(model: Path, samples: Path, out: Path, tactic_sources: str) -> None:
    """Build an INT8 engine with TensorRT's own entropy calibrator, with FP16 for what it does not run in INT8."""
    trt = tensorrt.find("tensorrt")
    module = trt.module
    ranges = shapes(model)
    with np.load(samples) as archive:
        feed = {each.name: np.ascontiguousarray(archive[each.name]) for each in ranges}
    size = 8
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
                out.with_suffix(".cache").write_bytes(bytes(cache))

        builder = tensorrt._builder(trt)  # the same parser and options as trtopt's own engines
        parsed = tensorrt._parse(trt, builder, model)
        assert not parsed.rejections, parsed.rejections
        config = configure(trt, builder, tensorrt.BuildPlan(tactic_sources=tactic_sources))
        config.set_flag(module.BuilderFlag.INT8)
        config.set_flag(module.BuilderFlag.FP16)
        run, calibration = builder.create_optimization_profile(), builder.create_optimization_profile()
        for each in ranges:
            run.set_shape(each.name, each.min, each.opt, each.max)
            fixed = (size, *each.opt[1:])
            calibration.set_shape(each.name, fixed, fixed, fixed)
        config.add_optimization_profile(run)
        config.set_calibration_profile(calibration)
        calibrator = Calibrator()
        config.int8_calibrator = calibrator
        plan = builder.build_serialized_network(parsed.network, config)
        assert plan is not None
        out.write_bytes(memoryview(plan))


def outputs(run: Any, feed: dict[str, np.ndarray[Any, Any]], batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return all outputs for the samples, run in batches."""
    count = len(next(iter(feed.values())))
    parts = [run({name: array[i : i + batch] for name, array in feed.items()}) for i in range(0, count, batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sqnr(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> float:
    """Return the SQNR in dB."""
    error = ((reference.astype(np.float64) - candidate) ** 2).sum()
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / error)) if error else float("inf")


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
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=["fp32", "fp16", "int8"])
    parser.add_argument("--native", type=Path, help="samples for TensorRT's own calibrator, .npz by input name")
    parser.add_argument("--evaluate", type=Path, required=True, help="samples for the SQNR, .npz by input name")
    parser.add_argument("--labels", type=Path, help=".npy of class indices for those samples")
    parser.add_argument("--tactic-sources", default="")
    parser.add_argument("--flag", action="append", default=[], help="further flags of trtopt convert")
    parser.add_argument("--seconds", type=float, default=0.5)
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

    def run(self) -> None:
        """Build, compare and time the engines."""
        for kind in self.options.rows:
            self.rows[kind] = self.built(kind)
            self.save(f"{kind} built")
        with np.load(self.options.evaluate) as archive:
            feed = {each.name: archive[each.name][:ROWS] for each in shapes(self.options.model)}
        sessions = self.judged(feed)
        self.save("judged")
        self.time(sessions, feed)
        self.save("timed")

    def built(self, kind: str) -> dict[str, Any]:
        """Build one engine, and return what its report says."""
        if kind == "native":
            self.paths[kind] = self.folder / "native.engine"
            native(self.options.model, self.options.native, self.paths[kind], self.options.tactic_sources)
            return {}
        report = convert(self.options.model, kind, self.folder / kind, self.options)
        if report["engine"] is None:
            return {"failed": report["warnings"]}
        self.paths[kind] = self.folder / kind / "model.engine"
        comparison = report["comparison"]
        return {
            "verdict": report["verdict"],
            "graph": comparison["engine"],
            "gates": [[g["output"], g["metric"], g["verdict"]] for g in comparison["gates"]],
            "audit": report["engine"]["audit"],
            "fault": report["fault"],
        }

    def judged(self, feed: Feed) -> dict[str, EngineSession]:
        """Measure the errors of the engines' outputs, and return the open engines."""
        labels = np.load(self.options.labels)[: len(next(iter(feed.values())))] if self.options.labels else None
        reference = outputs(open_runner(self.options.model).run, feed, 8)
        sessions = {}
        for kind, path in self.paths.items():
            runner = tensorrt.open_runner(path, tensorrt.find("tensorrt").title, streams=1)
            found = outputs(runner.run, feed, 8)
            row = self.rows[kind]
            row["sqnr"] = {out: round(sqnr(reference[out], found[out]), 2) for out in reference}
            if labels is not None:
                first = next(iter(found.values()))
                row["accuracy"] = round(float((first.argmax(-1) == labels).mean()) * 100, 2)
            row |= {"bytes": path.stat().st_size, "memory": runner.memory, "layers": layer_counts(path), "ms": {}}
            sessions[kind] = EngineSession(runner)
        return sessions

    def time(self, sessions: dict[str, EngineSession], feed: Feed) -> None:
        """Time the engines in turns, batch by batch: median and standard deviation of the means of blocks, in ms."""
        for batch in BATCHES:
            one = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in feed.items()}
            runs = [session.ways(one).plain for session in sessions.values()]
            for kind, series in zip(sessions, measure(runs, self.options.seconds, lambda *_: None), strict=True):
                means = series.blocks.mean(axis=1)
                self.rows[kind]["ms"][batch] = [round(float(np.median(means)), 4), round(float(means.std()), 4)]

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
