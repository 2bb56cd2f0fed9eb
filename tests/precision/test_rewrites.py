"""Every rewrite of the FP32 network leaves its function as it is, on random networks with operands of all shapes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from trtopt.calibrate.ranges import Channels
from trtopt.engine.onnxruntime import open_runner
from trtopt.graph.prepare import infer_shapes, prepare, save
from trtopt.graph.query import constant
from trtopt.precision.passes import bias
from trtopt.precision.passes.equalize import equalize
from trtopt.precision.passes.operands import channel_axis
from trtopt.precision.passes.pairs import links
from trtopt.precision.passes.placement import place
from trtopt.precision.passes.smoothing import WAYS

SIZES = (16, 17)  # equal sizes on different axes hide a factor that is applied to the wrong one
SHAPES = ("", "1", "c", "1c", "m1", "mc", "11c", "1mc")  # of a constant operand: m rows, c channels


@dataclass(repr=False)
class Net:
    """A network in ONNX's text form that grows node by node. `shape` is that of the last tensor, `x` at first."""

    given: tuple[int, ...]
    shape: tuple[int, ...]
    rng: np.random.Generator
    lines: list[str] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    last: str = "x"

    def __repr__(self) -> str:
        """Return the nodes and the shapes of the constants."""
        return f"x {self.given}: {'; '.join(self.lines)}; { {name: w.shape for name, w in self.weights.items()} }"

    def constant(self, *shape: int) -> str:
        """Add a constant whose channels have different ranges, and return its name."""
        name = f"c{len(self.weights)}"
        array = self.rng.uniform(0.5, 1.5, shape) * self.rng.choice([-1, 1], shape)
        self.weights[name] = (array * self.rng.permutation(np.geomspace(0.3, 3, shape[-1]))
                              if shape else array * np.ones(())).astype(np.float32)  # fmt: skip
        return name

    def broadcast(self, kind: str) -> str:
        """Add a constant of one of `SHAPES`, and return its name."""
        rows = self.shape[-2] if len(self.shape) > 1 else 1
        return self.constant(*({"1": 1, "m": rows, "c": self.shape[-1]}[letter] for letter in kind))

    def node(self, text: str, shape: tuple[int, ...] | None = None) -> None:
        """Add a node; `_` in its text is the last tensor."""
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {text.replace('_', self.last)}")
        self.last, self.shape = name, self.shape if shape is None else shape

    def model(self) -> onnx.ModelProto:
        """Return the network."""
        sizes = (", ".join(map(str, each)) for each in (self.given, self.shape))
        head = "(float[{}] x) => (float[{}] y)".format(*sizes)
        body = "\n".join([*self.lines, f"y = Identity({self.last})"])
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 19]> net {head} {{ {body} }}')
        for name, array in self.weights.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        for node in proto.graph.node:
            node.name = node.output[0]
        return proto


def gemm(net: Net, draw: st.DrawFn) -> None:
    if len(net.shape) != 2:
        return
    trans_a, trans_b = draw(st.booleans()), draw(st.booleans())
    rows, inner = net.shape[::-1] if trans_a else net.shape
    outer = draw(st.sampled_from(SIZES))
    weight = net.constant(*((outer, inner) if trans_b else (inner, outer)))
    alpha, beta = draw(st.sampled_from([1.0, 0.5])), draw(st.sampled_from([1.0, 2.0]))
    kind = draw(st.sampled_from([None, "", "1", "c", "1c", "m1", "mc"]))
    addend = "" if kind is None else ", " + net.constant(*({"1": 1, "m": rows, "c": outer}[letter] for letter in kind))
    attributes = f"transA={int(trans_a)}, transB={int(trans_b)}, alpha={alpha}, beta={beta}"
    net.node(f"Gemm<{attributes}>(_, {weight}{addend})", (rows, outer))


def matmul(net: Net, draw: st.DrawFn) -> None:
    outer = draw(st.sampled_from([*SIZES, 1]))
    batch = draw(st.sampled_from([(), (), (1,), (3,)]))
    weight = net.constant(*batch, net.shape[-1], outer)
    out = (*net.shape[:-1], outer)
    if batch and len(out) < 3:
        out = (*batch, *out)
    elif batch:
        out = (max(batch[0], out[0]), *out[1:]) if out[0] in (1, batch[0]) or batch[0] == 1 else ()
    if out:
        net.node(f"MatMul(_, {weight})", out)


def vector(net: Net, draw: st.DrawFn) -> None:
    if len(net.shape) > 1:
        net.node(f"MatMul(_, {net.constant(net.shape[-1])})", net.shape[:-1])


def left(net: Net, draw: st.DrawFn) -> None:
    if len(net.shape) > 1:
        rows = draw(st.sampled_from(SIZES))
        net.node(f"MatMul({net.constant(rows, net.shape[-2])}, _)", (*net.shape[:-2], rows, net.shape[-1]))


def pointwise(net: Net, draw: st.DrawFn) -> None:
    name = net.broadcast(draw(st.sampled_from(SHAPES)))
    operands = f"_, {name}" if draw(st.booleans()) else f"{name}, _"
    op = draw(st.sampled_from(["Add", "Mul", "Sub", "Div"]))
    if op == "Div":
        operands = f"_, {name}"
    net.node(f"{op}({operands})", np.broadcast_shapes(net.shape, net.weights[name].shape))


def widen(net: Net, draw: st.DrawFn) -> None:
    """Add the channels of a constant to a tensor with a single one."""
    if net.shape[-1] == 1:
        name = net.constant(draw(st.sampled_from(SIZES)))
        net.node(f"Add(_, {name})", (*net.shape[:-1], *net.weights[name].shape))


def norm(net: Net, draw: st.DrawFn) -> None:
    scale = net.constant(net.shape[-1])
    offset = draw(st.sampled_from(["", "constant", "computed"]))
    if offset == "computed":
        flat = net.constant(net.shape[-1], net.shape[-1])
        net.lines.append(f"o{len(net.lines)} = ReduceMax<keepdims=0>({flat}, first)")
        net.weights["first"] = np.array([0])
        net.node(f"Relu({net.last})")
        offset = f", o{len(net.lines) - 2}"
    elif offset:
        offset = f", {net.constant(net.shape[-1])}"
    net.node(f"LayerNormalization<axis=-1>(_, {scale}{offset})")


def view(net: Net, draw: st.DrawFn) -> None:
    """Move the values: the channels stay on the last axis, or not."""
    rank, name = len(net.shape), f"s{len(net.weights)}"
    if rank == 3 and draw(st.booleans()):
        net.node("Transpose<perm=[1, 0, 2]>(_)", (net.shape[1], net.shape[0], net.shape[2]))
    elif rank == 3:
        net.weights[name] = np.array([-1, net.shape[2]])
        net.node(f"Reshape(_, {name})", (net.shape[0] * net.shape[1], net.shape[2]))
    elif rank == 2 and draw(st.booleans()):
        net.node("Transpose<perm=[1, 0]>(_)", net.shape[::-1])
    elif rank == 2:
        net.weights[name] = np.array([1, *net.shape])
        net.node(f"Reshape(_, {name})", (1, *net.shape))


def simple(net: Net, draw: st.DrawFn) -> None:
    net.node(draw(st.sampled_from(["Relu(_)", "Identity(_)", "HardSwish(_)", "Abs(_)"])))


STEPS = (gemm, matmul, vector, left, pointwise, pointwise, widen, norm, view, view, view, simple, simple)


@st.composite
def rows(draw: st.DrawFn) -> Net:
    """Return a network of matrix products."""
    given = draw(st.sampled_from([(16, 16), (17, 16), (3, 16, 17)]))
    net = Net(given, given, np.random.default_rng(draw(st.integers(0, 99))))
    linear = st.sampled_from([gemm, matmul])
    for step in (draw(linear), *draw(st.lists(st.sampled_from(STEPS), max_size=4)), draw(linear)):
        step(net, draw)
    return net


@st.composite
def images(draw: st.DrawFn) -> Net:
    """Return a network of convolutions."""
    given = (2, 16, 4, 4)
    net = Net(given, given, np.random.default_rng(draw(st.integers(0, 99))))
    for step in draw(st.lists(st.sampled_from(["conv", "conv", "add", "simple", "linear"]), min_size=2, max_size=6)):
        if step == "simple":
            simple(net, draw)
        elif step == "linear":  # over the channels
            net.node("Transpose<perm=[0, 2, 3, 1]>(_)", (2, 4, 4, net.shape[1]))
            if draw(st.booleans()):
                norm(net, draw)
            outer = draw(st.sampled_from([16, 17]))
            net.node(f"MatMul(_, {net.constant(net.shape[-1], outer)})", (2, 4, 4, outer))
            net.node("Transpose<perm=[0, 3, 1, 2]>(_)", (2, outer, 4, 4))
        elif step == "add":
            c = net.shape[1]
            shape = draw(st.sampled_from([(), (1,), (4,), (c, 1, 1), (1, c, 1, 1), (4, 1), (1, 1, 4, 4), (c, 4, 4)]))
            net.node(f"{draw(st.sampled_from(['Add', 'Mul', 'Div']))}(_, {net.constant(*shape)})")
        else:
            groups = draw(st.sampled_from([1, 2, net.shape[1]])) if net.shape[1] == 16 else 1
            outer = draw(st.sampled_from([16, 32])) if groups > 1 else draw(st.sampled_from([16, 17]))
            weight = net.constant(outer, net.shape[1] // groups, 3, 3)
            addend = f", {net.constant(outer)}" if draw(st.booleans()) else ""
            net.node(f"Conv<group={groups}, pads=[1, 1, 1, 1]>(_, {weight}{addend})", (2, outer, 4, 4))
    return net


def output(path: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(open_runner(path).run({"x": x})["y"])


def random_input(net: Net) -> np.ndarray:
    return np.random.default_rng(1).normal(size=net.given).astype(np.float32)


def assert_same(rewrite: Callable[[ir.Model], None], net: Net, x: np.ndarray) -> None:
    """Assert that a rewrite leaves the outputs as they are, up to rounding."""
    proto = net.model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        expected = output(path, x)
        model = ir.from_proto(proto)
        infer_shapes(model)
        rewrite(model)
        save(model, path)
        actual = output(path, x)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=1e-6)
    np.testing.assert_allclose(actual / scale, expected / scale, atol=2e-4)


@settings(max_examples=150)
@given(st.one_of(rows(), rows(), images()), st.sampled_from(WAYS))
def test_equalization(net: Net, alphas: tuple[float, ...]) -> None:
    def rewrite(model: ir.Model) -> None:
        rng = np.random.default_rng(5)
        observed = {}
        for link in links(model):
            count = link.tensor.shape[link.axis]  # type: ignore[index]
            peaks = rng.permutation(np.geomspace(0.02, 50, count))
            observed[link.name] = Channels(peaks, (peaks[:, None] * rng.uniform(-1, 1, (count, 32))).astype(np.float32))
        equalize(model, links(model), observed, alphas)
        infer_shapes(model)

    assert_same(rewrite, net, random_input(net))


@settings(max_examples=100)
@given(st.one_of(rows(), images()))
def test_bias_correction(net: Net) -> None:
    """A weight without an error has nothing to correct, whatever the shape of the bias."""

    def rewrite(model: ir.Model) -> None:
        for site in place(model).sites:
            axis, value = channel_axis(site.node), site.node.inputs[0]
            if site.axis is None or axis is None or value is None:
                continue
            weight = np.asarray(constant(site.node.inputs[1]), np.float32)
            means = {(value.name or "", axis): np.ones(value.shape[axis])}  # type: ignore[index]
            bias.correct(site.node, bias.Rounded(weight, weight), means, {}, set())

    assert_same(rewrite, net, random_input(net))


@settings(max_examples=60)
@given(st.data())
def test_bias_correction_replaces_a_weight_where_the_input_is_its_mean(data: st.DataObject) -> None:
    given_shape = data.draw(st.sampled_from([(16, 16), (17, 16)]))
    net = Net(given_shape, given_shape, np.random.default_rng(data.draw(st.integers(0, 99))))
    (gemm if data.draw(st.booleans()) else matmul)(net, data.draw)
    if data.draw(st.booleans()):
        view(net, data.draw)
    if data.draw(st.booleans()):
        pointwise(net, data.draw)
    mean = np.linspace(-1, 1, 16)

    def rewrite(model: ir.Model) -> None:
        node = model.graph[0]
        weight = np.asarray(constant(node.inputs[1]), np.float32)
        coarse = np.round(weight)
        if channel_axis(node) is not None and bias.correct(
            node, bias.Rounded(weight, coarse), {("x", -1): mean}, {}, set()
        ):
            model.graph.initializers[node.inputs[1].name].const_value = ir.tensor(coarse)  # type: ignore[union-attr,index]

    assert_same(rewrite, net, np.broadcast_to(mean, given_shape).astype(np.float32))


@settings(max_examples=60)
@given(st.one_of(rows(), images()))
def test_preparation(net: Net) -> None:
    x = random_input(net)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "model.onnx", Path(folder) / "out"
        out.mkdir()
        onnx.save(net.model(), source)
        expected, actual = output(source, x), output(prepare(source, out, min_opset=19, profile=()).path, x)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max(initial=1e-6)
    np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-4)
