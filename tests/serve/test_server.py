"""Packages in a real Triton server, whose backends run the graphs on the CPU."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from PIL import Image
from serve.conftest import write_table
from support import CALIB, DIGITS, EVAL, ROOT, Done

from trtopt import convert
from trtopt.data import load_recipe
from trtopt.data.classes import from_list
from trtopt.engine.onnxruntime import open_runner
from trtopt.events import silent
from trtopt.graph.file import describe
from trtopt.serve import config, folders, repository, verify
from trtopt.serve.client import Client, Extras, RequestError
from trtopt.serve.images import image
from trtopt.serve.server import Server
from trtopt.types import ShapeRange

pytest.importorskip("tritonclient")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="pytriton is not installed")
SHAPES = (ShapeRange(name="input", min=(1, 1, 28, 28), opt=(8, 1, 28, 28), max=(32, 1, 28, 28)),)
TOKENS = ("input_ids", "attention_mask")
SENTENCES = tuple(ShapeRange(name=name, min=(1, 8), opt=(4, 16), max=(8, 32)) for name in TOKENS)
NAMES = [f"digit {i}" for i in range(10)]


def served(
    onnx: Path,
    name: str,
    folder: pytest.TempPathFactory,
    times: dict[int, float],
    shapes: tuple[ShapeRange, ...] = SHAPES,
    **options: Any,
) -> Sequence[repository.Folder]:
    """Return the folders of a network whose batches take these times in ms."""
    run = folder.mktemp(name)
    write_table(run, times)
    source = folders.Source(onnx=describe(onnx), run_dir=run)
    chosen = folders.Options(image=image("26.03"), **options)
    return folders.make(folders.Model(name=name, runs=(source,), shapes=shapes), chosen, silent).folders


def slow_network(folder: Path) -> Path:
    """Write a network of some 0.5 billion products per sample: a server takes longer for it than a client to send."""
    text = """<ir_version: 9, opset_import: ["": 17]> g (float[n, 1, 28, 28] input) => (float[n, 256, 1, 1] y) {
        a = Conv<pads = [1, 1, 1, 1]>(input, v) b = Conv<pads = [1, 1, 1, 1]>(a, w) y = GlobalAveragePool(b)
    }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in (("v", (256, 1, 3, 3)), ("w", (256, 256, 3, 3))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(shape, 1e-3, np.float32), name))
    onnx.save(proto, folder / "slow.onnx")
    return folder / "slow.onnx"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert a transformer with two inputs, input_ids and attention_mask, both int64 [n, length]."""
    run = tmp_path_factory.mktemp("transformer") / "encoder"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        convert(
            "samples.bert_encoder.encoder:encoder",
            precision="fp16",
            backend="onnxruntime",
            compare=False,
            shape=dict.fromkeys(TOKENS, "1x8:4x16:8x32"),
            dtype=dict.fromkeys(TOKENS, "int64"),
            out=run,
        )
    return run


@pytest.fixture(scope="module")
def server(digits: Path, transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve five models: the digits network with its ensemble; `patient`, the same, which waits 100 ms for a batch to
    fill; `urgent`, the same, one at a time, with two priorities; `slow`, for which requests queue, with two, too; and
    `encoder`, the transformer, which waits as `patient` does.
    """
    source = folders.Source(onnx=describe(digits / "typed.onnx"), run_dir=digits)
    recipe, classes = load_recipe(CALIB / "recipe.toml"), from_list(NAMES, "names")
    options = folders.Options(image=image("26.03"), ensemble=True, recipe=recipe, classes=classes)
    model = folders.Model(name="digits", runs=(source,), shapes=SHAPES)
    made = list(folders.make(model, options, silent).folders)
    made += served(digits / "typed.onnx", "patient", tmp_path_factory, {1: 100.0, 32: 100.0}, latency_limit=400)
    one_at_a_time = {1: 1.0, 8: 100.0}
    made += served(digits / "typed.onnx", "urgent", tmp_path_factory, one_at_a_time, latency_limit=2, priorities=2)
    path = slow_network(tmp_path_factory.mktemp("network"))
    made += served(path, "slow", tmp_path_factory, one_at_a_time, latency_limit=2, priorities=2)
    path = transformer / "typed.onnx"
    made += served(path, "encoder", tmp_path_factory, {1: 100.0, 8: 100.0}, SENTENCES, latency_limit=400)
    with (
        repository.staged(tmp_path_factory.mktemp("served") / "repo", made) as stage,
        verify.served(made, stage) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.load(EVAL)["input"].astype(np.float32).reshape(-1, 1, 28, 28)


def counted(client: Client, name: str, before: tuple[int, int]) -> tuple[int, int]:
    """Return how many of a thousand requests were answered, and in how many runs.

    The server counts a run after it has sent the answers.
    """
    until = time.monotonic() + 10
    while True:
        answered, runs = np.subtract(client.counts(name), before).tolist()
        if answered >= 1000 or time.monotonic() > until:
            return answered, runs
        time.sleep(0.05)


def test_a_thousand_concurrent_single_requests_are_batched_and_equal_the_runners(
    server: Server, digits: Path, samples: np.ndarray
) -> None:
    runner = open_runner(digits / "typed.onnx")
    expected = runner.run({"input": samples})["logits"]
    with Client(server.url) as client, ThreadPoolExecutor(1000) as pool:
        before = client.counts("patient")
        answers = list(pool.map(lambda sample: client.infer("patient", {"input": sample[None]})["logits"], samples))
        answered, runs = counted(client, "patient", before)
    assert len(answers) == answered == 1000
    np.testing.assert_allclose(np.concatenate(answers), expected, rtol=0.01, atol=0.02)
    assert answered / runs > 4


def test_a_thousand_concurrent_requests_of_a_transformer_are_batched_and_equal_the_runners(
    server: Server, transformer: Path
) -> None:
    random = np.random.default_rng(0)
    masks = (np.arange(16) < random.integers(1, 17, (1000, 1))).astype(np.int64)
    samples = {"input_ids": random.integers(0, 100, (1000, 16)), "attention_mask": masks}
    feeds = [{name: array[i : i + 1] for name, array in samples.items()} for i in range(1000)]
    expected = open_runner(transformer / "typed.onnx").run(samples)["hidden"]
    with Client(server.url) as client, ThreadPoolExecutor(1000) as pool:
        before = client.counts("encoder")
        answers = list(pool.map(lambda feed: client.infer("encoder", feed)["hidden"], feeds))
        answered, runs = counted(client, "encoder", before)
    assert len(answers) == answered == 1000
    np.testing.assert_allclose(np.concatenate(answers), expected, rtol=0.02, atol=0.02)
    assert answered / runs > 4


@pytest.mark.parametrize(
    "shapes", [{"input_ids": (1, 16)}, {"input_ids": (1, 16), "attention_mask": (1, 40)}], ids=["one", "too long"]
)
def test_a_wrong_request_of_two_inputs_is_refused(server: Server, shapes: dict[str, tuple[int, int]]) -> None:
    with Client(server.url) as client, pytest.raises(RequestError):
        client.infer("encoder", {name: np.ones(shape, np.int64) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 1, 28, 27), "float32"), ((33, 1, 28, 28), "float32"), ((1, 1, 28, 28), "float64")]
)
def test_a_wrong_request_is_refused(server: Server, shape: tuple[int, ...], dtype: str) -> None:
    with Client(server.url) as client, pytest.raises(RequestError):
        client.infer("digits", {"input": np.zeros(shape, dtype)})


def test_an_image_file_becomes_a_class(server: Server, samples: np.ndarray) -> None:
    runner = open_runner(DIGITS)
    with Client(server.url) as client:
        for sample in samples[:5]:
            stream = io.BytesIO()
            Image.fromarray(np.round(sample[0] * 255).astype(np.uint8)).save(stream, "PNG")
            encoded = np.frombuffer(stream.getvalue(), np.uint8)[None]
            found = client.infer("digits-images", {"image": encoded}, Extras(classes=1))["logits"]
            best = int(runner.run({"input": sample[None]})["logits"].argmax())
            assert found.reshape(-1)[0].decode().split(":", 1)[1] == f"{best}:digit {best}"


def test_what_is_not_an_image_is_refused_and_others_in_its_batch_are_answered(
    server: Server, samples: np.ndarray
) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.round(samples[0, 0] * 255).astype(np.uint8)).save(stream, "PNG")
    good = np.frombuffer(stream.getvalue(), np.uint8)[None]

    def send(number: int) -> str:
        try:
            client.infer("digits-images", {"image": good if number % 2 else good[:, ::-1].copy()})
        except RequestError as error:
            return str(error)
        return ""

    with Client(server.url) as client, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))
    assert all("the image cannot be preprocessed" in answer for answer in answers[::2])
    assert not any(answers[1::2])


def test_urgent_requests_overtake(server: Server, samples: np.ndarray) -> None:
    from tritonclient import grpc

    sample = grpc.InferInput("input", [1, 1, 28, 28], "FP32")
    sample.set_data_from_numpy(samples[:1])
    times: dict[int, list[float]] = {1: [], 2: []}
    done = threading.Semaphore(0)

    def send(priority: int) -> None:
        def answered(start: float, result: Any, error: Any) -> None:
            times[priority].append(math.inf if error else time.perf_counter() - start)
            done.release()

        client.async_infer("slow", [sample], functools.partial(answered, time.perf_counter()), priority=priority)

    # One thread sends them all: threads would queue in this process, and not in the server.
    with grpc.InferenceServerClient(server.url.partition("://")[2]) as client:
        for priority in [2] * 200 + [1] * 20:
            send(priority)
        assert all(done.acquire(timeout=60) for _ in range(220))
    assert np.percentile(times[1], 95) < np.percentile(times[2], 50)


def test_memory_stays_flat_over_ten_thousand_requests(server: Server, samples: np.ndarray) -> None:
    process = psutil.Process(server.pid)

    def memory() -> int:
        return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])

    with Client(server.url) as client, ThreadPoolExecutor(64) as pool:

        def load(count: int) -> None:
            list(pool.map(lambda i: client.infer("digits", {"input": samples[i % 1000][None]}), range(count)))

        load(2000)
        before = memory()
        load(10_000)
        assert memory() - before < 20 * 2**20


def test_a_load_test_finds_the_rate_that_breaks_the_limit(
    cli: Callable[..., Done], server: Server, tmp_path: Path
) -> None:
    # No machine runs this many batches of one image in a second.
    flags = ("--rate", "20,5000", "--seconds", "0.5", "--data", EVAL, "--latency-limit", "400ms", "--timeout", "60")
    done = cli("bench", "urgent", "--server", server.url, *flags, "--format", "json")
    found = json.loads(done.out)
    assert (found["holds"], found["breaks"]) == (20.0, 5000.0), done.out
    slow, fast = found["results"]
    assert (slow["sent"], slow["answered"], slow["errors"]) == (10, 10, {})
    assert fast["latency"]["p99"] > 400
    assert fast["answered"] == 2500


def test_a_gate_of_a_load_test_decides_the_exit_code(cli: Callable[..., Done], server: Server) -> None:
    flags = ("--server", server.url, "--rate", "20", "--seconds", "1")
    assert cli("bench", "digits", *flags, "--gate", "throughput=5").code == 0
    failed = cli("bench", "digits", *flags, "--gate", "latency_p50@20=1us")
    assert failed.code == 1
    assert "fail         digits, 20 requests/s: latency_p50" in failed.out


def test_a_load_test_sends_image_files_to_an_ensemble(
    cli: Callable[..., Done], server: Server, samples: np.ndarray, tmp_path: Path
) -> None:
    for i in range(3):
        Image.fromarray(np.round(samples[i, 0] * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    flags = ("--server", server.url, "--rate", "20", "--seconds", "0.5", "--data", tmp_path, "--format", "json")
    (result,) = json.loads(cli("bench", "digits-images", *flags).out)["results"]
    assert result["answered"] == 10


def test_requests_that_time_out_fail_every_gate(cli: Callable[..., Done], server: Server) -> None:
    flags = ("--server", server.url, "--rate", "20", "--seconds", "0.5", "--timeout", "0.001")
    done = cli("bench", "digits", *flags, "--gate", "throughput=0.1", "--shape", "input=1x1x28x28")
    assert done.code in (1, 2)
    assert "Deadline Exceeded" in done.out + done.err or "no answer within" in done.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "serves 7 models"),
        (("nowhere",), "has no model nowhere"),
        (("digits", "--gate", "speedup=2x"), "--gate speedup is not for --server"),
        (("digits", "--gate", "throughput@7=2"), "7 requests per second are not tested"),
        (("digits", "--data", "nowhere"), "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_tested_is_an_error(
    cli: Callable[..., Done], server: Server, arguments: tuple[str, ...], line: str
) -> None:
    done = cli("bench", *arguments, "--server", server.url)
    assert done.code == 2
    assert line in done.err


def test_the_metrics_of_a_real_server_are_watched(
    cli: Callable[..., Done], server: Server, samples: np.ndarray
) -> None:
    with Client(server.url) as client, ThreadPoolExecutor(1) as pool:
        stop = time.monotonic() + 3
        steady = iter(lambda: time.monotonic() < stop, False)
        sent = pool.submit(lambda: [client.infer("digits", {"input": samples[:1]}) for _ in steady])
        flags = ("--model", "digits", "--once", "--interval", "2", "--format", "json", "--alert", "latency_mean=1us")
        done = cli("watch", "--triton", server.metrics, *flags)
        sent.result()
    found = json.loads(done.out)
    assert done.code == 1
    readings = found["models"][0]["readings"]
    assert readings["throughput"] > 1
    assert readings["latency_p99"] > 0
    assert readings["batch"] == 1
    assert "latency_mean" in found["alerts"][0]


def test_the_commands_of_the_documentation_run(
    cli: Callable[..., Done], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("samples", "calibration"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    text = (ROOT / "docs/triton.md").read_text()
    text = text.replace("grpc://localhost:8001", server.url).replace("http://localhost:8002", server.metrics)
    commands = re.findall(r"^trtopt (.*)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["convert", "bench", "package", "bench", "watch"]
    for command in commands:
        done = cli(*shlex.split(command))
        assert done.code == 0 or (command.startswith("convert") and done.code == 3), (command, done.err)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "digits",
        "digits-fp32",
        "digits-images",
        "digits-preprocess",
    ]


def test_a_transformer_and_an_image_network_are_served_together(
    cli: Callable[..., Done], transformer: Path, digits: Path, tmp_path: Path
) -> None:
    done = cli("package", transformer, digits, "--triton", tmp_path / "repo", "--verify")
    assert done.code == 0, done.err
    assert "verified encoder: 64 answers equal the runner's" in done.out
    assert "verified digits-fp16: 64 answers equal the runner's" in done.out
    made = config.parse((tmp_path / "repo/encoder/config.pbtxt").read_text())
    assert made.max_batch_size == 8
    assert {entry.name: list(entry.dims) for entry in made.input} == {"input_ids": [-1], "attention_mask": [-1]}


def test_verify_compares_the_answers_of_a_real_server(cli: Callable[..., Done], pair: Path, tmp_path: Path) -> None:
    shapes = [part for name in ("ids", "mask") for part in ("--shape", f"{name}=1x2:4x8:16x32")]
    done = cli("package", pair, *shapes, "--platform", "onnxruntime", "--triton", tmp_path / "repo", "--verify")
    assert done.code == 0, done.err
    assert "verified pair: 64 answers equal the runner's" in done.out
    assert "4 wrong requests refused" in done.out


def test_a_package_that_a_server_does_not_load_is_not_written(digits: Path, tmp_path: Path) -> None:
    from trtopt.errors import ModelError

    source = folders.Source(onnx=describe(digits / "typed.onnx"), run_dir=digits)
    made = folders.make(
        folders.Model(name="m", runs=(source,), shapes=SHAPES), folders.Options(image=image("26.03")), silent
    )
    made.folders[0].config.input[0].dims.append(7)  # the warm-up then has another shape than the input
    with (
        pytest.raises(ModelError, match="Triton does not load m"),
        repository.staged(tmp_path / "repo", made.folders) as stage,
    ):
        verify.verify(made.folders, stage, made.claims)
    assert not (tmp_path / "repo").exists()


def test_the_server_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from trtopt.serve.server import serving\n"
        "with serving(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(killed.stdout)).wait(timeout=30)
