"""The axis of the channels belongs to the operator that reads a tensor, and samples may differ in length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks.small import Cli, convert, network, sqnr

RNG = np.random.default_rng(0)
D, H = 32, 2
ATTENTION = f"""(float[n, l, {D}] x) => (float[n, l, {D}] y) {{
    q0 = MatMul(x, wq) q1 = Add(q0, b) q2 = Reshape(q1, split) q = Transpose<perm=[0, 2, 1, 3]>(q2)
    k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm=[0, 2, 3, 1]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm=[0, 2, 1, 3]>(v1)
    s = MatMul(q, k) p = Softmax<axis=-1>(s) c0 = MatMul(p, v)
    c1 = Transpose<perm=[0, 2, 1, 3]>(c0) c2 = Reshape(c1, join) y0 = MatMul(c2, wo) y = Add(y0, b) }}"""


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


WEIGHTS = {
    **{name: normal(D, D, scale=D**-0.5) for name in ("wq", "wk", "wv", "wo")},
    "b": normal(D),
    "split": np.array([0, 0, H, D // H]),
    "join": np.array([0, 0, D]),
}


@pytest.mark.parametrize(("precision", "wanted"), [("int8", 25), ("fp16", 50), ("bf16", 30), ("fp8", 15)])
def test_samples_of_different_lengths_run_through_attention(
    precision: str, wanted: float, tmp_path: Path, cli: Cli
) -> None:
    network(tmp_path, ATTENTION, WEIGHTS)
    samples = [normal(1, length, D) for length in RNG.integers(5, 30, 40)]
    (tmp_path / "data").mkdir()
    for i, x in enumerate(samples):
        np.savez(tmp_path / f"data/{i:02}.npz", x=x)
    shapes = ("--shape", f"x=1x5x{D}:1x20x{D}:1x30x{D}")
    done = convert(
        cli, tmp_path, precision, tmp_path / "data", *shapes, "--allow-inconclusive", "--backend", "onnxruntime"
    )
    assert done.code == 0, done.err
    assert sqnr(tmp_path, [{"x": x} for x in samples[:8]]) > wanted


READERS = {
    "a convolution and a product": "c = Conv<pads=[1, 1]>(a, w, b) d0 = MatMul(a, m) d = Add(d0, mb) y = Add(c, d)",
    "a product and a convolution": "d0 = MatMul(a, m) d = Add(d0, mb) c = Conv<pads=[1, 1]>(a, w, b) y = Add(c, d)",
    "a product with itself": "t = Transpose<perm=[0, 2, 1]>(a) s = MatMul(t, a) c = Conv<pads=[1, 1]>(a, w, b) "
    "y = MatMul(c, s)",
}


@pytest.mark.parametrize("flag", ["--allow-inconclusive", "--no-equalization", "--no-bias-correction"])
@pytest.mark.parametrize("body", READERS.values(), ids=READERS)
@pytest.mark.parametrize("length", [32, 48])
def test_a_tensor_has_a_channel_axis_for_each_reader(
    length: int, body: str, flag: str, tmp_path: Path, cli: Cli
) -> None:
    text = f"(float[n, 32, {length}] x) => (float[n, 32, {length}] y) {{ a = Relu(x) {body} }}"
    weights = {"w": normal(32, 32, 3, scale=0.1), "b": normal(32), "m": normal(length, length, scale=0.15),
               "mb": normal(length)}  # fmt: skip
    network(tmp_path, text, weights)
    x = normal(48, 32, length) + 1
    done = convert(cli, tmp_path, "int8", {"x": x}, flag, "--allow-inconclusive", "--backend", "onnxruntime")
    assert done.code == 0, done.err
    assert sqnr(tmp_path, [{"x": x[i : i + 1]} for i in range(8)]) > 25
    if flag == "--allow-inconclusive" and "d = Add" in body:
        assert "bias correction for" in done.err
