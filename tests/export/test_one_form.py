"""Each thing that exporters write in several ways has one form after preparation, with the same results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from trtopt.graph.prepare import prepare

RNG = np.random.default_rng(0)
Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.3, shape).astype(np.float32)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Draw the same numbers in every order of the tests: a tolerance for rounding should not depend on it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def prepared(folder: Path, body: str, weights: Arrays, opset: int = 18) -> list[str]:
    """Return the operators of a prepared network, in order. Its results must be those of the network."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {body}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, folder / "model.onnx")
    path = prepare(folder / "model.onnx", folder, min_opset=opset, profile=()).path
    x = normal(*(dim.dim_value or 3 for dim in proto.graph.input[0].type.tensor_type.shape.dim)) * 4
    results = [
        ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for file in (folder / "model.onnx", path)
    ]
    for before, after in zip(*results, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return [node.op_type for node in onnx.load(path).graph.node]


IMAGE = "(float[n, 16, 8, 32] x) => (float[n, 32, 8, 32] y)"
CONV: Arrays = {"w": normal(32, 16, 1, 1), "b": normal(32)}
WIDE, NARROW = normal(1, 32, 1, 1), normal(32, 1, 1)
NORM: Arrays = {"s": normal(32), "t": normal(32), "m": normal(32), "v": normal(32) ** 2 + 0.1}
FOLDED = {
    "factor": (f"{IMAGE} {{ c = Conv(x, w, b) y = Mul(c, s) }}", {**CONV, "s": NARROW}),
    "factor on the left": (f"{IMAGE} {{ c = Conv(x, w, b) y = Mul(s, c) }}", {**CONV, "s": NARROW}),
    "one factor": (f"{IMAGE} {{ c = Conv(x, w, b) y = Mul(c, s) }}", {**CONV, "s": normal()}),
    "divisor": (f"{IMAGE} {{ c = Conv(x, w, b) y = Div(c, s) }}", {**CONV, "s": WIDE}),
    "addend on the left": (f"{IMAGE} {{ c = Conv(x, w) y = Add(s, c) }}", {**CONV, "s": WIDE}),
    "subtrahend": (f"{IMAGE} {{ c = Conv(x, w) y = Sub(c, s) }}", {**CONV, "s": WIDE}),
    "minuend": (f"{IMAGE} {{ c = Conv(x, w) y = Sub(s, c) }}", {**CONV, "s": WIDE}),
    "factor and addend": (
        f"{IMAGE} {{ c = Conv(x, w) m = Mul(s, c) y = Add(b, m) }}",
        {"w": CONV["w"], "s": WIDE, "b": NARROW},
    ),
    "transposed convolution": (
        "(float[n, 16, 8, 8] x) => (float[n, 32, 8, 8] y) { c = ConvTranspose<group = 2>(x, w) y = Mul(s, c) }",
        {"w": normal(16, 16, 1, 1), "s": WIDE},
    ),
    "norm after a Gemm": (
        "(float[n, 16] x) => (float[n, 32] y) { c = Gemm(x, w) y = BatchNormalization(c, s, t, m, v) }",
        {"w": normal(16, 32), **NORM},
    ),
    "norm after a transposed Gemm": (
        "(float[n, 16] x) => (float[n, 32] y) "
        "{ c = Gemm<transB = 1, alpha = 0.5>(x, w, b) y = BatchNormalization(c, s, t, m, v) }",
        {"w": normal(32, 16), "b": CONV["b"], **NORM},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "weights"), FOLDED.values(), ids=FOLDED)
def test_what_follows_a_linear_layer_per_channel_is_folded(body: str, weights: Arrays, tmp_path: Path) -> None:
    assert len(prepared(tmp_path, body, weights)) == 1


MOVED = {
    "bias": ("c = MatMul(x, w) a = Add(c, b) y = Mul(s, a)", {"s": normal(32)}),
    "norm after a transposition": (
        "c = MatMul(x, w) a = Add(b, c) f = Transpose<perm = [0, 2, 1]>(a) "
        "g = BatchNormalization(f, s, t, m, v) y = Transpose<perm = [0, 2, 1]>(g)",
        NORM,
    ),
    "norm of rows": (
        "c = MatMul(x, w) a = Add(c, b) f = Reshape(a, flat) g = BatchNormalization(f, s, t, m, v) "
        "y = Reshape(g, deep)",
        {**NORM, "flat": np.array([-1, 32]), "deep": np.array([-1, 8, 32])},
    ),
}


@pytest.mark.parametrize(("body", "weights"), MOVED.values(), ids=MOVED)
def test_the_bias_of_a_product_takes_part(body: str, weights: Arrays, tmp_path: Path) -> None:
    body = f"(float[n, 8, 16] x) => (float[n, 8, 32] y) {{ {body} }}"
    found = prepared(tmp_path, body, {"w": normal(16, 32), "b": normal(32), **weights})
    assert not {"Mul", "BatchNormalization"} & set(found)
    assert found.count("Add") == 1


LEFT = {
    "factors along the width": ("c = Conv(x, w) y = Mul(c, s)", {"s": normal(32)}, "Mul"),
    "addends along the width": ("c = Conv(x, w) y = Add(c, s)", {"s": normal(32)}, "Add"),
    "a reader of the layer itself": ("c = Conv(x, w) m = Mul(c, s) y = Add(m, c)", {"s": NARROW}, "Mul"),
    "an activation between": ("c = Conv(x, w) r = Relu(c) y = Mul(r, s)", {"s": NARROW}, "Mul"),
    "a divided constant": ("c = Conv(x, w) y = Div(s, c)", {"s": NARROW}, "Div"),
}


@pytest.mark.parametrize(("body", "weights", "op"), LEFT.values(), ids=LEFT)
def test_anything_else_after_a_linear_layer_stays(body: str, weights: Arrays, op: str, tmp_path: Path) -> None:
    assert op in prepared(tmp_path, f"{IMAGE} {{ {body} }}", {**CONV, **weights})


LIMITS: Arrays = {"zero": np.float32(0), "six": np.float32(0.6)}
CLIPS = {
    "Relu and Clip": ("r = Relu(h) y = Clip(r, , six)", ["Clip"]),
    "Clip and Relu": ("r = Clip(h, , six) y = Relu(r)", ["Clip"]),
    "Max and Min": ("r = Max(h, zero) y = Min(six, r)", ["Clip"]),
    "Max": ("y = Max(zero, h)", ["Relu"]),
    "Clip from zero": ("y = Clip(h, zero)", ["Relu"]),
    "limits that exclude each other": ("r = Relu(h) y = Min(r, less)", ["Clip"]),
    "a limit that is read twice": ("r = Relu(h) a = Min(r, six) y = Sub(a, r)", ["Relu", "Clip", "Sub"]),
    "a limit per channel": ("y = Max(h, each)", ["Max"]),
}


@pytest.mark.parametrize(("body", "ops"), CLIPS.values(), ids=CLIPS)
def test_limits_are_one_relu_or_one_clip(body: str, ops: list[str], tmp_path: Path) -> None:
    body = f"(float[n, 16] x) => (float[n, 16] y) {{ h = Neg(x) {body} }}"
    weights = {**LIMITS, "less": np.float32(-0.5), "each": normal(16)}
    assert prepared(tmp_path, body, weights) == ["Neg", *ops]


@pytest.mark.parametrize("count", [2, 3])
def test_a_sum_is_additions(count: int, tmp_path: Path) -> None:
    body = f"(float[n, 16] x) => (float[n, 16] y) {{ r = Relu(x) y = Sum(r, {', '.join('x' * (count - 1))}) }}"
    assert prepared(tmp_path, body, {}) == ["Relu", *["Add"] * (count - 1)]


EINSUMS = {
    "a linear layer": ("(float[n, l, 16] x) => (float[n, l, 32] y)", "abc,ck->abk", (16, 32), ["MatMul"]),
    "a linear layer with the weight first": ("(float[n, l, 16] x) => (float[n, l, 32] y)", "kc,abc->abk", (32, 16),
                                             ["MatMul"]),
    "heads from a linear layer": ("(float[n, l, 16] x) => (float[n, 2, l, 24] y)", "bld,dhk->bhlk", (16, 2, 24),
                                  ["MatMul", "Reshape", "Transpose"]),
    "a linear layer from heads": ("(float[n, l, 2, 24] x) => (float[n, l, 16] y)", "blhk,hkd->bld", (2, 24, 16),
                                  ["Reshape", "MatMul"]),
    "over the channels of an image": ("(float[n, 16, h, 8] x) => (float[n, 32, h, 8] y)", "bchw,oc->bohw", (32, 16),
                                      ["Transpose", "MatMul", "Transpose"]),
    "an ellipsis": ("(float[n, l, 16] x) => (float[n, l, 32] y)", "...c,cd->...d", (16, 32), ["MatMul"]),
    "a transposition": ("(float[n, 2, 4, 8] x) => (float[n, 8, 4, 2] y)", "nabc->ncba", None, ["Transpose"]),
    "scores of attention": ("(float[n, l, 2, 16] x) => (float[n, 2, l, m] y)", "bqhd,bkhd->bhqk", (),
                            ["Transpose", "Transpose", "MatMul"]),
    "weights per head": ("(float[n, 2, l, 16] x) => (float[n, 2, l, 24] y)", "bhld,hdk->bhlk", (2, 16, 24), ["MatMul"]),
    "weights per head, heads last": ("(float[n, l, 2, 16] x) => (float[n, l, 2, 24] y)", "blhd,hdk->blhk", (2, 16, 24),
                                     ["Transpose", "MatMul", "Transpose"]),
    "two axes summed per head": ("(float[n, 2, l, 4, 4] x) => (float[n, 2, l, 24] y)", "bhlij,hijk->bhlk",
                                 (2, 4, 4, 24), ["Einsum"]),
    "a diagonal": ("(float[n, 8, 8] x) => (float[n, 8] y)", "naa->na", None, ["Einsum"]),
    "a sum": ("(float[n, l, 16] x) => (float[n, 32] y)", "abc,cd->ad", (16, 32), ["Einsum"]),
    "an outer product": ("(float[n, 16] x) => (float[n, 16, 8] y)", "na,b->nab", (8,), ["Einsum"]),
}  # fmt: skip


@pytest.mark.parametrize(("signature", "equation", "shape", "ops"), EINSUMS.values(), ids=EINSUMS)
def test_an_einsum_is_a_product_where_it_can(
    signature: str, equation: str, shape: tuple[int, ...] | None, ops: list[str], tmp_path: Path
) -> None:
    has_weight_first = equation.startswith("kc")
    operands = "x" if shape is None else "x, x" if not shape else "w, x" if has_weight_first else "x, w"
    body = f'{signature} {{ y = Einsum<equation = "{equation}">({operands}) }}'
    assert prepared(tmp_path, body, {"w": normal(*shape)} if shape else {}) == ops


PLAIN = ["Transpose", "MatMul", "Mul", "Softmax", "MatMul"]
MASKED = [*PLAIN[:3], "Where", *PLAIN[3:]]
ATTENTION = {
    "plain": ("n, 2, l, 16", "y = Attention(x, x, x)", PLAIN),
    "with a scale": ("n, 2, l, 16", "y = Attention<scale = 0.5>(x, x, x)", PLAIN),
    "with a mask to add": ("n, 2, 8, 16", "y = Attention(x, x, x, bias)", [*PLAIN[:3], "Add", *PLAIN[3:]]),
    "with a mask of allowed positions": ("n, 2, 8, 16", "y = Attention(x, x, x, allowed)", MASKED),
    "causal": ("n, 2, 8, 16", "y = Attention<is_causal = 1>(x, x, x)", MASKED),
    "causal over any length": ("n, 2, l, 16", "y = Attention<is_causal = 1>(x, x, x)", ["Attention"]),
    "of three axes": (
        "n, l, 32",
        "y = Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x)",
        [*["Reshape", "Transpose"] * 3, *PLAIN, "Transpose", "Reshape"],
    ),
    "causal, of three axes": (
        "n, 8, 32",
        "y = Attention<q_num_heads = 2, kv_num_heads = 2, is_causal = 1>(x, x, x)",
        [*["Reshape", "Transpose"] * 3, *MASKED, "Transpose", "Reshape"],
    ),
    "with a cap": ("n, 2, l, 16", "y = Attention<softcap = 3.0>(x, x, x)", ["Attention"]),
}


@pytest.mark.parametrize(("shape", "body", "ops"), ATTENTION.values(), ids=ATTENTION)
def test_an_attention_node_is_two_products(shape: str, body: str, ops: list[str], tmp_path: Path) -> None:
    weights = {"bias": normal(8, 8), "allowed": np.tri(8, dtype=np.bool_)}
    weights = {name: array for name, array in weights.items() if name in body}
    assert prepared(tmp_path, f"(float[{shape}] x) => (float[{shape}] y) {{ {body} }}", weights, 23) == ops


@pytest.mark.parametrize("mask", ["", ", bias"])
@pytest.mark.parametrize("form", ["four axes", "three axes"])
def test_queries_may_share_the_heads_of_keys(form: str, mask: str, tmp_path: Path) -> None:
    if form == "four axes":
        body = f"""(float[n, 4, 8, 16] x) => (float[n, 4, 8, 16] y) {{
            k, v = Split<axis = 1>(x, two) y = Attention(x, k, v{mask}) }}"""
        weights: Arrays = {"two": np.array([2, 2])}
    else:
        body = f"""(float[n, 8, 64] x) => (float[n, 8, 64] y) {{ k = MatMul(x, wk) v = MatMul(x, wv)
            y = Attention<q_num_heads = 4, kv_num_heads = 2>(x, k, v{mask}) }}"""
        weights = {"wk": normal(64, 32), "wv": normal(64, 32)}
    weights |= {"bias": normal(4, 8, 8)} if mask else {}
    ops = prepared(tmp_path, body, weights, 23)
    assert "Attention" not in ops
    assert ops.count("Expand") == 2


SCORES = "(float[n, 4, 6, 5] x) => (float[n, 4, 6, 5] y)"


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("flat", ["Flatten<axis = 3>(x)", "Reshape(x, r)"])
def test_a_softmax_of_a_matrix_is_one_along_the_last_axis(tmp_path: Path, op: str, flat: str) -> None:
    body = f"{SCORES} {{ f = {flat} s = {op}<axis = 1>(f) y = Reshape(s, t) }}"
    assert prepared(tmp_path, body, {"r": np.array([-1, 5]), "t": np.array([-1, 4, 6, 5])}) == [op]


@pytest.mark.parametrize(
    "body", ["f = Flatten<axis = 2>(x) s = Softmax<axis = 1>(f)", "f = Flatten<axis = 3>(x) s = Softmax<axis = 0>(f)"]
)
def test_a_softmax_of_other_axes_stays_one_of_a_matrix(tmp_path: Path, body: str) -> None:
    assert "Reshape" in prepared(tmp_path, f"{SCORES} {{ {body} y = Reshape(s, t) }}", {"t": np.array([-1, 4, 6, 5])})


def test_a_matrix_that_others_read_stays(tmp_path: Path) -> None:
    body = "(float[n, 4, 6, 5] x) => (float[n, 4, 6, 5] y, float[m, 5] f) { f = Flatten<axis = 3>(x) "
    body += "s = Softmax<axis = 1>(f) y = Reshape(s, t) }"
    assert sorted(prepared(tmp_path, body, {"t": np.array([-1, 4, 6, 5])})) == ["Flatten", "Softmax"]
