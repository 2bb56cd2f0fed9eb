"""A plug-in is one file: nothing else names a precision, a method, a kind of output, a backend or a report format."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import CALIB, DIGITS, EVAL

import trtopt

PLUG_INS = {
    "precision/toy.py": """
from dataclasses import replace
from trtopt.precision import fp16
FORMAT = replace(fp16.FORMAT, name="toy")
def apply(model, request):
    return fp16.apply(model, request)
""",
    "calibrate/methods/toy.py": """
def amax(histogram, format):
    return 2.0 * histogram.amax
""",
    "compare/kinds/toy.py": """
from dataclasses import replace
from trtopt.compare.kinds.values import Values
TAKES, PLAIN, METRICS = "anything", False, ("sqnr",)
class Toy(Values):
    def drift(self, ids):
        return replace(super().drift(ids), kind="toy")
def reader(opening):
    return Toy(opening.name) if opening.asked else None
""",
    "engine/toy.py": """
import hashlib
import shutil
from dataclasses import replace
from trtopt.engine import Times, onnxruntime
from trtopt.types import Engine, Support
def check_options(plan):
    pass
def lacks(plan):
    return ()
def check(model, plan, *, emit):
    return Support(by="toy", rejections=())
def key(plan):
    return {"toy": 1}
def build(order, out, *, emit):
    shutil.copyfile(order.typed.onnx.path, out)
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    engine = onnxruntime.build(order, out, emit=emit)
    return replace(engine, path=out, digest=digest, backend="toy", builder="toy 1.0", device="any")
def timing_cache(plan):
    return None
def layer_times(engine, feed, runs):
    return {}
def host():
    return {"toy": 1}
class Runner(onnxruntime.OrtRunner):
    device, max_batch, weights = "cpu", 4, 0
    def times(self, feed):
        self.run(feed)
        return Times(copy_in=0.0, compute=1.0, copy_out=0.0)
    def close(self):
        pass
def open(engine, *, graphs, streams=1):
    return Runner(onnxruntime.open_runner(engine.path)._session, "toy runtime")
""",
    "report/toy.py": """
def render(report):
    return f"toy: {report.precision} {report.comparison.outputs[0].kind} {report.verdict}\\n"
""",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more file in each folder of plug-ins."""
    root = tmp_path_factory.mktemp("package")
    source = Path(trtopt.__file__).parent
    shutil.copytree(source, root / "trtopt", ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in PLUG_INS.items():
        (root / "trtopt" / name).write_text(code)
    return root


def run(package: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "trtopt", *map(str, arguments)],
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_precision_a_kind_and_a_format_of_one_file_each_work(package: Path) -> None:
    flags = ("--backend", "onnxruntime", "--kind", "logits=toy", "--gate", "sqnr=20", "--format", "toy")
    assert run(package, "convert", DIGITS, "-p", "toy", "--data", EVAL, *flags) == "toy: toy toy pass\n"


def test_a_backend_of_one_file_builds_is_compared_and_is_timed(package: Path) -> None:
    run_dir = package / "engine"
    flags = ("--backend", "toy", "-p", "fp16", "--data", EVAL, "-o", run_dir, "--format", "json")
    report = json.loads(run(package, "convert", DIGITS, *flags))
    assert report["engine"]["builder"] == "toy 1.0"
    assert report["comparison"]["candidate_ran"] == "toy runtime"
    assert [stage["summary"] for stage in report["stages"] if stage["name"] == "check"] == [
        "all operators are supported by toy"
    ]
    timed = run(package, "bench", run_dir, "--batch", "2", "--seconds", "0.1", "--format", "json", "-o", package / "b")
    assert json.loads(timed)["benchmark"]["targets"][0]["ran"] == "toy runtime"


def test_a_method_of_one_file_works(package: Path) -> None:
    run(package, "calibrate", DIGITS, "--calib", CALIB, "--method", "toy", "-o", package / "table")
    assert '"toy"' in (package / "table/calibration.json").read_text()


@pytest.mark.parametrize("flag", ["--precision", "--kind", "--method", "--backend", "--format"])
def test_help_names_it(package: Path, flag: str) -> None:
    text = run(package, "convert", "--help")
    described = text[text.index("Arguments:") :]  # after the example
    assert "toy" in described[described.index(flag) :][:400]


def test_changed_code_runs_the_stages_again(package: Path) -> None:
    flags = ("convert", DIGITS, "-p", "fp32", "--data", EVAL, "--backend", "onnxruntime", "-o", package / "code")
    assert " cached " not in run(package, *flags)
    assert " cached " in run(package, *flags)
    with (package / "trtopt/compare/statistics.py").open("a") as file:
        file.write("# corrected\n")
    assert " cached " not in run(package, *flags)
