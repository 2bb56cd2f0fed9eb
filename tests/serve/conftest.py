"""Runs to package. The tests that need tritonclient, or the server in pytriton's wheel, are skipped without them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import DIGITS

from trtopt import convert
from trtopt.codec import encode
from trtopt.types import Benchmark, BenchTarget, Engine, Timing


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the digits network to FP16, without an engine. A batch takes 1 ms, and 0.1 ms per sample."""
    run = tmp_path_factory.mktemp("digits") / "digits/fp16"
    convert(DIGITS, precision="fp16", backend="onnxruntime", compare=False, out=run)
    write_table(run, {batch: 1 + batch / 10 for batch in (1, 8, 32)})
    return run


def write_table(run: Path, times: dict[int, float]) -> None:
    """Write the bench table of a run: the time of each batch size in milliseconds."""
    timings = [
        Timing(
            target="fp16",
            batch=batch,
            copies=True,
            iterations=100,
            mean=time,
            p50=time,
            p90=time,
            p95=time,
            p99=time,
            noise=0.0,
            throughput=batch / time * 1000,
        )
        for batch, time in times.items()
    ]
    target = BenchTarget(name="fp16", path=run / "model.engine", ran="TensorRT", device="cuda")
    table = Benchmark(targets=(target,), timings=tuple(timings))
    (run / "benchmark.json").write_text(json.dumps(encode(table)))


@pytest.fixture
def with_engine(digits: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the run and gives it an engine of a builder, for a GPU."""

    def make(builder: str, device: str = "NVIDIA L4, compute capability 8.9") -> Path:
        run = tmp_path / f"{len(list(tmp_path.iterdir()))}/digits/fp16"
        shutil.copytree(digits, run)
        (run / "model.engine").write_bytes(b"plan")
        digest = hashlib.sha256(b"plan").hexdigest()
        manifest = json.loads((run / "manifest.json").read_text())
        typed = manifest["stages"]["precision"]["result"]["onnx"]["digest"]
        engine = Engine(
            path=Path("model.engine"),
            digest=digest,
            backend="tensorrt",
            builder=builder,
            device=device,
            size_bytes=4,
        )
        manifest["stages"]["build"] = {
            **manifest["stages"]["precision"],
            "inputs": {"typed": typed},
            "files": {"model.engine": digest},
            "result": encode(engine),
        }
        (run / "manifest.json").write_text(json.dumps(manifest))
        return run

    return make


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a network with two inputs, ids int64 [n, length] and mask float32 [n, length], and two outputs."""
    table = np.random.default_rng(0).normal(0, 1, (2, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["embedded", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "second"], ["pooled"], keepdims=0),
        helper.make_node("ArgMax", ["pooled"], ["best"], axis=1, keepdims=0),
    ]
    float_, int_ = TensorProto.FLOAT, TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "pair",
        [
            helper.make_tensor_value_info("ids", int_, ["n", "length"]),
            helper.make_tensor_value_info("mask", float_, ["n", "length"]),
        ],
        [
            helper.make_tensor_value_info("pooled", float_, ["n", 4]),
            helper.make_tensor_value_info("best", int_, ["n"]),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "second"),
        ],
    )
    path = tmp_path_factory.mktemp("pair") / "pair.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
