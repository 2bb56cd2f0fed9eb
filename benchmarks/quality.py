"""Comparison of INT8 and FP16 of trtopt, onnxruntime and NVIDIA ModelOpt on the trained networks of `zoo.py`.

    python benchmarks/zoo.py ZOO
    python benchmarks/quality.py ZOO --modelopt-python MODELOPT/bin/python [--models mnist ...] [--eval N]

ModelOpt needs an environment of its own (`zoo-requirements-modelopt.txt`), because it replaces onnxruntime. Every
variant is made in a process of its own, from the same calibration samples, one at a time. All variants then run in the
same onnxruntime with the same settings over the same evaluation samples (16-bit rounding simulated, Q/DQ nodes not
fused), and are built by TensorRT. The measurements are stored in `ZOO/quality.json`, and the page is generated from all
of them, so the models can be measured one after the other.

Touches: `ZOO/quality.json`, the page, a temporary folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers import flags, make
from quality_page import page
from tasks import TASKS, Evaluated, chosen, cosine, feeds, labels, sqnr

QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ABLATIONS = ("no_equalization", "no_bias_correction")
"""Steps of trtopt's INT8 that can be turned off. The default method is also measured without each of them."""

PEERS = {
    "ort:MinMax": "onnxruntime MinMax",
    "ort:Entropy": "onnxruntime Entropy (128 bins)",
    "ort:Entropy:2048": "onnxruntime Entropy, patched to 2048 bins",
    "ort:Percentile": "onnxruntime Percentile",
    "modelopt:int8:max": "ModelOpt max",
    "modelopt:int8:entropy": "ModelOpt entropy",
}
AUTOCAST = "modelopt:fp16"


def default() -> str:
    """Return the variant that is trtopt's default INT8.

    It is named by its method, so that a stored row never belongs to an earlier default.
    """
    from trtopt.plan import ConvertPlan

    return f"trtopt:int8:{ConvertPlan(source=Path(), precision='int8', run_dir=Path()).method}"


def variants() -> dict[str, str]:
    """Return the titles of all variants, in the order of the table."""
    from trtopt.calibrate import AUTO, method_names
    from trtopt.plan import ConvertPlan

    plan = ConvertPlan(source=Path(), precision="int8", run_dir=Path())
    titles = {"fp32": "FP32", default(): f"**trtopt {plan.method}** (default)"}
    for name in (*method_names(), AUTO):
        if name != plan.method:
            titles[f"trtopt:int8:{name}"] = f"trtopt {name}"
    for step in ABLATIONS:
        if hasattr(plan, step.removeprefix("no_")):
            titles[f"trtopt:int8:{plan.method}:{step}"] = f"trtopt {plan.method}, {step.replace('_', ' ')}"
    return titles | PEERS | {"trtopt:fp16": "**trtopt FP16**", AUTOCAST: "ModelOpt AutoCast FP16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="folder that zoo.py filled")
    parser.add_argument("--modelopt-python", type=Path, help="Python of ModelOpt; without it ModelOpt is skipped")
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help="measure only variants that start with one of these; other rows are kept, and the page shows this command",
    )
    parser.add_argument("--eval", type=int, default=0, metavar="N", help="evaluate on N samples, evenly spread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs/quality.md")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds per step of a variant")
    parser.add_argument("--memory-gb", type=float, default=20, help="address space of each process")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["make", "run", "build", "versions"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(attempt(args)))
        return
    results = args.zoo / "quality.json"
    for name in args.models:
        measured = measure(args, name)
        stored = json.loads(results.read_text()) if results.exists() else {}
        if args.only:
            measured = merge(stored.get(name, {}), measured)
        measured["rows"] = {key: row for key, row in measured["rows"].items() if key in variants()}
        stored[name] = measured
        results.write_text(json.dumps({key: stored[key] for key in TASKS if key in stored}, indent=1))
        args.out.write_text(page(json.loads(results.read_text()), variants(), default()))


def merge(before: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return the earlier measurements, updated by the new ones. The row of FP32 stays the earlier one.

    If the numbers of samples differ, return only the new measurements.
    """
    if before.get("samples") != measured["samples"]:
        return measured
    rows = {**before["rows"], **measured["rows"], "fp32": before["rows"]["fp32"]}
    return {**measured, "rows": rows, "versions": {**before["versions"], **measured["versions"]}}


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Make, run and build every variant of one model."""
    rows: dict[str, Any] = {}
    # Even the versions are read in processes of their own: the peak memory of a child includes that of its parent at
    # the time of the fork, so this process must stay small.
    installed = spawn(args, sys.executable, {"step": "versions", "variant": "trtopt", "models": name})
    if args.modelopt_python:
        installed |= spawn(args, args.modelopt_python, {"step": "versions", "variant": "modelopt", "models": name})
    with tempfile.TemporaryDirectory(prefix="trtopt-quality-") as folder:
        for variant, title in variants().items():
            selected = not args.only or variant == "fp32" or variant.startswith(tuple(args.only))
            if selected and (args.modelopt_python or not variant.startswith("modelopt")):
                rows[variant] = row(args, name, variant, Path(folder))
                print(f"{name}  {title:50} {json.dumps(rows[variant])}", flush=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": command(args, name),
        "samples": [len(chosen(args.zoo, name, part, count)) for part, count in (("calib", 0), ("eval", args.eval))],
        "metric": TASKS[name].metric,
        "versions": installed,
        "rows": rows,
    }


def command(args: argparse.Namespace, name: str) -> str:
    """Return the command that repeats the measurement of this model, without the paths of this machine."""
    text = f"python benchmarks/quality.py ZOO --models {name}"
    text += " --modelopt-python MODELOPT/bin/python" if args.modelopt_python else ""
    text += f" --only {' '.join(args.only)}" if args.only else ""
    return text + (f" --eval {args.eval}" if args.eval else "")


def row(args: argparse.Namespace, name: str, variant: str, root: Path) -> dict[str, Any]:
    """Return the measurements of one variant, or its `error` as one line."""
    folder = root / variant.replace(":", "-")
    folder.mkdir()
    cells: dict[str, Any] = {}
    for step in ("make", "run", "build"):
        python = args.modelopt_python if step == "make" and variant.startswith("modelopt") else sys.executable
        began = busy()
        result = spawn(args, python, {"variant": variant, "step": step, "folder": folder, "models": name})
        ended = busy()
        if step == "make" and began and ended:
            cells["others"] = others(began, ended)
        if step == "build":
            # A failure to build does not make the measurements before it useless.
            result = {"tensorrt": result.get("error", result.get("tensorrt"))}
        cells |= result
        if "error" in cells:
            break
    # The other variants are compared with the outputs of FP32, which stays.
    if variant != "fp32":
        for path in folder.rglob("*.onnx"):
            path.unlink()
    return cells


def busy() -> tuple[float, float, float] | None:
    """Return wall-clock seconds, busy seconds of all cores, and CPU seconds of the children of this process.

    Return None on systems without `/proc/stat`.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    all_cores = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), all_cores, used.ru_utime + used.ru_stime


def others(began: tuple[float, float, float], ended: tuple[float, float, float]) -> float:
    """Return how many cores, on average, were used by other processes between two readings of `busy`."""
    seconds, all_cores, own = (after - before for before, after in zip(began, ended, strict=True))
    return max(0.0, all_cores - own) / max(seconds, 1e-9)


def spawn(args: argparse.Namespace, python: Path, task: dict[str, Any]) -> dict[str, Any]:
    line = [str(python), __file__, str(args.zoo), "--eval", str(args.eval)]
    line += ["--memory-gb", str(args.memory_gb)]
    line += [part for key, value in task.items() for part in (f"--{key}", str(value))]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {args.timeout:.0f} s"}
    if done.returncode:
        messages = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        return {"error": messages[-1].strip() if done.returncode > 0 else f"killed by signal {-done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def attempt(args: argparse.Namespace) -> dict[str, Any]:
    """Return the result of `child`, or its error: a failure of a variant is a result to show."""
    # A peer that keeps every activation in memory must fail alone, without other processes of the machine.
    limit = int(args.memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        return child(args)
    except Exception as error:  # noqa: BLE001
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return {"error": f"{type(error).__name__}: {message}"}


def child(args: argparse.Namespace) -> dict[str, Any]:
    """Run one step of one variant in this process, and return its measurements."""
    name = args.models[0]
    if args.step == "versions":
        return versions(args.variant)
    if args.step == "make":
        made = dataclasses.asdict(make(args.variant, args.zoo, name, args.folder))
        return {**made, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if args.step == "build":
        return {"tensorrt": accepted(args.zoo, name, args.folder)}
    result: dict[str, Any] = drift(args, name)
    result["quantized"], result["quantizable"] = quantized(args.folder / "model.onnx")
    if args.variant == AUTOCAST:
        result["typed"] = typed(args.folder / "model.onnx")
    return result


def drift(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Run `model.onnx` over the evaluation samples, and compare its first output with FP32's.

    The variant `fp32`, which runs first, stores its outputs for the other variants.
    """
    import numpy as np

    from trtopt.engine.onnxruntime import open_runner

    task, reference = TASKS[name], args.folder.parent / "reference"
    reference.mkdir(exist_ok=True)
    runner = open_runner(args.folder / "model.onnx")
    kept, kept_reference, angles, signal, noise = [], [], [], 0.0, 0.0
    for index, feed in enumerate(feeds(args.zoo, name, "eval", args.eval)):
        output = np.asarray(next(iter(runner.run(feed).values())))
        path = reference / f"{index}.npy"
        if args.variant == "fp32":
            np.save(path, output)
        expected = np.load(path)
        kept.append(task.keep(output))
        kept_reference.append(task.keep(expected))
        angles.append(cosine(expected, output))
        signal += float(np.square(expected, dtype=np.float64).sum())
        noise += float(np.square(expected.astype(np.float64) - output).sum())
    evaluated = Evaluated(kept, kept_reference, labels(args.zoo, name, args.eval), args.zoo / f"{name}.onnx")
    finite = bool(np.isfinite(noise))
    return {
        "task": task.score(evaluated),
        "sqnr": sqnr(signal, noise) if finite else -999.0,
        "cosine": float(np.mean(angles)) if finite else 0.0,
    }


def quantized(path: Path) -> tuple[int, int]:
    """Return the number of matrix products and convolutions whose operands are both dequantized, and of all of them."""
    import onnx

    def nodes(graph: Any) -> Iterator[Any]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    yield from nodes(attribute.g)

    all_nodes = list(nodes(onnx.load(path).graph))
    producers = {output: node for node in all_nodes for output in node.output}

    def dequantized(name: str) -> bool:
        # Operators that only move or retype values may be between the DequantizeLinear and the consumer.
        while name in producers and producers[name].op_type in ("Transpose", "Reshape", "Cast"):
            name = producers[name].input[0]
        return name in producers and producers[name].op_type == "DequantizeLinear"

    weighted = [node for node in all_nodes if node.op_type in QUANTIZABLE]
    return sum(all(map(dequantized, node.input[:2])) for node in weighted), len(weighted)


def typed(path: Path) -> dict[str, int]:
    """Return the number of computing nodes of the main graph by precision.

    A node with any FP32 input or output counts as FP32.
    """
    import onnx_ir as ir

    from trtopt.graph.file import load_ir
    from trtopt.graph.prepare import infer_shapes
    from trtopt.graph.query import FLOAT_COMPUTE_FREE

    model, counts = load_ir(path), {"fp16": 0, "fp32": 0}
    infer_shapes(model)
    for node in model.graph:
        types = {value.dtype for value in (*node.outputs, *node.inputs) if value is not None}
        if node.op_type not in FLOAT_COMPUTE_FREE and types & {ir.DataType.FLOAT16, ir.DataType.FLOAT}:
            counts["fp32" if ir.DataType.FLOAT in types else "fp16"] += 1
    return counts


def accepted(zoo: Path, name: str, folder: Path) -> str:
    """Build `model.onnx` with TensorRT, strongly typed. Return the error, or an empty string if it succeeds.

    The parsed types of trtopt's own variants are audited as well.
    """
    from trtopt.codec import decode
    from trtopt.engine.trt import builder as tensorrt
    from trtopt.errors import TrtoptError
    from trtopt.events import silent
    from trtopt.graph.file import describe
    from trtopt.shapes import parse_shapes, profile
    from trtopt.types import TypedModel

    model = describe(folder / "model.onnx")
    # Without decisions there is nothing to audit.
    network = TypedModel(onnx=model, precision="int8", rest="fp32", decisions=())
    if (folder / "typed.json").exists():
        network = dataclasses.replace(decode(TypedModel, json.loads((folder / "typed.json").read_text())), onnx=model)
    ranges, _ = profile(model.inputs, parse_shapes(flags(zoo, name)))
    try:
        tensorrt.build(tensorrt.find(), network, ranges, tensorrt.BuildPlan(), folder / "engine", emit=silent)
    except TrtoptError as error:
        return " ".join(str(error).split())
    return ""


def versions(maker: str) -> dict[str, str]:
    """Return the versions under this Python: of ModelOpt, or of trtopt, its commit and the packages that it uses."""
    from importlib.metadata import version

    if maker == "modelopt":
        return {"ModelOpt": f"{version('nvidia-modelopt')} (onnxruntime-gpu {version('onnxruntime-gpu')})"}
    import trtopt
    from trtopt.engine.trt.builder import find

    git = ["git", "-C", str(Path(trtopt.__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    packages = {name: version(name) for name in ("onnxruntime", "onnx", "numpy")}
    title = f"{trtopt.__version__} {commit}".strip()
    own = {"trtopt": title, "TensorRT": find().title}
    return {**own, **packages, "Python": platform.python_version(), "machine": machine()}


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


if __name__ == "__main__":
    main()
