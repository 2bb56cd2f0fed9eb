"""Weights that are computed from constants are constants, whatever their size; nothing grows without need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks.small import Cli, convert, feeds, network, ops, sqnr

RNG = np.random.default_rng(0)
K, N = 400, 900  # 1.4 MB in FP32
ROW = f"(float[n, {K}] x) => (float[n, {N}] y)"


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


W = normal(K, N, scale=K**-0.5)
EXPRESSIONS = {
    "transposed": ("w = Transpose<perm=[1, 0]>(v)", {"v": W.T.copy()}),
    "reshaped": ("w = Reshape(v, to)", {"v": W.reshape(-1), "to": np.array([K, N])}),
    "the same": ("w = Identity(v)", {"v": W}),
    "stored in 16 bits": ("w = Cast<to=1>(v)", {"v": W.astype(np.float16)}),
    "stored in 64 bits": ("w = Cast<to=1>(v)", {"v": W.astype(np.float64)}),
    "weight norm": (
        "s = ReduceL2<axes=[0]>(v) d = Div(v, s) t = Mul(d, g) w = Identity(t)",
        {"v": W * 3, "g": normal(1, N)},
    ),
    "joined and transposed": (
        "j = Concat<axis=0>(u, v) w = Transpose<perm=[1, 0]>(j)",
        {"u": W.T[:500].copy(), "v": W.T[500:].copy()},
    ),
    "with an update of low rank": ("u = MatMul(a, b) w = Add(v, u)", {"v": W, "a": normal(K, 4),
                                                                       "b": normal(4, N, scale=0.01)}),
    "a slice": ("w = Slice(v, from, to, axes)", {"v": normal(K, 2 * N, scale=0.05), "from": np.array([N]),
                                                   "to": np.array([2 * N]), "axes": np.array([1])}),
}  # fmt: skip


@pytest.mark.parametrize("reader", ["y = MatMul(x, w)", "y = Gemm(x, w)"])
@pytest.mark.parametrize(("body", "constants"), EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_weight_that_is_computed_from_constants_is_quantized_per_channel(
    body: str, constants: dict[str, np.ndarray], reader: str, tmp_path: Path, cli: Cli
) -> None:
    network(tmp_path, f"{ROW} {{ {body} {reader} }}", constants)
    x = normal(40, K)
    done = convert(cli, tmp_path, "int8", {"x": x})
    assert done.code == 0, done.err
    typed = onnx.load(tmp_path / "run/typed.onnx")
    sizes = {tensor.name: tuple(tensor.dims) for tensor in typed.graph.initializer if tensor.data_type == 3}
    assert (K, N) in sizes.values()
    assert sqnr(tmp_path, feeds({"x": x})) > 25
    assert (tmp_path / "run/typed.onnx").stat().st_size < 1.1 * K * N + 20_000


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_tied_embedding_is_quantized_where_it_is_a_projection(precision: str, tmp_path: Path, cli: Cli) -> None:
    table = normal(6000, 64) * np.exp(RNG.standard_normal((6000, 1))).astype(np.float32)
    body = """(int64[n, 16] ids) => (float[n, 16, 6000] logits) {
        x = Gather(e, ids) a0 = MatMul(x, w1) a1 = Add(a0, b1) a = Tanh(a1)
        et = Transpose<perm=[1, 0]>(e) logits = MatMul(a, et) }"""
    network(tmp_path, body, {"e": table, "w1": normal(64, 64, scale=0.1), "b1": normal(64)})
    ids = RNG.integers(0, 6000, (48, 16))
    done = convert(cli, tmp_path, precision, {"ids": ids})
    assert done.code in (0, 1), done.err  # rows of very different lengths are hard to quantize with one scale
    assert sqnr(tmp_path, feeds({"ids": ids}, 4)) > (22 if precision == "int8" else 45)
    typed = onnx.load(tmp_path / "run/typed.onnx")
    types = {tensor.data_type for tensor in typed.graph.initializer if tuple(tensor.dims) in ((6000, 64), (64, 6000))}
    assert types == ({3, 10} if precision == "int8" else {10})  # the gathered table stays in 16 bits
    if precision == "int8":
        gathered = next(node for node in typed.graph.node if node.op_type == "Gather").input[0]
        assert next(t.data_type for t in typed.graph.initializer if t.name == gathered) == 10


def test_a_constant_that_would_grow_is_not_folded(tmp_path: Path, cli: Cli) -> None:
    body = f"(float[n, {K}] x) => (float[n, 2000, {K}] y) {{ e = Expand(v, to) a = Unsqueeze(x, ax) y = Add(a, e) }}"
    weights = {"v": normal(1, 1, K), "to": np.array([1, 2000, K]), "ax": np.array([1])}
    network(tmp_path, body, weights)
    done = convert(cli, tmp_path, "fp16", {"x": normal(8, K)})
    assert done.code == 0, done.err
    assert (tmp_path / "run/fp32.onnx").stat().st_size < 100_000
    assert "Expand" in ops(tmp_path / "run/typed.onnx")


def test_a_product_with_an_expanded_constant_converts(tmp_path: Path, cli: Cli) -> None:
    body = f"(float[n, 32, {K}] x) => (float[n, 32, {N}] y) {{ w = Expand(v, to) y = MatMul(x, w) }}"
    network(tmp_path, body, {"v": W[None], "to": np.array([1, K, N])})
    samples = {"x": normal(40, 32, K)}
    done = convert(cli, tmp_path, "int8", samples)
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds(samples, 2)) > 25
