"""Minus infinity, and numbers that are used for it, are legal wherever FP32 has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks.small import Cli, convert, feeds, network, sqnr

from trtopt.engine.onnxruntime import open_runner

RNG = np.random.default_rng(0)
D, L, H = 32, 12, 2


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


WEIGHTS = {
    **{name: normal(D, D, scale=D**-0.5) for name in ("wq", "wk", "wv", "wo")},
    "split": np.array([0, 0, H, D // H]),
    "join": np.array([0, 0, D]),
    "scale": np.float32((D // H) ** -0.5),
    "ninf": np.float32(-np.inf),
    "lowest": np.finfo(np.float32).min,
    "zero": np.float32(0),
    "one": np.float32(1),
    "ax": np.array([1, 2]),
    "causal": np.where(np.tri(L, dtype=bool), 0, -np.inf).astype(np.float32),
}
HEAD = f"""float[n, {L}, {D}] y) {{
    q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm=[0, 2, 1, 3]>(q1)
    k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm=[0, 2, 3, 1]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm=[0, 2, 1, 3]>(v1)
    s0 = MatMul(q, k) s = Mul(s0, scale)"""
TAIL = """c0 = MatMul(p, v) c1 = Transpose<perm=[0, 2, 1, 3]>(c0) c2 = Reshape(c1, join) y = MatMul(c2, wo) }"""
PAD = f"(float[n, {L}, {D}] x, bool[n, {L}] pad) => ({HEAD} "
X = {"x": normal(48, L, D)}
PADDED = {**X, "pad": np.arange(L)[None] >= RNG.integers(4, L + 1, (48, 1))}
FULLY = {**X, "pad": np.arange(L)[None] >= np.where(np.arange(48) % 2, 0, L)[:, None]}
NETS = {
    "minus infinity for padding": (
        PAD + "b0 = Where(pad, ninf, zero) b = Unsqueeze(b0, ax) a = Add(s, b) p = Softmax<axis=-1>(a) " + TAIL,
        PADDED,
    ),
    "the lowest number for padding, and a causal mask": (
        PAD + "b0 = Where(pad, lowest, zero) b = Unsqueeze(b0, ax) a = Add(s, b) a1 = Add(a, causal) "
        "p = Softmax<axis=-1>(a1) " + TAIL,
        PADDED,
    ),
    "a causal mask": (
        f"(float[n, {L}, {D}] x) => ({HEAD} a = Add(s, causal) p = Softmax<axis=-1>(a) " + TAIL,
        X,
    ),
    "rows without anything to attend to, whose NaN is replaced": (
        PAD + "b0 = Where(pad, ninf, zero) b = Unsqueeze(b0, ax) a = Add(s, b) p0 = Softmax<axis=-1>(a) "
        "bad = IsNaN(p0) p = Where(bad, zero, p0) " + TAIL,
        FULLY,
    ),
    "rows without anything to attend to, with the lowest number": (
        PAD + "b0 = Where(pad, lowest, zero) b = Unsqueeze(b0, ax) a = Add(s, b) p = Softmax<axis=-1>(a) " + TAIL,
        FULLY,
    ),
}
WANTED = {"int8": 25, "fp16": 50, "bf16": 30}


@pytest.mark.parametrize("precision", WANTED)
@pytest.mark.parametrize(("body", "samples"), NETS.values(), ids=NETS)
def test_a_mask_before_a_softmax_converts(
    body: str, samples: dict[str, np.ndarray], precision: str, tmp_path: Path, cli: Cli
) -> None:
    network(tmp_path, body, WEIGHTS)
    done = convert(cli, tmp_path, precision, samples)
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds(samples)) > WANTED[precision]


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
@pytest.mark.parametrize("lowest", [-np.inf, float(np.finfo(np.float32).min), -1e9])
def test_a_mask_among_the_inputs_converts(lowest: float, precision: str, tmp_path: Path, cli: Cli) -> None:
    body = f"(float[n, {L}, {D}] x, float[n, 1, {L}, {L}] m) => ({HEAD} a = Add(s, m) p = Softmax<axis=-1>(a) {TAIL}"
    network(tmp_path, body, WEIGHTS)
    mask = np.where(np.tri(L, dtype=bool), 0, lowest).astype(np.float32)
    if np.isfinite(lowest):
        mask[0] = lowest  # a row without anything to attend to
    samples = {**X, "m": np.broadcast_to(mask, (48, 1, L, L)).copy()}
    done = convert(cli, tmp_path, precision, samples)
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds(samples)) > WANTED[precision]


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
@pytest.mark.parametrize("lowest", ["ninf", "lowest"])
@pytest.mark.parametrize("end", ["y = Where(ok, l, {0})", "m = Where(ok, l, {0}) y = LogSoftmax<axis=-1>(m)"])
def test_masked_scores_of_an_output_stay_as_they_are(
    end: str, lowest: str, precision: str, tmp_path: Path, cli: Cli
) -> None:
    body = f"(float[n, 32] x, bool[n, 24] ok) => (float[n, 24] y) {{ l = Gemm(x, w, b) {end.format(lowest)} }}"
    network(tmp_path, body, {**WEIGHTS, "w": normal(32, 24, scale=0.2), "b": normal(24)})
    samples = {"x": normal(200, 32), "ok": RNG.random((200, 24)) < 0.7}
    done = convert(cli, tmp_path, precision, samples)
    assert done.code in (0, 1), done.err
    typed = feeds(samples)
    assert sqnr(tmp_path, typed) > WANTED[precision]
    assert "SQNR 0.00 dB" not in done.out
    assert "lowest" not in lowest or "-65504" not in str(onnx.load(tmp_path / "run/typed.onnx"))


@pytest.mark.parametrize("lowest", [-np.inf, -1e9])
def test_masked_values_do_not_widen_the_scale_of_a_quantized_tensor(lowest: float, tmp_path: Path, cli: Cli) -> None:
    body = """(float[n, 32, 16] x, bool[n, 1, 16] ok) => (float[n, 24] y) {
        h0 = Conv<pads=[1, 1]>(x, w) h = Where(ok, h0, low) p = MaxPool<kernel_shape=[16]>(h)
        f = Flatten(p) y = Gemm(f, v) }"""
    weights = {"w": normal(32, 32, 3, scale=0.1), "v": normal(32, 24, scale=0.2), "low": np.float32(lowest)}
    network(tmp_path, body, weights)
    ok = RNG.random((64, 1, 16)) < 0.7
    ok[:, :, 0] = True
    samples = {"x": normal(64, 32, 16), "ok": ok}
    done = convert(cli, tmp_path, "int8", samples)
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds(samples)) > 25


def test_a_network_that_is_nan_is_refused_with_the_first_such_tensor(tmp_path: Path, cli: Cli) -> None:
    network(tmp_path, "(float[n, 32] x) => (float[n, 24] y) { r = Sqrt(x) a = Relu(r) y = Gemm(a, w) }",
            {"w": normal(32, 24)})  # fmt: skip
    done = convert(cli, tmp_path, "fp16", {"x": normal(40, 32)})
    assert done.code == 2
    assert "tensor r holds NaN for sample data.npz[0]" in done.err


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_masked_scores_of_an_attention_operator_stay_in_fp32(precision: str, tmp_path: Path, cli: Cli) -> None:
    """The operator itself writes the mask."""
    network(
        tmp_path,
        "(float[n, 2, 4, 8] q) => (float[n, 2, 4, 8] y, float[n, 2, 4, 4] scores) "
        "{ y, , , scores = Attention<is_causal = 1, qk_matmul_output_mode = 2>(q, q, q) }",
        {},
        opset=23,
    )
    q = np.random.default_rng(0).normal(size=(8, 2, 4, 8)).astype(np.float32)
    done = convert(cli, tmp_path, precision, {"q": q})
    assert done.code == 0, done.err
    found = open_runner(tmp_path / "run/typed.onnx").run({"q": q[:1]})["scores"]
    expected = open_runner(tmp_path / "model.onnx").run({"q": q[:1]})["scores"]
    assert np.allclose(found, expected, rtol=1e-6)
