"""`trtopt package`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from support import CALIB, Done

from trtopt.commands.package import Packaged, report
from trtopt.data import images
from trtopt.data.recipe import parse_recipe
from trtopt.report import render
from trtopt.serve import config, ensemble
from trtopt.serve.verify import Verified

pytest.importorskip("tritonclient")
Cli = Callable[..., Done]
LENGTHS = [part for name in ("ids", "mask") for part in ("--shape", f"{name}=1x2:4x8:16x32")]


def written(repository: Path, name: str) -> Any:
    """Return the configuration of a model in a repository."""
    text = (repository / name / "config.pbtxt").read_text()
    assert "max_batch_size" in text
    return config.parse(text)


def test_a_run_without_an_engine_brings_its_graph_and_a_script(cli: Cli, digits: Path, tmp_path: Path) -> None:
    done = cli("package", digits, "--triton", tmp_path / "repo")
    assert done.code == 0
    assert done.out.startswith(f"{tmp_path}/repo/digits-fp16/build.sh builds the engine")
    folder = tmp_path / "repo/digits-fp16"
    assert written(tmp_path / "repo", "digits-fp16").platform == "tensorrt_plan"
    assert (folder / "1/model.onnx").read_bytes() == (digits / "typed.onnx").read_bytes()
    script = (folder / "build.sh").read_text()
    assert "--maxShapes=input:32x1x28x28" in script
    assert "nvcr.io/nvidia/tritonserver:26.03-py3" in script
    assert (folder / "build.sh").stat().st_mode & 0o100


def test_the_script_builds_beside_the_graph_and_leaves_no_half_written_plan(
    cli: Cli, digits: Path, tmp_path: Path
) -> None:
    import subprocess

    cli("package", digits, "--triton", tmp_path / "repo")
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\ntest -z "$FAILS" || exit 5\nprintf "%s\\n" "$@" > words\ntouch model.engine\n')
    docker.chmod(0o755)
    folder = tmp_path / "repo/digits-fp16"
    environment = {"PATH": f"{docker.parent}:/usr/bin:/bin"}
    failed = subprocess.run([folder / "build.sh"], env={**environment, "FAILS": "1"}, check=False)
    assert failed.returncode == 5
    assert not (folder / "1/model.plan").exists()
    subprocess.run([folder / "build.sh"], env=environment, check=True)
    assert (folder / "1/model.plan").exists()
    words = (folder / "1/words").read_text().split("\n")
    assert words[0] == "run"
    assert "--stronglyTyped" in words
    assert f"{folder}/1:/model" in words


def test_a_graph_that_the_images_parser_cannot_read_is_refused(cli: Cli, pair: Path, tmp_path: Path) -> None:
    import onnx

    newer = onnx.load(pair)
    newer.opset_import[0].version = 23
    onnx.save(newer, tmp_path / "newer.onnx")
    done = cli("package", tmp_path / "newer.onnx", *LENGTHS, "--triton", tmp_path / "repo", "--image", "24.05")
    assert done.code == 2
    assert "has opset 23" in done.err


def test_the_name_of_an_input_may_have_a_colon(cli: Cli, conv_net: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(conv_net)
    model.graph.input[0].name = model.graph.node[0].input[0] = "x:0"
    onnx.save(model, tmp_path / "colon.onnx")
    assert cli("package", tmp_path / "colon.onnx", "--triton", tmp_path / "repo").code == 0
    script = (tmp_path / "repo/colon/build.sh").read_text()
    (words,) = (line for line in script.splitlines() if line.startswith('  "$@" '))
    assert "--minShapes='x:0':1x16x8x8" in shlex.split(words)


def test_an_engine_of_the_images_tensorrt_is_packaged(
    cli: Cli, with_engine: Callable[..., Path], tmp_path: Path
) -> None:
    done = cli("package", with_engine("TensorRT 10.16.0.72"), "--triton", tmp_path / "repo", "--engine", "only")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "repo/digits-fp16/1").iterdir()) == ["model.plan"]
    assert not (tmp_path / "repo/digits-fp16/build.sh").exists()


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        ("TensorRT 10.9.0.34", "Use --image 25.03"),
        ("TensorRT 11.5.0.1", "state yours, --image NAME=11.5.0.1"),
        ("TensorRT-RTX 1.7.1.116", "No image has TensorRT for RTX"),
    ],
)
def test_only_engines_refuses_an_engine_of_another_tensorrt_and_names_the_image(
    cli: Cli, with_engine: Callable[..., Path], tmp_path: Path, builder: str, expected: str
) -> None:
    done = cli("package", with_engine(builder), "--triton", tmp_path / "repo", "--engine", "only")
    assert done.code == 3
    assert expected in done.err
    assert not (tmp_path / "repo").exists()


def test_the_stated_version_of_an_image_decides(cli: Cli, with_engine: Callable[..., Path], tmp_path: Path) -> None:
    run = with_engine("TensorRT 10.16.0.72")
    assert cli("package", run, "--triton", tmp_path / "a", "--image", "26.03=10.16.1.11").out.startswith(
        f"{tmp_path}/a/"
    )
    assert (tmp_path / "a/digits-fp16/build.sh").exists()
    cli("package", run, "--triton", tmp_path / "b", "--image", "example.com/triton:1=10.16.0.72")
    assert (tmp_path / "b/digits-fp16/1/model.plan").exists()


def test_engines_for_several_gpus_are_one_model(cli: Cli, with_engine: Callable[..., Path], tmp_path: Path) -> None:
    runs = [
        with_engine("TensorRT 10.16.0.72", f"a GPU, compute capability {capability}") for capability in ("8.9", "9.0")
    ]
    done = cli("package", *runs, "--name", "digits", "--triton", tmp_path / "repo")
    assert done.code == 0, done.err
    made = written(tmp_path / "repo", "digits")
    assert dict(made.cc_model_filenames) == {"8.9": "model.sm89.plan", "9.0": "model.sm90.plan"}
    assert all((tmp_path / "repo/digits/1" / name).exists() for name in made.cc_model_filenames.values())


def test_two_engines_for_the_same_gpu_are_refused(cli: Cli, with_engine: Callable[..., Path], tmp_path: Path) -> None:
    runs = [with_engine("TensorRT 10.16.0.72") for _ in range(2)]
    done = cli("package", *runs, "--name", "digits", "--triton", tmp_path / "repo")
    assert done.code == 2
    assert "not for different GPUs" in done.err


def test_runs_of_the_same_name_are_never_merged_in_silence(
    cli: Cli, with_engine: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [with_engine("TensorRT 10.16.0.72") for _ in range(2)]
    done = cli("package", *runs, "--triton", tmp_path / "repo")
    assert done.code == 2
    assert "two runs would be named digits-fp16" in done.err


@pytest.mark.parametrize("flags", [(), ("--platform", "onnxruntime")])
def test_several_runs_of_one_name_need_an_engine_each(
    cli: Cli, with_engine: Callable[..., Path], digits: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    runs = (with_engine("TensorRT 10.16.0.72"), digits)
    done = cli("package", *runs, "--name", "one", "--triton", tmp_path / "repo", *flags)
    assert done.code == 2
    assert "2 runs with one --name" in done.err


def test_an_ensemble_needs_a_model_of_images(cli: Cli, conv_net: Path, pair: Path, tmp_path: Path) -> None:
    flags = ("--platform", "onnxruntime", "--triton", tmp_path / "repo", "--ensemble", "--recipe", "imagenet")
    assert "which is not an image of 1 or 3 channels" in cli("package", conv_net, *flags).err
    assert "--ensemble needs a model with one input" in cli("package", pair, *LENGTHS, *flags).err


@pytest.mark.parametrize(
    "recipe",
    [
        {"color": "BGR", "layout": "NHWC", "resize": "shorter:20", "crop": [16, 16], "mean": [1.0, 2.0, 3.0]},
        {"color": "RGB", "layout": "NCHW", "resize": [16, 16], "fit": "letterbox", "pad_value": 114, "scale": 0.5},
        {"color": "gray", "layout": "NCHW", "resize": [16, 16]},
    ],
    ids=["cropped", "letterbox", "gray"],
)
def test_the_step_computes_what_the_calibration_computed(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The module of the backend exists only inside a server; the functions do not use it.
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    how = parse_recipe({"image": recipe}, "test", Path()).image
    assert how is not None
    pb = config.protobuf()
    model = pb.ModelConfig(name="m", max_batch_size=8)
    model.input.add(name="x", data_type=pb.TYPE_FP32, dims=[3, 16, 16])
    step: dict[str, Any] = {"__name__": "step"}
    monkeypatch.setitem(sys.modules, "step", ModuleType("step"))  # dataclasses look their module up
    exec(str(ensemble.step("s", how, model).files["1/model.py"]), step)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    np.testing.assert_array_equal(step["to_array"](image, step["RECIPE"]), images.to_array(image, how))


def test_external_weights_come_along(cli: Cli, conv_net: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "apart.onnx"
    onnx.save(onnx.load(conv_net), path, save_as_external_data=True, location="apart.bin", size_threshold=0)
    done = cli("package", path, "--platform", "onnxruntime", "--triton", tmp_path / "repo")
    assert done.code == 0, done.err
    assert (tmp_path / "repo/apart/1/apart.bin").read_bytes() == (tmp_path / "apart.bin").read_bytes()


def test_the_delay_and_the_largest_batch_keep_the_limit(cli: Cli, digits: Path, tmp_path: Path) -> None:
    # Twice the 1.8 ms of batch 8 are within 5 ms, twice the 4.2 ms of batch 32 are not.
    cli("package", digits, "--triton", tmp_path / "repo", "--latency-limit", "5ms")
    made = written(tmp_path / "repo", "digits-fp16")
    assert made.max_batch_size == 8
    assert 0 < made.dynamic_batching.max_queue_delay_microseconds <= 1400
    assert [(entry.name, entry.batch_size) for entry in made.model_warmup] == [("smallest", 1), ("usual", 8)]


def test_without_a_limit_requests_do_not_wait(cli: Cli, digits: Path, tmp_path: Path) -> None:
    cli("package", digits, "--triton", tmp_path / "repo")
    made = written(tmp_path / "repo", "digits-fp16")
    assert made.max_batch_size == 32
    assert made.HasField("dynamic_batching")
    assert made.dynamic_batching.max_queue_delay_microseconds == 0


def test_a_graph_with_two_inputs_is_packaged_as_it_is(cli: Cli, pair: Path, tmp_path: Path) -> None:
    done = cli("package", pair, *LENGTHS, "--platform", "onnxruntime", "--triton", tmp_path / "repo")
    assert done.code == 0, done.err
    made = written(tmp_path / "repo", "pair")
    assert made.platform == "onnxruntime_onnx"
    assert {entry.name: list(entry.dims) for entry in made.input} == {"ids": [-1], "mask": [-1]}
    # A tensor with the batch axis alone has one dimension of 1 in a request.
    assert [(list(entry.dims), entry.HasField("reshape")) for entry in made.output] == [([4], False), ([1], True)]
    assert [list(entry.inputs["ids"].dims) for entry in made.model_warmup] == [[2], [8], [32]]


def test_canary_cache_and_priorities(cli: Cli, digits: Path, tmp_path: Path) -> None:
    flags = ("--canary", "--response-cache", "--priorities", 3)
    done = cli("package", digits, "--triton", tmp_path / "repo", *flags, "--format", "json")
    assert json.loads(done.out)["models"] == ["digits-fp16", "digits-fp16-fp32"]
    made = written(tmp_path / "repo", "digits-fp16-fp32")
    assert made.platform == "onnxruntime_onnx"
    assert made.response_cache.enable
    assert (made.dynamic_batching.priority_levels, made.dynamic_batching.default_priority_level) == (3, 3)


def test_an_ensemble_begins_with_the_recipe(cli: Cli, digits: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"digit {i}\n" for i in range(10)))
    recipe = CALIB / "recipe.toml"
    done = cli("package", digits, "--triton", tmp_path / "repo", "--ensemble", "--recipe", recipe, "--classes", classes)
    assert done.code == 0, done.err
    whole = written(tmp_path / "repo", "digits-fp16-images")
    assert [step.model_name for step in whole.ensemble_scheduling.step] == ["digits-fp16-preprocess", "digits-fp16"]
    assert not whole.instance_group
    assert not whole.HasField("dynamic_batching")
    assert (tmp_path / "repo/digits-fp16/labels.txt").read_text() == classes.read_text()
    assert "FROM nvcr.io/nvidia/tritonserver:26.03-py3" in (tmp_path / "repo/digits-fp16-images/Dockerfile").read_text()
    # An empty folder of a version would be lost in git and in object stores, and the model with it.
    assert list((tmp_path / "repo/digits-fp16-images/1").iterdir())
    (serve,) = (line for line in done.out.splitlines() if line.startswith("serve: "))
    build, _, start = serve.removeprefix("serve: ").partition(" && ")
    assert shlex.split(build)[-1] == str(tmp_path / "repo/digits-fp16-images")
    assert shlex.split(build)[3] in shlex.split(start)  # the tag


@pytest.mark.parametrize("format", ["markdown", "html", "junit", "github"])
def test_every_format_says_what_to_build_and_what_was_checked(format: str, tmp_path: Path) -> None:
    checked = Verified(name="m", answered=64, mean_batch=4.0, refused=4)
    packaged = Packaged(
        repository=tmp_path,
        models=("m",),
        to_build=((Path("m/build.sh"), "no engine"),),
        verified=(checked,),
        serve="docker run",
    )
    text = render(format, report(packaged))
    assert "64 answers equal the runner" in text if format in ("markdown", "html") else "1/1 gates passed" in text
    if format != "junit":
        assert "m/build.sh builds the engine; run it before the server: no engine" in text
        assert "docker run" in text


def test_a_package_without_a_server_passes_no_gate(cli: Cli, digits: Path, tmp_path: Path) -> None:
    done = cli("package", digits, "--triton", tmp_path / "repo", "--format", "junit")
    assert done.code == 0, done.err
    suite = ElementTree.fromstring(done.out)[0]
    assert (suite.attrib["tests"], suite.attrib["skipped"]) == ("1", "1")


def test_an_error_is_a_case_of_the_format(cli: Cli, tmp_path: Path) -> None:
    done = cli("package", tmp_path / "none", "--triton", tmp_path / "repo", "--format", "junit")
    assert done.code == 2
    assert ElementTree.fromstring(done.out)[0].attrib["errors"] == "1"


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (("--image", "19.01"), 2, "unknown image '19.01'"),
        (("--image", "26.03=x"), 2, "invalid --image"),
        (("--latency-limit", "1ms"), 2, "--latency-limit 1ms cannot be kept"),
        (("--ensemble",), 2, "--ensemble needs a recipe"),
        (("--ensemble", "--recipe", "imagenet"), 2, "does not fit input"),
        (("--name", "a/b"), 2, "cannot be the name of a model"),
    ],
)
def test_a_wrong_flag_gets_one_line_and_writes_nothing(
    cli: Cli, digits: Path, tmp_path: Path, flags: tuple[str, ...], code: int, line: str
) -> None:
    done = cli("package", digits, "--triton", tmp_path / "repo", *flags)
    assert done.code == code
    (error,) = (each for each in done.err.splitlines() if each.startswith("error:"))
    assert line in error
    assert not (tmp_path / "repo").exists()


def test_a_missing_run_is_an_error(cli: Cli, tmp_path: Path) -> None:
    done = cli("package", tmp_path / "none", "--triton", tmp_path / "repo")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "does not exist" in done.err


def test_a_model_of_that_name_is_never_replaced(cli: Cli, digits: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    assert cli("package", digits, "--triton", repo).code == 0
    before = (repo / "digits-fp16/config.pbtxt").stat().st_mtime_ns
    done = cli("package", digits, "--triton", repo)
    assert done.code == 2
    assert "already has a model digits-fp16" in done.err
    assert (repo / "digits-fp16/config.pbtxt").stat().st_mtime_ns == before
    assert cli("package", digits, "--triton", repo, "--name", "other").code == 0
    assert sorted(path.name for path in repo.iterdir()) == ["digits-fp16", "other"]


def test_folders_that_are_not_models_are_named_in_one_line(cli: Cli, digits: Path, tmp_path: Path) -> None:
    for name in (".git", "a", "b", "c", "known/1"):  # a server completes the configuration of `known`
        (tmp_path / "repo" / name).mkdir(parents=True)
    done = cli("package", digits, "--triton", tmp_path / "repo")
    assert done.code == 0
    assert "repo has folders that are not models (.git, a, b and 1 more): a server of it will not start" in done.err


def test_a_repository_that_is_a_file_is_refused(cli: Cli, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "repo").touch()
    done = cli("package", digits, "--triton", tmp_path / "repo")
    assert done.code == 2
    assert "repo is a file" in done.err


def test_without_tritonclient_the_error_names_what_to_install(
    cli: Cli, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tritonclient"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    done = cli("package", digits, "--triton", tmp_path / "repo")
    assert done.code == 3
    assert "pip install 'tritonclient[grpc]'" in done.err


def test_a_write_that_fails_leaves_no_folder(digits: Path, tmp_path: Path) -> None:
    from trtopt.errors import StoreError
    from trtopt.serve.repository import Folder, staged

    made = config.protobuf().ModelConfig
    folders = [
        Folder(config=made(name="a"), files={"1/model.plan": digits / "typed.onnx"}),
        Folder(config=made(name="b"), files={"1/model.plan": digits / "nowhere"}),
    ]
    with pytest.raises(StoreError), staged(tmp_path / "repo", folders):
        pass
    assert not (tmp_path / "repo").exists()
