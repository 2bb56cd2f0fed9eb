"""Matrix products with operands of every shape convert, in every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks.small import Cli, convert, feeds, network, sqnr

RNG = np.random.default_rng(0)
ROWS = 4


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


ADDENDS = {"none": None, "scalar": (), "one": (1,), "a row": (48,), "a matrix row": (1, 48), "a column": (ROWS, 1),
           "a matrix": (ROWS, 48)}  # fmt: skip


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("attributes", ["", "<alpha=0.5, beta=2.0>", "<transB=1>"])
@pytest.mark.parametrize("addend", ADDENDS.values(), ids=ADDENDS)
def test_a_gemm_with_any_addend(
    addend: tuple[int, ...] | None, attributes: str, precision: str, tmp_path: Path, cli: Cli
) -> None:
    shape = (48, 32) if "transB" in attributes else (32, 48)
    weights = {"w0": normal(*shape), "w1": normal(48, 20, scale=0.1), "c1": normal(20)}
    third = ""
    if addend is not None:
        weights["c0"], third = normal(*addend) if addend else np.float32(0.3), ", c0"
    body = f"a0 = Gemm{attributes}(x, w0{third}) a = Relu(a0) y = Gemm(a, w1, c1)"
    network(tmp_path, f"(float[{ROWS}, 32] x) => (float[{ROWS}, 20] y) {{ {body} }}", weights)
    x = normal(40, ROWS, 32)
    done = convert(cli, tmp_path, precision, {"x": x})
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x}, batch=False)) > (20 if precision == "int8" else 45)


PRODUCTS = {
    "with a vector": ("a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", {"w": normal(32, 24), "v": normal(24)}, "n, 24"),
    "by a vector in front": ("a = MatMul(x, v) y = MatMul(a, w)", {"v": normal(32), "w": normal(24, 40)}, "n, 40"),
    "of equal sizes": ("a = MatMul(x, v) y = MatMul(a, w)", {"v": normal(32), "w": normal(24, 24)}, "n, 24"),
    "from the left": ("a = MatMul(u, x) r = Relu(a) y = MatMul(r, w)",
                      {"u": normal(16, 24), "w": normal(32, 20)}, "n, 16, 20"),
    "batched": ("a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)",
                {"w": normal(1, 32, 32), "v": normal(1, 32, 20)}, "n, 24, 20"),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize(("body", "weights", "out"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_product(
    body: str, weights: dict[str, np.ndarray], out: str, precision: str, tmp_path: Path, cli: Cli
) -> None:
    network(tmp_path, f"(float[n, 24, 32] x) => (float[{out}] y) {{ {body} }}", weights)
    x = normal(40, 24, 32)
    done = convert(cli, tmp_path, precision, {"x": x})
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > (20 if precision == "int8" else 45)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_transposed_left_operand(precision: str, tmp_path: Path, cli: Cli) -> None:
    body = "a = Gemm<transA=1>(x, w, b) r = Relu(a) y = Gemm<transA=1, alpha=0.25>(r, v)"
    weights = {"w": normal(24, 40), "b": normal(32, 1), "v": normal(32, 20)}
    network(tmp_path, f"(float[24, 32] x) => (float[40, 20] y) {{ {body} }}", weights)
    x = normal(40, 24, 32)
    done = convert(cli, tmp_path, precision, {"x": x})
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x}, batch=False)) > (20 if precision == "int8" else 45)


def test_a_transposed_operand_in_16_bits_does_not_crash(tmp_path: Path, cli: Cli) -> None:
    """onnxruntime 1.32 ends with a segmentation fault where its default options fuse this Transpose into the MatMul."""
    body = "(float[n, 8, 40] x) => (float[8, n, 24] y) { t = Transpose<perm=[1, 0, 2]>(x) y = MatMul(t, w) }"
    network(tmp_path, body, {"w": normal(40, 24)})
    x = normal(40, 8, 40)
    done = convert(cli, tmp_path, "fp16", {"x": x})
    assert done.code == 0, done.err
    assert sqnr(tmp_path, feeds({"x": x})) > 45
