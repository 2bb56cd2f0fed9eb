"""`trtopt convert` and `trtopt compare` from end to end, on the digits sample, with the real parser and builder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support import CALIB, DIGITS, EVAL, ROOT, Done

Cli = Callable[..., Done]
INT8 = ("--precision", "int8", "--calib", CALIB)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run an INT8 conversion with the installed program, and return its run directory with the engine."""
    folder = tmp_path_factory.mktemp("run") / "int8"
    command = [sys.executable, "-m", "trtopt", "convert", DIGITS, *INT8, "--data", EVAL, "-o", folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def report(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder / "report.json").read_text())
    return loaded


def test_a_run_writes_every_artifact_and_nothing_else(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} == {
        ".lock",
        "manifest.json",
        "fp32.onnx",
        "calibration.json",
        "calibration.cache",
        "histograms.json",
        "observed.npz",
        "equalized.onnx",
        "typed.onnx",
        "model.engine",
        "report.json",
        "report.html",
    }


def test_a_cached_run_imports_nothing_that_computes(run_dir: Path) -> None:
    heavy = (
        "jinja2 numba onnx_ir onnxruntime onnxscript onnxslim scipy tensorflow torch trtopt.bench.sweep "
        "trtopt.compare.metrics trtopt.engine.onnxruntime trtopt.graph.prepare trtopt.precision.passes.placement"
    ).split()
    arguments = ["convert", DIGITS, *INT8, "--data", EVAL, "-o", run_dir]
    code = (
        f"import sys; sys.argv = {['trtopt', *map(str, arguments)]!r}\n"
        "from trtopt.cli.app import main\n"
        "try: main()\nexcept SystemExit as leave: assert not leave.code\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
    )
    # The first of these runs writes the page again: it says of each stage that it was cached.
    done = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert {stage["status"] for stage in report(run_dir)["stages"]} == {"cached"}  # type: ignore[index, attr-defined]
    assert done[-1].stdout.splitlines()[-1] == "HEAVY []"


def test_the_engine_is_built_and_audited_in_int8(run_dir: Path) -> None:
    engine = report(run_dir)["engine"]
    assert engine["backend"] == "tensorrt"  # type: ignore[index]
    assert engine["builder"].startswith("TensorRT")  # type: ignore[index]
    assert engine["audit"]["int8"] >= 5  # type: ignore[index]


def test_weights_are_stored_in_one_byte(run_dir: Path) -> None:
    assert (run_dir / "typed.onnx").stat().st_size < 0.4 * (run_dir / "fp32.onnx").stat().st_size


def test_every_number_says_where_it_ran(run_dir: Path) -> None:
    comparison = report(run_dir)["comparison"]
    assert "CPU" in comparison["baseline_ran"]  # type: ignore[index]
    assert "TensorRT itself was not run" in comparison["candidate_ran"]  # type: ignore[index]


def test_a_second_run_is_cached_and_fast(run_dir: Path, cli: Cli) -> None:
    done = cli("convert", DIGITS, *INT8, "--data", EVAL, "-o", run_dir)
    assert done.code == 0
    assert done.err.count("cached") == 11
    assert "✓" not in done.err


def test_a_changed_option_runs_only_what_depends_on_it(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    done = cli("convert", DIGITS, *INT8, "--data", EVAL, "-o", folder, "--optimization-level", 1)
    assert [line.split()[1] for line in done.err.splitlines() if line.startswith("✓")] == ["build"]


def test_a_changed_gate_runs_no_sample_again(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    done = cli("convert", DIGITS, *INT8, "--data", EVAL, "-o", folder, "--gate", "sqnr=90")
    assert [line.split()[1] for line in done.err.splitlines() if line.startswith("✓")] == ["gate", "layers"]
    assert done.code == 1


@pytest.mark.parametrize("method", ["entropy", "percentile", "minmax", "mse", "auto"])
def test_int8_accuracy_is_within_half_a_point_of_fp32(method: str, tmp_path: Path, cli: Cli) -> None:
    done = cli(
        *("convert", DIGITS, *INT8, "--method", method, "--data", EVAL, "-o", tmp_path / "run"),
        *("--backend", "onnxruntime", "--gate", "top1=0.5%", "--format", "json"),
    )
    assert done.code == 0, done.err
    values = json.loads(done.out)["comparison"]["outputs"][0]["values"]
    assert abs(values["accuracy_fp32"] - values["accuracy"]) <= 0.5


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_other_precisions_build_and_agree(precision: str, tmp_path: Path, cli: Cli) -> None:
    done = cli("convert", DIGITS, "-p", precision, "--data", EVAL, "-o", tmp_path / "run", "--format", "json")
    assert done.code == 0, done.err
    audit = json.loads(done.out)["engine"]["audit"]
    assert set(audit) == {precision}


def test_fp8_agrees_although_onnxruntime_would_drop_relus_before_its_quantizers(tmp_path: Path, cli: Cli) -> None:
    done = cli(
        *("convert", DIGITS, "-p", "fp8", "--calib", CALIB, "--data", EVAL, "-o", tmp_path / "run"),
        *("--backend", "onnxruntime", "--gate", "sqnr=25dB,top1=1%"),
    )
    assert done.code == 0, done.err


def test_a_failed_gate_exits_1_and_names_the_metric(tmp_path: Path, cli: Cli) -> None:
    done = cli(
        *("convert", DIGITS, *INT8, "--data", EVAL, "-o", tmp_path / "run", "--backend", "onnxruntime"),
        *("--gate", "sqnr=90"),
    )
    assert done.code == 1
    assert "FAIL: logits: sqnr" in done.out


def test_compare_judges_a_run_directory_and_its_engine(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    for candidate in (run_dir, run_dir / "model.engine", run_dir / "typed.onnx"):
        done = cli(
            "compare", DIGITS, candidate, "--data", EVAL, "-o", tmp_path / candidate.name, "--gate", "cosine=0.9"
        )
        assert done.code == 0, done.err
        assert "PASS" in done.out


def test_compare_exits_1_on_a_failed_gate(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("compare", DIGITS, run_dir, "--data", EVAL, "-o", tmp_path / "c", "--gate", "top1=1%,sqnr=90")
    assert done.code == 1
    assert "FAIL: logits: sqnr" in done.out


def test_an_engine_without_a_manifest_is_refused(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    stray = tmp_path / "stray.engine"
    stray.write_bytes((run_dir / "model.engine").read_bytes())
    done = cli("compare", DIGITS, stray, "--data", EVAL, "-o", tmp_path / "c")
    assert done.code == 2
    assert "is not an engine that trtopt built" in done.err


def test_a_table_drives_a_second_conversion_to_the_same_graph(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    for table in ("calibration.json", "calibration.cache"):
        folder = tmp_path / table
        done = cli(
            *("convert", DIGITS, "-p", "int8", "--calib-table", run_dir / table, "--calib", CALIB, "--data", EVAL),
            *("-o", folder, "--backend", "onnxruntime"),
        )
        assert done.code == 0, done.err
        assert (folder / "typed.onnx").read_bytes() == (run_dir / "typed.onnx").read_bytes()


def test_biases_are_never_corrected_by_the_samples_that_judge_the_result(
    run_dir: Path, tmp_path: Path, cli: Cli
) -> None:
    command = ("convert", DIGITS, "-p", "int8", "--calib-table", run_dir / "calibration.json", "--data", EVAL)
    for folder, *flags in (("judged",), ("without", "--no-bias-correction")):
        done = cli(*command, "-o", tmp_path / folder, "--backend", "onnxruntime", *flags)
        assert done.code == 0, done.err
        assert ("biases are not corrected: bias correction needs --calib" in done.out) == (not flags)
    assert (tmp_path / "judged/typed.onnx").read_bytes() == (tmp_path / "without/typed.onnx").read_bytes()


def test_calibrate_leaves_the_table_that_convert_then_finds(tmp_path: Path, cli: Cli) -> None:
    done = cli("calibrate", DIGITS, "--calib", CALIB, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert "scales by mse over 200 samples" in done.out
    assert (tmp_path / "run/calibration.json").is_file()
    done = cli("convert", DIGITS, *INT8, "--data", EVAL, "-o", tmp_path / "run", "--backend", "onnxruntime")
    assert any(line.split()[1:3] == ["calibrate", "cached"] for line in done.err.splitlines())


def test_a_cache_of_tensorrt_10_drives_a_conversion_to_its_scales(tmp_path: Path, cli: Cli) -> None:
    # As IInt8EntropyCalibrator2 writes it: the scale of each tensor as the bits of a big-endian float32.
    scales = {name: np.float32(0.031 + 0.007 * i) for i, name in enumerate(_quantized_tensors(tmp_path, cli))}
    lines = [f"{name}: {int(scale.view(np.uint32)):08x}" for name, scale in scales.items()]
    (tmp_path / "old.cache").write_text("\n".join(["TRT-101300-EntropyCalibration2", "unused: 3c010a14", *lines, ""]))
    table = ("-p", "int8", "--rest", "fp32", "--calib-table", tmp_path / "old.cache")
    done = cli(
        "convert", DIGITS, *table, "--data", EVAL, "-o", tmp_path / "b", "--backend", "onnxruntime", "--gate", "sqnr=1"
    )
    assert done.code == 0, done.err
    typed = onnx.load(tmp_path / "b/typed.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in typed.graph.initializer}
    written = {node.input[0]: constants[node.input[1]] for node in typed.graph.node if node.op_type == "QuantizeLinear"}
    assert {scale.item() for scale in written.values()} == {scale.item() for scale in scales.values()}


def _quantized_tensors(folder: Path, cli: Cli) -> list[str]:
    done = cli("calibrate", DIGITS, "--calib", CALIB, "--no-equalization", "-o", folder / "a")
    assert done.code == 0, done.err
    return list(json.loads((folder / "a/calibration.json").read_text())["tensors"])


ON_CALIBRATION = "(measured on the calibration samples: no evidence for unseen data)"


def test_the_first_command_makes_an_engine_and_exits_0_with_an_honest_verdict(tmp_path: Path, cli: Cli) -> None:
    done = cli("convert", DIGITS, "--precision", "int8", "--calib", CALIB, "-o", tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "model.engine").is_file()
    line = done.out.splitlines()[-1]
    assert line.startswith("INCONCLUSIVE: logits: top1: 200 samples show no drop, but about ")
    assert (
        " are needed to show at most 1 % (exit 0: an inconclusive default gate does not count; with --gate top1=1%"
        in line
    )
    assert line.endswith("; measured on the calibration samples: no evidence for unseen data)")
    assert " gates passed, 1 inconclusive" in done.out


@pytest.mark.parametrize("data", [(), ("--data", CALIB)], ids=["none", "the same"])
@pytest.mark.parametrize(("gate", "code"), [("sqnr=20", 0), ("sqnr=200", 1), ("top1=1%", 4)])
def test_the_verdict_says_that_it_rests_on_the_calibration_samples(
    data: tuple[object, ...], gate: str, code: int, tmp_path: Path, cli: Cli
) -> None:
    done = cli("convert", DIGITS, *INT8, *data, "--backend", "onnxruntime", "--gate", gate, "-o", tmp_path)
    assert done.code == code, done.err
    assert done.out.splitlines()[-1].endswith(f"{ON_CALIBRATION[1:]}")
    assert done.out.count("measured on the calibration samples") == 1
    assert "used for calibration" not in done.out
    assert report(tmp_path)["comparison"]["calibrated_on"] == 200  # type: ignore[index]


def test_evaluation_samples_that_were_calibrated_on_are_counted_also_those_given_twice(
    tmp_path: Path, cli: Cli
) -> None:
    with np.load(EVAL) as archive:
        images = archive["input"][:40]
    np.save(tmp_path / "calib.npy", images[:30])
    np.save(tmp_path / "some.npy", np.concatenate([images[20:], images[25:30]]))  # 10 of them, and 5 once more
    np.save(tmp_path / "twice.npy", np.concatenate([images[:30], images[:5]]))
    command = ("convert", DIGITS, "-p", "int8", "--calib", tmp_path / "calib.npy", "--backend", "onnxruntime")
    some = cli(*command, "--gate", "sqnr=1", "--data", tmp_path / "some.npy", "-o", tmp_path / "run")
    share = "15 of 25 evaluation samples were used for calibration: those are no evidence for unseen data"
    assert some.out.splitlines()[-1] == f"PASS: 2/2 gates passed ({share})"
    twice = cli(*command, "--gate", "sqnr=1", "--data", tmp_path / "twice.npy", "-o", tmp_path / "run")
    assert twice.out.splitlines()[-1] == f"PASS: 2/2 gates passed {ON_CALIBRATION}"


def test_the_verdict_says_that_it_rests_on_the_samples_that_a_table_was_made_from(
    run_dir: Path, tmp_path: Path, cli: Cli
) -> None:
    table = ("--calib-table", run_dir / "calibration.json")
    done = cli(
        "convert", DIGITS, "-p", "int8", *table, "--data", CALIB, "-o", tmp_path / "b", "--backend", "onnxruntime"
    )
    assert ON_CALIBRATION[1:] in done.out.splitlines()[-1]


def test_no_compare_gives_no_verdict(tmp_path: Path, cli: Cli) -> None:
    done = cli("convert", DIGITS, "--no-compare", "-o", tmp_path / "run", "--backend", "onnxruntime")
    assert done.code == 0
    assert "UNCHECKED" in done.out


def test_without_tensorrt_the_rest_is_done_and_the_exit_code_is_3(tmp_path: Path) -> None:
    # The packages are hidden from the import system of a real process, as on a machine without them.
    code = (
        "import sys; sys.modules['tensorrt'] = None; sys.modules['tensorrt_rtx'] = None\n"
        "from trtopt.cli.app import main; main()"
    )
    arguments = ["convert", DIGITS, *INT8, "--data", EVAL, "-o", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "pip install tensorrt-rtx-cu13" in done.stderr
    assert (tmp_path / "run/typed.onnx").exists()
    assert report(tmp_path / "run")["comparison"]["verdict"] == "pass"  # type: ignore[index]
    assert report(tmp_path / "run")["engine"] is None


def test_stdout_is_pure_json(tmp_path: Path) -> None:
    arguments = ["convert", DIGITS, *INT8, "--data", EVAL, "-o", tmp_path / "run"]
    arguments += ["--backend", "onnxruntime", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "trtopt", *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["verdict"] == "pass"
    assert done.stdout == (tmp_path / "run/report.json").read_text()


def test_external_data_is_followed(tmp_path: Path, cli: Cli) -> None:
    model = onnx.load(str(DIGITS))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    done = cli("convert", tmp_path / "model.onnx", *INT8, "--data", EVAL, "-o", tmp_path / "run")
    assert done.code == 0, done.err


def test_the_readme_and_the_demo_name_files_that_exist() -> None:
    for path in (DIGITS, CALIB / "recipe.toml", EVAL):
        assert path.is_file()
    assert len(list(CALIB.rglob("*.png"))) == 200
    with np.load(EVAL) as archive:
        assert set(archive.files) == {"input", "labels"}
    assert DIGITS.stat().st_size < 1_000_000
    assert (ROOT / "README.md").is_file()


def test_an_engine_of_an_earlier_graph_is_never_used_for_the_new_one(run_dir: Path, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    # Another graph, and no TensorRT to build it with: exit 3, and the old engine is gone.
    done = cli(
        *("convert", DIGITS, *INT8, "--method", "minmax", "--data", EVAL, "-o", folder, "--tensorrt", "tensorrt"),
    )
    assert done.code == 3
    assert "Omit --tensorrt" in done.err
    assert not (folder / "model.engine").exists()
    # A run that is killed before it deletes the old engine leaves it beside the new graph.
    shutil.copy(run_dir / "model.engine", folder / "model.engine")
    old, new = (json.loads((path / "manifest.json").read_text()) for path in (run_dir, folder))
    new["stages"]["build"] = old["stages"]["build"]
    (folder / "manifest.json").write_text(json.dumps(new))
    done = cli("compare", DIGITS, folder / "model.engine", "--data", EVAL, "-o", tmp_path / "c")
    assert done.code == 2
    assert "built from another graph" in done.err
    assert "model.engine" not in cli("inspect", folder).out


def test_compare_says_that_the_run_was_calibrated_on_the_samples_also_when_it_judges_again(
    run_dir: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli("compare", DIGITS, run_dir, "--data", CALIB, "-o", tmp_path / "c")
    assert ON_CALIBRATION[1:] in done.out.splitlines()[-1]
    again = cli("compare", "--from", tmp_path / "c", "--gate", "sqnr=20")
    assert again.out.splitlines()[-1] == f"PASS: 3/3 gates passed {ON_CALIBRATION}"


@pytest.mark.parametrize(
    "command", [["doctor"], ["--help"], ["inspect", DIGITS], ["compare", DIGITS, DIGITS, "--data", EVAL]]
)
def test_a_closed_pipe_is_not_a_failed_gate(command: list[object], tmp_path: Path) -> None:
    arguments = [str(word) for word in command] + (["-o", str(tmp_path / "c")] if command[0] == "compare" else [])
    # As in `trtopt ... | true`: the pipe's other end is closed before anything is written.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "trtopt", *arguments], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_an_interrupt_is_reported_and_exits_130(tmp_path: Path) -> None:
    arguments = ["convert", DIGITS, *INT8, "--data", EVAL, "-o", tmp_path / "run"]
    program = [sys.executable, "-m", "trtopt", *map(str, arguments)]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        first = child.stderr.readline()  # the run has started
        child.send_signal(signal.SIGINT)
        err = first + child.stderr.read()
    assert child.returncode == 130
    assert "interrupted; run again to resume" in err
    assert "Traceback" not in err


def test_a_batch_that_shape_fixes_is_filled_with_the_samples_of_data(tmp_path: Path, cli: Cli) -> None:
    command = ("convert", DIGITS, *INT8, "--data", EVAL, "--shape", "input=4x1x28x28", "--gate", "sqnr=20")
    done = cli(*command, "-o", tmp_path / "run", "--backend", "onnxruntime")
    assert done.code == 0, done.err
    assert "1000 samples are fed in groups of 4" in " ".join(done.out.split())
    assert "accuracy_fp32 99.20 %" in done.out
    done = cli("compare", DIGITS, tmp_path / "run", "--data", EVAL, "-o", tmp_path / "c", "--gate", "top1=1%")
    assert done.code == 0, done.err
    assert "accuracy_fp32 99.20 %" in done.out
