"""The same network written differently is quantized equally well."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from networks.small import Cli, convert, network

RNG = np.random.default_rng(0)
BATCH, L, D, F = 8, 12, 32, 48


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


# Channels of very different ranges, which need equalization.
SPREAD = np.geomspace(0.05, 20, D).astype(np.float32)
WEIGHTS = {
    "g": SPREAD, "o": np.zeros(D, np.float32), "b": normal(F), "c": normal(D),
    "w": (normal(D, F) / SPREAD[:, None]).astype(np.float32), "v": normal(F, D, scale=0.1),
    "flat": np.array([-1, D]), "flat_f": np.array([-1, F]),
    "deep": np.array([-1, L, F]), "deep_d": np.array([-1, L, D]),
}  # fmt: skip
CONV = {"wc": WEIGHTS["w"].T.reshape(F, D, 1).copy(), "vc": WEIGHTS["v"].T.reshape(D, F, 1).copy()}
FORMS = {
    "matmul": "a0 = MatMul(h, w) a = Add(a0, b) r = Relu(a) z0 = MatMul(r, v) z = Add(z0, c)",
    "gemm": "h2 = Reshape(h, flat) a = Gemm(h2, w, b) r = Relu(a) z2 = Gemm(r, v, c) z = Reshape(z2, deep_d)",
    "gemm and reshapes": "h2 = Reshape(h, flat) a2 = Gemm(h2, w, b) a = Reshape(a2, deep) r = Relu(a) "
    "r2 = Reshape(r, flat_f) z2 = Gemm(r2, v, c) z = Reshape(z2, deep_d)",
    "convolution": "ht = Transpose<perm=[0, 2, 1]>(h) a = Conv(ht, wc, b) r = Relu(a) zt = Conv(r, vc, c) "
    "z = Transpose<perm=[0, 2, 1]>(zt)",
    "matmul over the channels": "ht = Transpose<perm=[0, 2, 1]>(h) a = Conv(ht, wc, b) r = Relu(a) "
    "rt = Transpose<perm=[0, 2, 1]>(r) z0 = MatMul(rt, v) z = Add(z0, c)",
}


def quality(folder: Path, cli: Cli, form: str, batch: int | str) -> float:
    """Return the output SQNR, in dB, of the network in one form with a free or a fixed batch."""
    folder.mkdir()
    body = f"(float[{batch}, {L}, {D}] x) => (float[{batch}, {L}, {D}] y) {{ "
    body += f"h = LayerNormalization<axis=-1>(x, g, o) {FORMS[form]} y = Add(x, z) }}"
    network(folder, body, {**WEIGHTS, **CONV})
    done = convert(cli, folder, "int8", {"x": np.random.default_rng(2).normal(size=(64, L, D)).astype(np.float32)})
    assert done.code == 0, done.err
    assert "with an inserted Mul" in done.err or "equalized" in done.err
    found = re.search(r"compare .* SQNR ([\d.]+) dB", done.err)
    assert found
    return float(found[1])


@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_another_form_of_a_linear_layer(form: str, tmp_path: Path, cli: Cli) -> None:
    assert quality(tmp_path / "other", cli, form, "n") > quality(tmp_path / "matmul", cli, "matmul", "n") - 1


@pytest.mark.parametrize("form", ["matmul", "gemm"])
def test_a_fixed_batch(form: str, tmp_path: Path, cli: Cli) -> None:
    assert quality(tmp_path / "fixed", cli, form, BATCH) > quality(tmp_path / "free", cli, "matmul", "n") - 1
