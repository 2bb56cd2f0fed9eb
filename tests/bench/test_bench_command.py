"""`trtopt bench` through the real entry point: output, files, and exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from onnx import helper, numpy_helper
from support import CALIB, DIGITS, EVAL, Done, save

from trtopt.candidate import fastest, resolve
from trtopt.codec import decode
from trtopt.types import Benchmark, Report

Cli = Callable[..., Done]
QUICK = ("--seconds", "0.02", "--device", "cpu")


def read(folder: Path) -> Benchmark:
    return decode(Benchmark, json.loads((folder / "benchmark.json").read_text()))


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run directory with a typed INT8 graph, an engine, and a profile of batches 1 to 32."""
    run = tmp_path_factory.mktemp("runs") / "int8"
    command = [sys.executable, "-m", "trtopt", "convert", DIGITS, "-p", "int8", "--calib", CALIB, "--no-compare"]
    subprocess.run([*command, "-o", run], check=True, capture_output=True)
    return run


def test_a_sweep_is_printed_and_stored(cli: Cli, tmp_path: Path) -> None:
    done = cli("bench", DIGITS, "--batch", "8,1", *QUICK, "-o", tmp_path)
    assert done.code == 0
    for part in (
        "latency in ms",
        "p99",
        "samples/s",
        "CPU; says nothing about the GPU",
        "UNCHECKED: no gate was given",
    ):
        assert part in done.out
    assert "GPU memory" not in done.out
    assert "speedup" not in done.out
    benchmark = read(tmp_path)
    assert benchmark.complete
    assert [timing.batch for timing in benchmark.timings] == [1, 8]
    report = decode(Report, json.loads((tmp_path / "report.json").read_text()))
    assert report.benchmark == benchmark
    assert (report.command, report.verdict) == ("bench", "unchecked")


def test_timings_are_also_stored_in_a_run_directory_that_is_a_target(cli: Cli, int8: Path, tmp_path: Path) -> None:
    before = (int8 / "report.json").read_text()
    done = cli("bench", DIGITS, int8, "--batch", "2", *QUICK, "-o", tmp_path)
    assert done.code == 0
    assert "TensorRT itself was" in done.out
    assert [timing.target for timing in read(int8).timings] == [int8.name]
    assert fastest(resolve(int8).timings) == read(tmp_path).timings[1]
    assert (int8 / "report.json").read_text() == before


def test_gates_decide_the_exit_code(cli: Cli, int8: Path, tmp_path: Path) -> None:
    arguments = ("bench", DIGITS, int8, "--batch", "1", *QUICK, "-o", tmp_path)
    passed = cli(*arguments, "--gate", "latency_mean=100s,latency_mean@1=200s")
    assert passed.code == 0
    assert "PASS: 2/2 gates passed" in passed.out
    failed = cli(*arguments, "--gate", "throughput@1=1e12")
    assert failed.code == 1
    assert "FAIL: " in failed.out
    assert "throughput" in failed.out.splitlines()[-1]
    # So few runs have no upper bound of the 99th percentile.
    short = ("bench", DIGITS, int8, "--batch", "1", "--device", "cpu", "--seconds", "0.001", "-o", tmp_path)
    assert cli(*short, "--gate", "latency_p99=100s").code == 4
    allowed = cli(*short, "--gate", "latency_p99=100s", "--allow-inconclusive")
    assert allowed.code == 0
    assert "INCONCLUSIVE: " in allowed.out


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("no_gpu")
def test_a_cpu_that_nobody_asked_for_settles_no_gate(cli: Cli, tmp_path: Path) -> None:
    command = ("bench", DIGITS, "--batch", "1,8", "--seconds", "0.02", "-o", tmp_path, "--gate")
    for gate in ("latency_mean=100s", "latency_mean=1us"):
        done = cli(*command, gate)
        assert done.code == 4
        line = done.out.splitlines()[-1]
        assert "on the CPU, must be at most" in line
        assert (
            "no evidence about a GPU: judge the CPU with --device cpu, or run this on the GPU; and 1 more gate" in line
        )
    assert cli(*command, "latency_mean=100s", "--allow-inconclusive").code == 0
    assert cli(*command, "latency_mean=100s", "--device", "cpu").code == 0
    assert cli(*command, "latency_mean=1us", "--device", "cpu").code == 1


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_cpu_is_asked_for_in_a_file_or_the_environment_too(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if where == "file":
        (tmp_path / "trtopt.toml").write_text('[bench]\ndevice = "cpu"\n')
    else:
        monkeypatch.setenv("TRTOPT_BENCH_DEVICE", "cpu")
    done = cli("bench", DIGITS, "--batch", "1", "--seconds", "0.02", "--gate", "latency_mean=100s")
    assert done.code == 0, done.out
    assert " ms on the CPU, 95 % bounds" in " ".join(done.out.split())


@pytest.mark.usefixtures("no_gpu")
def test_a_largest_batch_on_a_cpu_that_nobody_asked_for_is_no_verdict(cli: Cli, tmp_path: Path) -> None:
    none = ("bench", DIGITS, "--max-batch", "--latency-limit", "0.001us", "-o", tmp_path)
    done = cli(*none)
    assert done.code == 4
    assert "INCONCLUSIVE: max_batch: " in done.out.splitlines()[-1]
    assert cli(*none, "--allow-inconclusive").code == 0
    assert cli(*none, "--device", "cpu").code == 1
    some = cli("bench", DIGITS, "--max-batch", "--memory-limit", "100MB", "-o", tmp_path)
    assert some.code == 0
    assert "searched on the CPU, no evidence about a GPU" in some.out


@pytest.mark.parametrize("format", ["json", "markdown", "junit", "github", "text"])
def test_every_format_contains_the_result(cli: Cli, tmp_path: Path, format: str) -> None:
    done = cli("bench", DIGITS, "--batch", "1", *QUICK, "-o", tmp_path, "--format", format, "--gate", "throughput=1e12")
    assert done.code == 1
    assert "throughput" in done.out
    if format == "json":
        assert decode(Report, json.loads(done.out)).benchmark == read(tmp_path)
    if format == "markdown":
        assert "### latency in ms" in done.out
        assert "| batch | mean | ± |" in done.out
    if format == "junit":
        suite = ElementTree.fromstring(done.out).find("testsuite")
        assert suite is not None
        assert suite.get("failures") == "1"
        assert "says nothing about the GPU" in done.out


def test_targets_can_run_on_real_samples(cli: Cli, tmp_path: Path) -> None:
    assert cli("bench", DIGITS, "--batch", "3", *QUICK, "-o", tmp_path, "--data", EVAL).code == 0
    missing = cli("bench", DIGITS, *QUICK, "-o", tmp_path, "--data", tmp_path / "no.npz")
    assert missing.code == 2
    assert "no such file" in missing.err


def test_targets_with_the_same_file_name_are_named_by_their_paths(cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / DIGITS.name
    other.write_bytes(DIGITS.read_bytes())
    assert cli("bench", DIGITS, other, "--batch", "1", *QUICK, "-o", tmp_path / "out").code == 0
    assert [target.name for target in read(tmp_path / "out").targets] == [str(DIGITS), str(other)]


def test_a_target_named_twice_is_numbered(cli: Cli, tmp_path: Path) -> None:
    assert cli("bench", DIGITS, DIGITS, "--batch", "1", *QUICK, "-o", tmp_path).code == 0
    assert [target.name for target in read(tmp_path).targets] == [DIGITS.name, f"{DIGITS.name} (2)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0"), "invalid --batch 0"),
        (("--batch", "1,x"), "invalid --batch 1,x"),
        (("--seconds", "0"), "invalid --seconds 0"),
        (("--seconds", "nan"), "invalid --seconds nan"),
        (("--gate", "latency_p99=5"), "missing unit in --gate"),
        (("--gate", "speedup=2"), "speedup needs two targets"),
        (("--gate", "latency_p99@3=5ms"), "batch size 3 is not measured"),
        (("--shape", "input=1x1x28x28", "--batch", "2"), "its batch size is fixed at 1"),
        (("--memory-limit", "1GiB"), "need --max-batch"),
        (("--max-batch", "--batch", "1"), "--batch cannot be combined with --max-batch"),
        (("--max-batch", "--memory-limit", "1"), "it must be one of B, kB"),
        (("--max-batch", "--latency-limit", "5"), "it must be one of ms"),
        (("--max-batch", "--shape", "input=2x1x28x28"), "takes batches of 2 only"),
        (("--max-batch", DIGITS), "--max-batch takes one target, but 2 are given"),
    ],
)
def test_wrong_flags_are_rejected(cli: Cli, tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    done = cli("bench", DIGITS, "--device", "cpu", "-o", tmp_path / "out", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out" / "benchmark.json").exists()


def test_a_missing_or_unreadable_target_is_named(cli: Cli, tmp_path: Path) -> None:
    assert "no.onnx does not exist" in cli("bench", tmp_path / "no.onnx", "-o", tmp_path / "out").err
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x07torn")
    done = cli("bench", tmp_path / "torn.onnx", "-o", tmp_path / "out")
    assert done.code == 2
    assert "torn.onnx" in done.err


def test_an_engine_is_not_run_on_the_cpu_or_without_a_gpu(
    cli: Cli, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu = cli("bench", int8 / "model.engine", "--device", "cpu", "-o", tmp_path)
    assert on_cpu.code == 2
    assert f"give {int8}: its typed graph runs in onnxruntime" in on_cpu.err
    assert cli("bench", int8 / "model.engine", "-o", tmp_path).code == 3
    assert cli("bench", int8 / "model.engine", "--max-batch", "-o", tmp_path).code == 3
    assert cli("bench", DIGITS, "--device", "cuda", "-o", tmp_path).code == 3
    assert cli("bench", DIGITS, "--device", "cuda", "--max-batch", "-o", tmp_path).code == 3


def test_the_report_of_a_conversion_is_not_replaced(cli: Cli, int8: Path) -> None:
    done = cli("bench", int8, *QUICK, "-o", int8)
    assert done.code == 2
    assert "is a run directory of trtopt convert" in done.err


def test_the_largest_batch_is_stored_beside_the_timings(cli: Cli, int8: Path, tmp_path: Path) -> None:
    assert cli("bench", int8, "--batch", "1", *QUICK, "-o", tmp_path).code == 0
    timings = read(int8).timings
    done = cli("bench", int8, "--max-batch", "--device", "cpu", "--memory-limit", "100MB", "-o", tmp_path)
    assert done.code == 0
    for part in ("largest batch", "limits", "weights", "inputs and outputs", "activations", "does not fit"):
        assert part in done.out
    benchmark = read(int8)
    assert benchmark.timings == timings
    assert benchmark.limit is not None
    assert benchmark.limit.batch > 1
    assert benchmark.limit.total <= 100e6
    assert cli("bench", int8, "--batch", "2", *QUICK, "-o", tmp_path).code == 0
    assert read(int8).limit == benchmark.limit


def test_a_limit_that_a_single_sample_exceeds_fails(cli: Cli, tmp_path: Path) -> None:
    done = cli("bench", DIGITS, "--max-batch", "--device", "cpu", "--latency-limit", "0.001us", "-o", tmp_path)
    assert done.code == 1
    assert "FAIL: max_batch" in done.out


def test_ctrl_c_keeps_the_timings_so_far(tmp_path: Path) -> None:
    batches = ",".join(map(str, range(1, 200)))
    command = [sys.executable, "-m", "trtopt", "bench", DIGITS, "--batch", batches, "--seconds", "0.05"]
    with subprocess.Popen(
        [*command, "--device", "cpu", "-o", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (tmp_path / "benchmark.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "error: interrupted at batch" in line
    assert str(tmp_path / "benchmark.json") in line
    assert "latency in ms" in out
    benchmark = read(tmp_path)
    assert not benchmark.complete
    assert 1 <= len(benchmark.timings) < 199


LIMITED = """
import resource, sys
import onnxruntime, onnx, scipy.special, scipy.stats
size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize:")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 700 * 2**20,) * 2)
from trtopt.cli.app import main
main()
"""


@pytest.mark.parametrize("side", [8, 512], ids=["in onnxruntime", "on the host"])
def test_exhausted_memory_keeps_the_timings_so_far(tmp_path: Path, side: int) -> None:
    """Memory is limited so that activations do not fit, or with larger inputs the inputs alone."""
    weights = [numpy_helper.from_array(np.zeros((64, 1, 1, 1), np.float32), "w")]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], "conv"), helper.make_node("ReduceSum", ["a"], ["y"], "sum")]
    path = save(tmp_path / "net.onnx", nodes, weights, ("n", 1, side, side), (1, 1, 1, 1))
    large = 600 * 2**20 // (side * side * 4 * (64 if side == 8 else 1)) * 2
    command = [sys.executable, "-c", LIMITED, "bench", path, "--batch", f"1,{large}", *QUICK, "-o", tmp_path / "out"]
    gated = [*command, "--gate", "throughput=1e12"]
    failed = subprocess.run(list(map(str, gated)), capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed.stderr  # shown at batch 1, whatever becomes of the other
    assert f"warning: memory is exhausted at batch {large}: " in failed.stdout
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"memory is exhausted at batch {large}: " in line
    assert "Batch 1 was measured" in line
    assert "latency in ms" in done.stdout
    assert [timing.batch for timing in read(tmp_path / "out").timings] == [1]
    assert not read(tmp_path / "out").complete


def test_a_batch_that_the_model_rejects_keeps_the_timings_so_far(cli: Cli, tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2, -1, 8], np.int64), "shape")  # an odd batch cannot be reshaped
    path = save(
        tmp_path / "net.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [shape],
        ("n", 1, 1, 8),
        (2, "m", 8),
    )
    done = cli("bench", path, "--batch", "2,3", *QUICK, "-o", tmp_path / "out")
    assert done.code == 2
    assert "error: batch 3: onnxruntime cannot run the model" in done.err
    assert "Batch 2 was measured" in done.err
    assert "latency in ms" in done.out
    assert [timing.batch for timing in read(tmp_path / "out").timings] == [2]


def test_a_run_directory_that_cannot_be_written_is_only_a_warning(cli: Cli, int8: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(int8, tmp_path / "copy")
    (copy / "benchmark.json").unlink(missing_ok=True)
    (copy / "benchmark.json").mkdir()
    done = cli("bench", copy, "--batch", "1", *QUICK, "-o", tmp_path / "out")
    assert done.code == 0
    assert f"not left in {copy}" in done.err
    assert read(tmp_path / "out").complete
