"""Tests of every way that a command can end, through real processes:

    0 pass    1 a gate failed    2 usage, input or stage error    3 not possible on this machine
    4 a requested gate is inconclusive    130 interrupted

test_wrong_input.py tests the messages for wrong inputs; here is one case of each kind.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from support import CALIB, DIGITS, EVAL, Done, save

FEW = ("--data", "few.npz")
ALL = ("--data", EVAL)
ONNX_ONLY = ("--backend", "onnxruntime")
QUICK = ("--batch", "1", "--seconds", "0.05")
ON_CPU = ("--device", "cpu")
TENSORRT = ("tensorrt", "tensorrt_rtx")

BLOCKING = """
import sys, time
def samples():
    print("at work", file=sys.stderr, flush=True)
    time.sleep(60)
    yield {}
"""


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that the commands below name: data, a run, broken models."""
    folder = tmp_path_factory.mktemp("here")
    with np.load(EVAL) as archive:
        np.savez(folder / "few.npz", **{name: archive[name][::25] for name in archive.files})
        np.savez(folder / "none.npz", **{name: archive[name][:0] for name in archive.files})
    np.save(folder / "ones.npy", np.ones((4, 16, 8, 8), np.float32))
    negative = helper.make_node("Neg", ["x"], ["n"], "negative")
    save(folder / "healthy.onnx", [negative, helper.make_node("Abs", ["n"], ["y"], "size")], [])
    save(folder / "nan.onnx", [negative, helper.make_node("Sqrt", ["n"], ["y"], "root")], [])
    two = onnx.load(folder / "healthy.onnx")
    two.graph.output.add().CopyFrom(two.graph.output[0])
    two.graph.output[1].name = "n"
    onnx.save(two, folder / "two.onnx")
    (folder / "no.onnx").write_text("no model")
    (folder / "slow.py").write_text(BLOCKING)
    done = trtopt(folder, "convert", DIGITS, *ALL, *ONNX_ONLY, "-o", "run")
    assert done.code == 0, done.err
    return folder


def trtopt(folder: Path, *arguments: object, without: tuple[str, ...] = ()) -> Done:
    """Run the program in a folder, on a machine without a GPU and without the packages `without`."""
    # The packages are hidden from the import system of a real process, as on a machine without them.
    hidden = "".join(f"sys.modules[{name!r}] = None;" for name in without)
    program = f"import sys; {hidden}\nfrom trtopt.cli.app import main; main()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRTOPT_")}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if without:  # also for its child processes
        shadows = folder / ("without-" + "-".join(without))
        shadows.mkdir(exist_ok=True)
        for name in without:
            (shadows / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
        environment["PYTHONPATH"] = os.pathsep.join([str(shadows), environment.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("compare", "--help"),
        ("convert", DIGITS, *ALL, *ONNX_ONLY, "-o", "run"),
        ("convert", DIGITS, "--no-compare", *ONNX_ONLY, "-o", "unchecked"),
        ("convert", DIGITS, *FEW, *ONNX_ONLY, "-o", "by-default"),
        ("convert", DIGITS, *FEW, *ONNX_ONLY, "--gate", "top1=1%", "--allow-inconclusive", "-o", "allowed"),
        ("calibrate", DIGITS, "--calib", CALIB, "-o", "calibrated"),
        ("compare", DIGITS, "run", *ALL, "-o", "compared"),
        ("compare", DIGITS, "run", *FEW, "-o", "by-default"),
        ("compare", DIGITS, "run", "run/typed.onnx", *FEW, "-o", "by-default"),
        ("compare", DIGITS, "run", *FEW, "--gate", "top1=1%", "--allow-inconclusive", "-o", "allowed"),
        ("bench", DIGITS, *QUICK, "-o", "timed"),
        ("report", "run"),
        ("report", "run", "--format", "junit"),
        ("inspect", DIGITS),
        ("inspect", "run", "--format", "json"),
        ("doctor",),
        ("config",),
        ("config", "compare", "--format", "json"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_0_when_all_is_well(arguments: tuple[object, ...], here: Path) -> None:
    done = trtopt(here, *arguments)
    assert done.code == 0, done.err
    assert done.out


def test_0_when_init_has_written_its_file(tmp_path: Path) -> None:
    assert trtopt(tmp_path, "init", DIGITS).code == 0
    assert trtopt(tmp_path, "init", DIGITS).code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert", DIGITS, *FEW, *ONNX_ONLY, "--gate", "sqnr=200", "-o", "failed"), "must be at least 200"),
        (("compare", DIGITS, "run", *FEW, "--gate", "sqnr=200", "-o", "failed"), "must be at least 200"),
        (("compare", DIGITS, "run", *FEW, "--gate", "equal=99%", "-o", "unevaluated"), "could not be evaluated"),
        (("bench", DIGITS, *QUICK, *ON_CPU, "--gate", "latency_p99=1us", "-o", "slow"), "latency_p99"),
        (("compare", "healthy.onnx", "nan.onnx", "--data", "ones.npy", "-o", "nan"), "NaN or Inf in 4 of 4 samples"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_1_when_a_gate_fails_with_its_reason(arguments: tuple[object, ...], said: str, here: Path) -> None:
    done = trtopt(here, *arguments)
    assert done.code == 1, done.err
    assert said in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert", DIGITS, *FEW, *ONNX_ONLY, "--gate", "top1=1%", "-o", "open"), "40 samples show no drop"),
        (("compare", DIGITS, "run", *FEW, "--gate", "top1=1%", "-o", "open"), "40 samples show no drop"),
        (("compare", DIGITS, "run", "run/typed.onnx", *FEW, "--gate", "top1=1%", "-o", "open"), "40 samples show no"),
        (("bench", DIGITS, *QUICK, "--gate", "latency_p99=5ms", "-o", "timed"), "no evidence about a GPU"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_4_when_a_gate_that_was_asked_for_is_inconclusive(arguments: tuple[object, ...], said: str, here: Path) -> None:
    done = trtopt(here, *arguments)
    assert done.code == 4, done.err
    verdict = done.out.splitlines()[-1]
    assert verdict.startswith("INCONCLUSIVE: ")
    assert said in verdict


def test_0_1_or_4_when_a_run_is_judged_again(here: Path) -> None:
    assert trtopt(here, "compare", DIGITS, "run", *FEW, "--gate", "sqnr=1", "-o", "judged").code == 0
    assert trtopt(here, "compare", "--from", "judged", "--gate", "sqnr=200").code == 1
    assert trtopt(here, "compare", "--from", "judged").code == 0
    assert trtopt(here, "compare", "--from", "judged", "--gate", "top1=1%").code == 4
    assert trtopt(here, "compare", "--from", "judged", "--gate", "top1=1%", "--allow-inconclusive").code == 0
    assert trtopt(here, "compare", "--from", "nowhere").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense",), "no such command"),
        (("convert",), "missing argument"),
        (("convert", DIGITS, "--nonsense"), "no such option"),
        (("convert", DIGITS, "--workspace", "much"), "--workspace"),
        (("convert", DIGITS), "no data to compare on"),
        (("convert", "nowhere.onnx", *FEW), "nowhere.onnx does not exist"),
        (("convert", "no.onnx", *FEW), "is not an ONNX model"),
        (("convert", DIGITS, "--data", "none.npz", "-o", "none"), "no samples"),
        (("convert", DIGITS, *FEW, "--format", "xml"), "xml"),
        (("export", DIGITS, "-o", "copy.onnx"), "is already ONNX"),
        (("calibrate", DIGITS), "--calib"),
        (("calibrate", DIGITS, "--calib", "none.npz"), "no samples"),
        (("compare", DIGITS, "run"), "--data"),
        (("compare", DIGITS, "run", "--data", "none.npz"), "no samples"),
        (("compare", DIGITS, "run", *FEW, "--gate", "nonsense"), "does not parse"),
        (("compare", DIGITS, "run", *FEW, "--gate", "boxes:sqnr=1"), "has no output boxes"),
        (("compare", "two.onnx", "healthy.onnx", "--data", "ones.npy"), "output"),
        (("bench", "nowhere"), "nowhere does not exist"),
        (("bench", DIGITS, "--gate", "latency=fast"), "latency"),
        (("report", "nowhere"), "no report at nowhere/report.json"),
        (("report", "run", "--format", "xml"), "'xml'"),
        (("inspect", "nowhere"), "nowhere does not exist"),
        (("inspect", DIGITS, "--format", "junit"), "inspect does not support --format junit"),
        (("doctor", "--format", "junit"), "doctor does not support --format junit"),
        (("config", "nonsense"), "'nonsense'"),
        (("init", "nowhere.onnx"), "nowhere.onnx does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_2_when_usage_or_input_is_wrong(arguments: tuple[object, ...], said: str, here: Path) -> None:
    done = trtopt(here, *arguments)
    assert done.code == 2, done.err
    assert said in done.err
    # A format for machines has the error on stdout, too.
    assert done.out == "" or "--format" in arguments


@pytest.mark.parametrize(
    ("arguments", "without", "said"),
    [
        (("doctor",), TENSORRT, ""),
        (("inspect", DIGITS, "--tensorrt"), TENSORRT, "pip install tensorrt-rtx-cu13"),
        (("convert", DIGITS, *ALL, "-o", "unbuilt"), TENSORRT, "pip install tensorrt-rtx-cu13"),
        (("compare", DIGITS, "run", *FEW, "-o", "unrun"), ("onnxruntime",), "pip install onnxruntime"),
        (("calibrate", DIGITS, "--calib", CALIB, "-o", "unrun"), ("onnxruntime",), "pip install onnxruntime"),
        (("bench", DIGITS, *QUICK, "-o", "unrun"), ("onnxruntime",), "pip install onnxruntime"),
        (("watch", "--once"), ("pynvml",), "pip install nvidia-ml-py"),
        (("export", "slow:samples", "-o", "m.onnx", "--shape", "x=1x3"), ("torch",), "pip install torch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_3_when_not_possible_on_this_machine(
    arguments: tuple[object, ...], without: tuple[str, ...], said: str, here: Path
) -> None:
    done = trtopt(here, *arguments, without=without)
    assert done.code == 3, done.err
    assert said in done.err


def test_a_failed_gate_takes_precedence_over_an_unable_machine(here: Path) -> None:
    done = trtopt(here, "convert", DIGITS, *FEW, "--gate", "sqnr=200", "-o", "both", without=TENSORRT)
    assert done.code == 1, done.err
    assert json.loads((here / "both/report.json").read_text())["verdict"] == "fail"


def test_an_inconclusive_gate_takes_precedence_over_an_unable_machine_unless_it_is_a_default(here: Path) -> None:
    asked = trtopt(here, "convert", DIGITS, *FEW, "--gate", "top1=1%", "-o", "both", without=TENSORRT)
    assert asked.code == 4, asked.err
    assert "no engine was built" in asked.out.splitlines()[-1]
    assert trtopt(here, "convert", DIGITS, *FEW, "-o", "both", without=TENSORRT).code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", DIGITS, "-p", "int8", "--calib", "slow:samples", "--no-compare", "-o", "cut1"),
        ("calibrate", DIGITS, "--calib", "slow:samples", "-o", "cut2"),
        ("compare", DIGITS, "run", "--data", "slow:samples", "-o", "cut3"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_130_when_interrupted_at_work(arguments: tuple[object, ...], here: Path) -> None:
    interrupted(here, [sys.executable, "-m", "trtopt", *map(str, arguments)], "^at work$")


@pytest.mark.parametrize("arguments", [("inspect", DIGITS), ("doctor",), ("config",), ("init", DIGITS)])
def test_130_when_interrupted_at_the_start(arguments: tuple[object, ...], tmp_path: Path) -> None:
    # `-X importtime` tells, line by line, which import has just ended.
    program = [sys.executable, "-X", "importtime", "-m", "trtopt", *map(str, arguments)]
    interrupted(tmp_path, program, r"\| +typer$")
    assert not list(tmp_path.iterdir())


def interrupted(folder: Path, program: list[str], when: str) -> None:
    """Run the program, send Ctrl-C when a line on stderr matches, and check how it ends."""
    with subprocess.Popen(
        program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as child:
        assert child.stderr is not None
        assert child.stdout is not None
        for line in child.stderr:
            if re.search(when, line):
                child.send_signal(signal.SIGINT)
                break
        rest = [line for line in child.stderr if not line.startswith("import time:")]
        out = child.stdout.read()
    assert child.returncode == 130, rest
    assert rest[-1] == "error: interrupted; run again to resume after the last completed stage\n"
    assert "Traceback" not in "".join(rest)
    assert out == ""
