"""Wrong input of all kinds: one clear line on stderr, no traceback, exit code 2, no half-written file."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from support import CALIB, DIGITS, EVAL, Done, save

Cli = Callable[..., Done]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def refused(done: Done, *fragments: str) -> None:
    """Check for exit code 2 and a single line that starts with `error:` and contains the fragments."""
    assert done.code == 2, (done.code, done.out, done.err)
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.err
    for fragment in fragments:
        assert fragment in errors[0]
    assert "Traceback" not in done.err
    assert done.out == ""


def test_missing_model(cli: Cli, out: Path) -> None:
    refused(cli("convert", "nowhere.onnx", "--data", EVAL, "-o", out), "nowhere.onnx does not exist")
    assert not out.exists()


def test_not_an_onnx_file(cli: Cli, out: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("this is not a protobuf")
    refused(cli("convert", tmp_path / "text.onnx", "--data", EVAL, "-o", out), "is not an ONNX model")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_model(share: float, cli: Cli, out: Path, tmp_path: Path) -> None:
    whole = DIGITS.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(share * len(whole))])
    refused(cli("convert", tmp_path / "cut.onnx", "--data", EVAL, "-o", out), "cut.onnx", "truncated")


def test_zipped_model(cli: Cli, out: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "m"), "zip", DIGITS.parent, "README.md")
    refused(cli("convert", archive, "--data", EVAL, "-o", out), "zip archive", "Unpack it")


def test_no_calibration_data(cli: Cli, out: Path) -> None:
    refused(cli("convert", DIGITS, "-p", "int8", "--data", EVAL, "-o", out), "needs calibration data", "--calib")


def test_no_data_at_all(cli: Cli, out: Path) -> None:
    refused(cli("convert", DIGITS, "-o", out), "no data to compare on", "--data", "--no-compare")


def test_empty_calibration_folder(cli: Cli, out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(cli("convert", DIGITS, "-p", "int8", "--calib", tmp_path / "empty", "-o", out), "no samples")


def test_unreadable_image_among_good_ones(cli: Cli, out: Path, tmp_path: Path) -> None:
    shutil.copytree(CALIB, tmp_path / "digits")
    broken = sorted((tmp_path / "digits").rglob("*.png"))[17]
    broken.write_bytes(broken.read_bytes()[:60])
    refused(cli("convert", DIGITS, "-p", "int8", "--calib", tmp_path / "digits", "-o", out), broken.name)
    done = cli(
        *("convert", DIGITS, "-p", "int8", "--calib", tmp_path / "digits", "-o", out, "--skip-bad"),
        *("--backend", "onnxruntime", "--gate", "sqnr=20"),
    )
    assert done.code == 0, done.err
    assert broken.name in done.out


@pytest.mark.parametrize("flag", ["--data", "--calib"])
def test_samples_that_do_not_fit_the_engine(flag: str, cli: Cli, out: Path, tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, 1, ["n", 4, "length"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opset), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones((8, 4, 20), np.float32))
    command = ("convert", tmp_path / "m.onnx", flag, tmp_path / "x.npy", "-o", out, "--shape")
    refused(cli(*command[:-1]), "--shape x=1x4x20:8x4x20:32x4x20", "as in the samples")
    refused(cli(*command, "x=4x4x8:8x4x16:8x4x16"), "the shape 1x4x20", "4x4x8 to 8x4x16", "--shape x=")
    assert cli(*command, "x=4x4x8:8x4x16:8x4x32", "--backend", "onnxruntime", "--gate", "sqnr=20").code == 0


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"input": np.zeros((4, 1, 27, 28), np.float32)}, 'resize = "input" in the recipe'),
        ({"input": np.zeros((4, 3, 28, 28), np.float32)}, "3"),
        ({"input": np.zeros((4, 784), np.float32)}, "784"),
        ({"input": np.zeros((4, 1, 28, 28), np.float64)}, "float64"),
        ({"input": np.zeros((4, 1, 28, 28), np.uint8)}, "uint8"),
        ({"image": np.zeros((4, 1, 28, 28), np.float32)}, "Rename image to input"),
        ({"input": np.full((4, 1, 28, 28), np.nan, np.float32)}, "NaN"),
        ({"input": np.full((4, 1, 28, 28), np.inf, np.float32)}, "infinite"),
        ({"input": np.zeros((0, 1, 28, 28), np.float32)}, "no samples"),
    ],
)
def test_samples_that_do_not_fit(
    arrays: dict[str, np.ndarray], fragment: str, cli: Cli, out: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(cli("convert", DIGITS, "-p", "int8", "--calib", tmp_path / "bad.npz", "-o", out), fragment)


def test_missing_data(cli: Cli, out: Path) -> None:
    refused(cli("convert", DIGITS, "--data", "nowhere/", "-o", out), "nowhere")


def test_unknown_precision_is_answered_with_the_nearest(cli: Cli, out: Path) -> None:
    refused(
        cli("convert", DIGITS, "-p", "in8", "--data", EVAL, "-o", out), "unknown precision 'in8'", "Did you mean int8?"
    )


def test_unknown_method_is_answered_with_the_nearest(cli: Cli, out: Path) -> None:
    done = cli("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--method", "entrpy", "-o", out)
    refused(done, "unknown calibration method 'entrpy'", "Did you mean entropy?")


def test_unknown_metric_is_answered_with_the_nearest(cli: Cli, out: Path) -> None:
    done = cli("convert", DIGITS, "--data", EVAL, "-o", out, "--gate", "cosin=0.9")
    refused(done, "unknown metric 'cosin'", "Did you mean cosine?")


@pytest.mark.parametrize(
    ("gate", "said"), [("latency=3ms", "Did you mean latency_p"), ("p99=3ms", "Choose from latency_mean, latency_p50")]
)
def test_unknown_metric_of_speed_is_answered_with_those_of_speed(gate: str, said: str, cli: Cli, out: Path) -> None:
    refused(cli("convert", DIGITS, "--data", EVAL, "-o", out, "--gate", gate), "unknown metric", said)


@pytest.mark.parametrize("flag", ["--backend", "--rest", "--tensorrt"])
def test_unknown_names(flag: str, cli: Cli, out: Path) -> None:
    done = cli("convert", DIGITS, "-p", "int8", "--calib", CALIB, "-o", out, flag, "nonsense")
    refused(done, "nonsense")


def test_table_of_another_model(cli: Cli, tmp_path: Path, conv_net: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 16, 8, 8)).astype(np.float32))
    first = cli(
        *("convert", conv_net, "-p", "int8", "--calib", tmp_path / "x.npy", "-o", tmp_path / "a"),
        *("--backend", "onnxruntime", "--gate", "sqnr=1"),
    )
    assert first.code == 0, first.err
    for table in ("calibration.json", "calibration.cache"):
        done = cli(
            *("convert", DIGITS, "-p", "int8", "--calib-table", tmp_path / "a" / table, "--data", EVAL),
            *("-o", tmp_path / "b"),
        )
        refused(done, "table")


def test_unsupported_operator_is_named_before_calibration(cli: Cli, out: Path, tmp_path: Path) -> None:
    model = save(tmp_path / "det.onnx", [helper.make_node("Det", ["x"], ["y"], "the_culprit")], [], out=("n", 16))
    np.save(tmp_path / "x.npy", np.ones((2, 16, 8, 8), np.float32))
    done = cli("convert", model, "--data", tmp_path / "x.npy", "-o", out)
    refused(done, "Det", "the_culprit")


def test_calibration_of_a_model_that_is_quantized_already(cli: Cli, out: Path, tmp_path: Path, conv_net: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 16, 8, 8)).astype(np.float32))
    data = ("--calib", tmp_path / "x.npy", "--gate", "sqnr=1", "--backend", "onnxruntime")
    assert cli("convert", conv_net, "-p", "int8", *data, "-o", tmp_path / "a").code == 0
    done = cli("calibrate", tmp_path / "a/typed.onnx", "--calib", tmp_path / "x.npy", "-o", out)
    refused(done, "quantized already")


def test_dynamic_dimension_without_a_shape_says_what_to_type(cli: Cli, out: Path, tmp_path: Path) -> None:
    model = save(tmp_path / "d.onnx", [helper.make_node("Relu", ["x"], ["y"], "r")], [], *[("n", 3, "h", "w")] * 2)
    done = cli("convert", model, "--data", EVAL, "-o", out)
    refused(done, "--shape x=1x3x224x224:8x3x224x224:32x3x224x224")


def test_run_directory_below_a_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(cli("convert", DIGITS, "--data", EVAL, "-o", tmp_path / "file" / "run"), "cannot write to")


def test_no_permission_to_write(cli: Cli) -> None:
    refused(cli("convert", DIGITS, "--data", EVAL, "-o", "/proc/run"), "cannot write to /proc/run")


def test_full_disk_leaves_no_half_written_file(tmp_path: Path) -> None:
    # A limit on the size of files acts like a full disk: every write beyond it fails, in any library.
    out = tmp_path / "run"
    arguments = ["convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, "-o", out]
    done = subprocess.run(
        [sys.executable, "-m", "trtopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    refused(Done(done.returncode, done.stdout, done.stderr), "cannot write to", str(out))
    assert not (out / "fp32.onnx").exists()
    assert not list(out.glob(".tmp-*"))


def test_model_whose_output_is_not_a_tensor(cli: Cli, out: Path, tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"], "s")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])],
        [sequence],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "s.onnx")
    refused(cli("convert", tmp_path / "s.onnx", "--data", EVAL, "-o", out), "sequence")


def test_compare_with_a_missing_candidate(cli: Cli, out: Path) -> None:
    refused(cli("compare", DIGITS, "nowhere", "--data", EVAL, "-o", out), "nowhere does not exist")


def test_compare_with_a_model_that_has_other_inputs(cli: Cli, out: Path, conv_net: Path) -> None:
    refused(cli("compare", DIGITS, conv_net, "--data", EVAL, "-o", out), "input")


def test_a_gate_of_an_output_that_does_not_exist(cli: Cli, out: Path) -> None:
    done = cli("convert", DIGITS, "--data", EVAL, "-o", out, "--gate", "emb:cosine=0.9")
    refused(done, "has no output emb", "Choose one of logits")


def test_missing_model_is_reported_before_missing_data(cli: Cli, out: Path) -> None:
    refused(cli("convert", "nowhere.onnx", "-o", out), "nowhere.onnx")


def test_space_is_asked_for_only_where_it_is_missing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cli("convert", DIGITS, "--data", EVAL, "-o", tmp_path / "file" / "run")
    refused(done, "a part of the path is a file. Choose another directory with -o")
    assert "free some space" not in done.err


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="needs a machine without")
def test_a_gpu_that_is_not_there_is_told_before_anything_is_run(cli: Cli, out: Path) -> None:
    done = cli("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, "--device", "cuda", "-o", out)
    assert done.code == 3
    assert "error: onnxruntime has no working CUDA provider here" in done.err
    assert "prepare" not in done.err
