"""`--ray` on a real local cluster of four workers. Skipped where ray is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import CALIB, DIGITS, EVAL

WITHOUT = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")

# In a worker of Ray the sample 25 kills the process: at its first use only, or always.
DATA = """
import os, signal, sys
from pathlib import Path
import numpy as np
HERE = Path(__file__).parent
VALUES = np.load({eval!r})["input"][:40]
def _samples(always):
    for index, value in enumerate(VALUES):
        if index == 25 and "default_worker" in sys.argv[0]:
            flag = HERE / "killed"
            if always or not flag.exists():
                flag.write_text(flag.read_text() + "x" if flag.exists() else "x")
                os.kill(os.getpid(), signal.SIGKILL)
        yield {{"input": value}}
def once(): yield from _samples(False)
def always(): yield from _samples(True)
"""

PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
import ray
from trtopt.commands.calibrate import calibrate
from trtopt.commands.compare import compare
from trtopt.commands.predict import predict
from trtopt.commands.sensitivity import KIND, sensitivity
from trtopt.commands.spread import spread, spread_bench
from trtopt.engine import BuildPlan
from trtopt.errors import TrtoptError
from trtopt.plan import BenchPlan, ComparePlan, ConvertPlan, DataPlan, PredictPlan, SpeedPlan
from trtopt.shards.cluster import Cluster
ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
digits, calib, eval = map(Path, sys.argv[1:])
cluster = Cluster(cores=1)
def calibration(folder, source):
    return ConvertPlan(source=digits, precision="int8", run_dir=Path(folder), calib=DataPlan(source=str(source)),
                       method="entropy", equalization=False, build=BuildPlan(backend="onnxruntime"))
told = {}
calibrate(calibration("whole", "samples_of_ray:once"))
spread(calibration("spread", "samples_of_ray:once"), cluster)
told["table"] = Path("whole/calibration.json").read_text() == Path("spread/calibration.json").read_text()
told["killed"] = len(Path("killed").read_text())
told["left"] = [path.name for path in Path("spread").glob("*.partial")]
def comparison(folder):
    return ComparePlan(baseline=digits, candidates=(digits,), run_dir=Path(folder), data=DataPlan(source=str(eval)))
told["report"] = compare(comparison("c1")).comparison == spread(comparison("c2"), cluster).comparison
def prediction(out): return PredictPlan(run=digits, out=Path(out), data=DataPlan(source=str(eval)))
predict(prediction("whole.jsonl"))
told["rows"] = spread(prediction("spread.jsonl"), cluster).rows
told["same rows"] = Path("whole.jsonl").read_bytes() == Path("spread.jsonl").read_bytes()
def measurement(folder): return replace(calibration(folder, calib), data=DataPlan(source=str(eval), samples=20))
told["groups"] = str(sensitivity(measurement("s1")).sensitivity) == str(
    spread(measurement("s2"), cluster, kind=KIND).sensitivity)
bench = spread_bench(BenchPlan(targets=(digits, Path("copy.onnx")), run_dir=Path("bench"), batches=(1, 4), seconds=0.1,
                               speed=SpeedPlan(device="cpu")), cluster).benchmark
told["timings"] = [[timing.target, timing.batch] for timing in bench.timings]
told["complete"] = bench.complete
try:
    spread_bench(BenchPlan(targets=(digits, Path("nosuch.onnx")), run_dir=Path("bench2"), seconds=0.1), cluster)
except TrtoptError as error:
    told["target"] = str(error)
for name, plan in (("poisoned", calibration("poisoned", "samples_of_ray:always")),
                   ("missing", prediction("out.jsonl"))):
    try:
        if name == "missing":
            plan = replace(plan, run=Path("nosuch"))
        spread(plan, cluster)
    except TrtoptError as error:
        told[name] = str(error)
print(json.dumps(told))
"""


@WITHOUT
def test_four_workers_make_what_one_process_makes_also_if_one_is_killed(tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path / "copy.onnx")
    (tmp_path / "samples_of_ray.py").write_text(DATA.format(eval=str(EVAL)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    arguments = [sys.executable, "-c", PROGRAM, str(DIGITS), str(CALIB), str(EVAL)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=600
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # Ray prints, too
    assert told["table"] is True
    assert told["report"] is True
    assert told["same rows"] is True
    assert told["rows"] == 1000
    assert told["groups"] is True
    assert told["timings"] == [["model.onnx", 1], ["copy.onnx", 1], ["model.onnx", 4], ["copy.onnx", 4]]
    assert told["complete"] is True
    assert told["target"].startswith("nosuch.onnx failed: ")
    assert told["killed"] >= 1
    assert told["left"] == []
    assert told["poisoned"].startswith("shard ")
    assert "failed 4 times" in told["poisoned"]
    assert "nosuch does not exist" in told["missing"]


@pytest.mark.parametrize(
    ("targets", "gate", "said"),
    [
        ((DIGITS, DIGITS), "latency_p99=5ms", "a target is given twice: each has a worker of its own"),
        ((DIGITS,), "speedup=1.5x", "--gate speedup cannot be combined with --ray"),
    ],
)
def test_a_benchmark_that_ray_cannot_divide_is_refused(targets, gate: str, said: str, cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = cli("bench", *targets, "--gate", gate, "--ray", "auto", "-o", tmp_path)
    assert done.code == 2
    assert said in done.err


def test_without_a_cluster_the_error_is_one_line(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = cli("predict", DIGITS, "--data", EVAL, "-o", tmp_path / "o.jsonl", "--ray", "127.0.0.1:1")
    assert done.code == 3
    (line,) = done.err.splitlines()
    assert "no Ray cluster at 127.0.0.1:1" in line or "pip install ray" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ray", "auto", "--shard", "1/2"), "--shard has no effect: --ray divides the data itself"),
        (("--ray-cores", "2"), "--ray-cores has no effect: there are no workers"),
    ],
)
def test_flags_without_effect_are_refused(flags: tuple[str, ...], said: str, cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = cli("predict", DIGITS, "--data", EVAL, "-o", tmp_path / "o.jsonl", *flags)
    assert done.code == 2
    assert said in done.err
