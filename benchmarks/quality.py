"""INT8 and FP16 of trtopt, onnxruntime and NVIDIA ModelOpt side by side, on the trained networks of `zoo.py`.

    python benchmarks/zoo.py ZOO
    python benchmarks/quality.py ZOO --modelopt-python MODELOPT/bin/python [--models mnist ...] [--eval N]

ModelOpt needs an environment of its own (`zoo-requirements-modelopt.txt`): it overwrites onnxruntime. Every variant is
made in a process of its own, from the same calibration samples, one at a time; then each is run by the same
onnxruntime with the same settings over the same other samples (16-bit rounding simulated, Q/DQ pairs not fused), and
given to TensorRT's parser and builder. What is measured is kept in `ZOO/quality.json`, and the page is written from all
that stands there: models may be measured in turn.

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
"""Steps of trtopt's INT8 that can be turned off: the default method is measured without each, too."""

PEERS = {
    "ort:MinMax": "onnxruntime MinMax",
    "ort:Entropy": "onnxruntime Entropy (its 128 bins)",
    "ort:Entropy:2048": "onnxruntime Entropy, made to use 2048 bins",
    "ort:Percentile": "onnxruntime Percentile",
    "modelopt:int8:max": "ModelOpt max",
    "modelopt:int8:entropy": "ModelOpt entropy",
}
AUTOCAST = "modelopt:fp16"


def default() -> str:
    """The variant that is trtopt's default INT8; named by its method, so that a kept row is never another default's."""
    from trtopt import ConvertPlan

    return f"trtopt:int8:{ConvertPlan(source=Path(), precision='int8', run_dir=Path()).method}"


def variants() -> dict[str, str]:
    """Every variant and what the table calls it."""
    from trtopt import ConvertPlan
    from trtopt.calibrate import AUTO, methods

    plan = ConvertPlan(source=Path(), precision="int8", run_dir=Path())
    found = {"fp32": "FP32", default(): f"**trtopt {plan.method}** (default)"}
    found |= {f"trtopt:int8:{name}": f"trtopt {name}" for name in (*methods(), AUTO) if name != plan.method}
    found |= {
        f"trtopt:int8:{plan.method}:{step}": f"trtopt {plan.method}, {step.replace('_', ' ')}"
        for step in ABLATIONS
        if hasattr(plan, step.removeprefix("no_"))
    }
    return found | PEERS | {"trtopt:fp16": "**trtopt FP16**", AUTOCAST: "ModelOpt AutoCast FP16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path, help="folder that zoo.py filled")
    parser.add_argument("--modelopt-python", type=Path, help="without it ModelOpt is left out")
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help="variants that start so; other rows stay, and the page's command is that of the last run only",
    )
    parser.add_argument("--eval", type=int, default=0, metavar="N", help="evaluate on N samples, evenly spread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs/quality.md")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for each step of a variant")
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
        found = measure(args, name)
        kept = json.loads(results.read_text()) if results.exists() else {}
        if args.only:
            found = merge(kept.get(name, {}), found)
        found["rows"] = {key: row for key, row in found["rows"].items() if key in variants()}
        kept[name] = found
        results.write_text(json.dumps({key: kept[key] for key in TASKS if key in kept}, indent=1))
        args.out.write_text(page(json.loads(results.read_text()), variants(), default()))


def merge(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was measured before with what is new, if both evaluated as many samples; FP32's row stays the first one."""
    if before.get("samples") != found["samples"]:
        return found
    rows = {**before["rows"], **found["rows"], "fp32": before["rows"]["fp32"]}
    return {**found, "rows": rows, "versions": {**before["versions"], **found["versions"]}}


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Make, run and build every variant of one model."""
    rows: dict[str, Any] = {}
    # In processes of their own, as everything: a child's peak memory is never less than what its parent holds.
    found = spawn(args, sys.executable, {"step": "versions", "variant": "trtopt", "models": name})
    if args.modelopt_python:
        found |= spawn(args, args.modelopt_python, {"step": "versions", "variant": "modelopt", "models": name})
    with tempfile.TemporaryDirectory(prefix="trtopt-quality-") as folder:
        for variant, title in variants().items():
            wanted = not args.only or variant == "fp32" or variant.startswith(tuple(args.only))
            if wanted and (args.modelopt_python or not variant.startswith("modelopt")):
                rows[variant] = row(args, name, variant, Path(folder))
                print(f"{name}  {title:50} {json.dumps(rows[variant])}", flush=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": command(args, name),
        "samples": [len(chosen(args.zoo, name, part, count)) for part, count in (("calib", 0), ("eval", args.eval))],
        "metric": TASKS[name].metric,
        "versions": found,
        "rows": rows,
    }


def command(args: argparse.Namespace, name: str) -> str:
    """How to measure this model again, without the paths of this machine."""
    text = f"python benchmarks/quality.py ZOO --models {name}"
    text += " --modelopt-python MODELOPT/bin/python" if args.modelopt_python else ""
    text += f" --only {' '.join(args.only)}" if args.only else ""
    return text + (f" --eval {args.eval}" if args.eval else "")


def row(args: argparse.Namespace, name: str, variant: str, root: Path) -> dict[str, Any]:
    """All that one variant's row shows, or `error`: the one line that says why there is none."""
    folder = root / variant.replace(":", "-")
    folder.mkdir()
    made: dict[str, Any] = {}
    for step in ("make", "run", "build"):
        python = args.modelopt_python if step == "make" and variant.startswith("modelopt") else sys.executable
        began = busy()
        found = spawn(args, python, {"variant": variant, "step": step, "folder": folder, "models": name})
        ended = busy()
        if step == "make" and began and ended:
            made["others"] = others(began, ended)
        made |= found if step != "build" else {"tensorrt": found.get("error", found.get("tensorrt"))}
        if "error" in made:
            break
    if variant != "fp32":  # whose outputs the others are compared with
        for path in folder.rglob("*.onnx"):
            path.unlink()
    return made


def busy() -> tuple[float, float, float] | None:
    """Seconds of the clock, of all cores while busy, and of this process's children; None where no one says."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    all_cores = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), all_cores, used.ru_utime + used.ru_stime


def others(began: tuple[float, float, float], ended: tuple[float, float, float]) -> float:
    """How many cores, on average, worked on something else between two readings of `busy`."""
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
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        return {"error": said[-1].strip() if done.returncode > 0 else f"killed by signal {-done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def attempt(args: argparse.Namespace) -> dict[str, Any]:
    """`child`, or why it failed: any failure of a variant is a result to show."""
    # A peer that keeps every activation must fail by itself, not take the machine's other processes with it.
    limit = int(args.memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        return child(args)
    except Exception as error:  # noqa: BLE001
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return {"error": f"{type(error).__name__}: {said}"}


def child(args: argparse.Namespace) -> dict[str, Any]:
    """One step of one variant, in this process."""
    name = args.models[0]
    if args.step == "versions":
        return versions(args.variant)
    if args.step == "make":
        made = dataclasses.asdict(make(args.variant, args.zoo, name, args.folder))
        return {**made, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if args.step == "build":
        return {"tensorrt": accepted(args.zoo, name, args.folder)}
    found = drift(args, name)
    found |= dict(zip(("quantized", "quantizable"), quantized(args.folder / "model.onnx"), strict=True))
    if args.variant == AUTOCAST:
        found["typed"] = typed(args.folder / "model.onnx")
    return found


def drift(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Run `model.onnx` over the evaluation samples; compare with FP32's first output, which the first variant left."""
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
    """Nodes with weights, or that multiply two activations, of which both operands are dequantized; and all of them."""
    import onnx

    def nodes(graph: Any) -> Iterator[Any]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    yield from nodes(attribute.g)

    every = list(nodes(onnx.load(path).graph))
    makers = {output: node for node in every for output in node.output}

    def dequantized(name: str) -> bool:
        while name in makers and makers[name].op_type in ("Transpose", "Reshape", "Cast"):
            name = makers[name].input[0]
        return name in makers and makers[name].op_type == "DequantizeLinear"

    weighted = [node for node in every if node.op_type in QUANTIZABLE]
    return sum(all(map(dequantized, node.input[:2])) for node in weighted), len(weighted)


def typed(path: Path) -> dict[str, int]:
    """Nodes of the main graph that compute on floating-point numbers, by the type of their results."""
    import onnx_ir as ir

    from trtopt.export.onnx import load_ir
    from trtopt.export.prepare import infer_shapes
    from trtopt.precision.graph import FLOAT_COMPUTE_FREE

    model, counts = load_ir(path), {"fp16": 0, "fp32": 0}
    infer_shapes(model)
    for node in model.graph:
        types = {value.dtype for value in (*node.outputs, *node.inputs) if value is not None}
        if node.op_type not in FLOAT_COMPUTE_FREE and types & {ir.DataType.FLOAT16, ir.DataType.FLOAT}:
            counts["fp32" if ir.DataType.FLOAT in types else "fp16"] += 1
    return counts


def accepted(zoo: Path, name: str, folder: Path) -> str:
    """Empty when TensorRT parses and builds `model.onnx`, strongly typed; else the first reason why not.

    Of trtopt's own the types that were parsed are audited, too.
    """
    from trtopt.codec import decode
    from trtopt.engine import tensorrt
    from trtopt.errors import TrtoptError
    from trtopt.events import silent
    from trtopt.export.onnx import describe
    from trtopt.shapes import profile
    from trtopt.types import TypedModel

    model = describe(folder / "model.onnx")
    made = TypedModel(onnx=model, precision="int8", rest="fp32", decisions=())
    if (folder / "typed.json").exists():
        made = dataclasses.replace(decode(TypedModel, json.loads((folder / "typed.json").read_text())), onnx=model)
    ranges, _ = profile(model.inputs, flags(zoo, name))
    try:
        tensorrt.build(tensorrt.find(), made, ranges, tensorrt.BuildOptions(), folder / "engine", emit=silent)
    except TrtoptError as error:
        return " ".join(str(error).split())
    return ""


def versions(maker: str) -> dict[str, str]:
    """What does the work under this Python: packages and the commit of trtopt, or those of ModelOpt."""
    from importlib.metadata import version

    if maker == "modelopt":
        return {"ModelOpt": f"{version('nvidia-modelopt')} (onnxruntime-gpu {version('onnxruntime-gpu')})"}
    import trtopt
    from trtopt.engine.tensorrt import find

    git = ["git", "-C", str(Path(trtopt.__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    packages = {name: version(name) for name in ("onnxruntime", "onnx", "numpy")}
    found = {"trtopt": f"{trtopt.__version__} {commit}".strip(), "TensorRT": find().title, **packages}
    return found | {"Python": platform.python_version(), "machine": machine()}


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


if __name__ == "__main__":
    main()
