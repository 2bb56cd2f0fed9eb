"""Random networks of more than 25 operators: inputs of several dtypes and ranks, shared weights, several outputs.

Each node is evaluated in float64 by ONNX's reference implementation as it is added. This gives the shapes, and the
exact outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 19
Array = np.ndarray[Any, Any]
INPUTS: tuple[tuple[int, ...], ...] = ((2, 16, 6, 6), (2, 16, 5), (17, 16), (2, 5, 16), (16,))
MOST_ELEMENTS = 1 << 13
LARGEST = 1e3  # larger values are not added: the graphs are about structure, not about the range of a type


@dataclass(repr=False)
class Net:
    """A network that grows node by node.

    `tensors` are the floating-point tensors with their exact values for the sample `feed`; in the network they have the
    type `dtype`. `conditions` are boolean tensors, computed from the inputs alone so that no rounding changes them.
    """

    dtype: type[np.floating[Any]]
    rng: np.random.Generator
    feed: dict[str, Array] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)
    conditions: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        """Return the inputs, the nodes, the constants and the outputs."""
        nodes = "; ".join(
            f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)}"
            + "".join(f", {a.name}={helper.get_attribute_value(a)}" for a in node.attribute)
            + ")"
            for node in self.nodes
        )
        shapes = {name: array.shape for name, array in [*self.feed.items(), *self.weights.items()]}
        return f"{self.dtype.__name__} {shapes}: {nodes} -> {', '.join(self.outputs)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print a failing network as `repr` does, where Hypothesis would print all of its values."""
        printer.text(repr(self))

    def input(self, name: str, shape: tuple[int, ...]) -> None:
        """Add a floating-point input. Its values are not a multiple of what conditions compare with."""
        self.feed[name] = self.tensors[name] = self.rng.integers(-40, 40, shape) / 16 + 1 / 32

    def weight(self, draw: st.DrawFn, *shape: int) -> str:
        """Return the name of a constant of that shape: a new one, or one that another node reads as well."""
        shared = [name for name, array in self.weights.items() if array.shape == shape and array.dtype == np.float64]
        if shared and draw(st.booleans()):
            return draw(st.sampled_from(shared))
        spread = self.rng.permutation(np.geomspace(0.3, 3, shape[-1])) if shape else np.float64(1)
        fan = np.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 1.0
        array = self.rng.uniform(0.5, 1.5, shape) * self.rng.choice([-1, 1], shape) * spread / fan
        return self.constant(array)

    def constant(self, value: Array | float | list[int]) -> str:
        """Add a constant that `dtype` represents exactly, or a list of integers, and return its name."""
        name = f"c{len(self.weights)}"
        is_list = isinstance(value, list)
        self.weights[name] = (
            np.asarray(value, np.int64) if is_list else np.asarray(value, self.dtype).astype(np.float64)
        )
        return name

    def add(self, op: str, inputs: list[str], count: int = 1, **attributes: Any) -> list[str]:
        """Add a node, unless its results are empty, large or not finite, and return the names of its results."""
        names = [f"t{len(self.nodes)}_{i}" if count > 1 else f"t{len(self.nodes)}" for i in range(count)]
        node = helper.make_node(op, inputs, names, f"{op}_{len(self.nodes)}", **attributes)
        known = {**self.feed, **self.weights, **self.conditions, **self.tensors}
        with np.errstate(all="ignore"):
            results = _evaluate(node, {name: known[name] for name in inputs})
        floating = [result for result in results if result.dtype == np.float64]
        if any(not r.size or r.size > MOST_ELEMENTS or not np.abs(r).max() < LARGEST for r in floating):
            return []
        self.nodes.append(node)
        for name, result in zip(names, results, strict=True):
            (self.conditions if result.dtype == bool else self.tensors)[name] = result
        return names

    def model(self, dtype: type[np.floating[Any]] | None = None) -> onnx.ModelProto:
        """Return the network, in another floating-point type if one is given."""
        kind = dtype or self.dtype
        known = {**self.feed, **self.tensors, **self.conditions}
        inputs, outputs = (
            [helper.make_tensor_value_info(name, _element_type(known[name], kind), known[name].shape) for name in each]
            for each in (self.feed, self.outputs)
        )
        weights = [numpy_helper.from_array(_in_type(array, kind), name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, weights)
        for node in graph.node:
            if node.op_type == "Cast":
                node.attribute[0].i = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def inputs(self, dtype: type[np.floating[Any]] | None = None) -> dict[str, Array]:
        """Return the sample in the type of the network, or in another one."""
        return {name: _in_type(array, dtype or self.dtype) for name, array in self.feed.items()}


def _in_type(array: Array, dtype: type[np.floating[Any]]) -> Array:
    return array.astype(dtype) if array.dtype == np.float64 else array


def _element_type(array: Array, dtype: type[np.floating[Any]]) -> int:
    return helper.np_dtype_to_tensor_dtype(_in_type(array[..., None][:0], dtype).dtype)


def _evaluate(node: onnx.NodeProto, feed: Mapping[str, Array]) -> list[Array]:
    """Return the results of one node."""
    values = [helper.make_tensor_value_info(name, _element_type(a, np.float64), a.shape) for name, a in feed.items()]
    graph = helper.make_graph([node], "node", values, [onnx.ValueInfoProto(name=name) for name in node.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, dict(feed))]


Step = Callable[[Net, st.DrawFn], object]


def pick(net: Net, draw: st.DrawFn, *ranks: int, most_recent: int = 2) -> str | None:
    """Return one of the most recent tensors with one of these ranks, or of any rank; None if there is none."""
    fitting = [name for name, array in net.tensors.items() if not ranks or array.ndim in ranks]
    return draw(st.sampled_from(fitting[-most_recent:])) if fitting else None


def unary(net: Net, draw: st.DrawFn) -> None:
    op = draw(st.sampled_from("Relu Sigmoid Tanh HardSwish LeakyRelu Abs Neg Identity Softplus Erf Elu".split()))
    net.add(op, [pick(net, draw, most_recent=1) or ""])


def embed(net: Net, draw: st.DrawFn) -> None:
    """Look up rows of a table by an input of indices, or compute with the indices themselves."""
    if "ids" not in net.feed:
        net.feed["ids"] = net.rng.integers(0, 17, (2, 5))
    if draw(st.booleans()):
        net.add("Gather", [net.weight(draw, 17, 16), "ids"], axis=0)
    else:
        net.add("Cast", ["ids"], to=onnx.TensorProto.DOUBLE)


def layers(net: Net, draw: st.DrawFn) -> None:
    """Add two layers, one after the other, which can be equalized."""
    kinds = [conv, gemm] if net.tensors[pick(net, draw, most_recent=1) or ""].ndim in (3, 4) else [gemm]
    of = draw(st.sampled_from([*kinds, matmul]))
    of(net, draw)
    unary(net, draw)
    of(net, draw)


def clip(net: Net, draw: st.DrawFn) -> None:
    bounds = [net.constant(bound) for bound in (0, draw(st.sampled_from([1, 6])))]
    net.add("Clip", [pick(net, draw) or "", *bounds])


def with_constant(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw) or ""
    shape = net.tensors[x].shape
    sizes = tuple(draw(st.sampled_from([1, size])) for size in shape)
    operands = [x, net.weight(draw, *sizes[draw(st.integers(0, len(shape))) :])]
    op = draw(st.sampled_from("Add Sub Mul Div".split()))
    net.add(op, operands if op == "Div" or draw(st.booleans()) else operands[::-1])


def of_two(net: Net, draw: st.DrawFn) -> None:
    """Combine two tensors that broadcast: a residual Add, a gate, a Max."""
    x = pick(net, draw, most_recent=1) or ""
    shape = net.tensors[x].shape
    fitting = [name for name, other in net.tensors.items() if _broadcasts(shape, other.shape)]
    op = draw(st.sampled_from("Add Add Mul Sub Max Min".split()))
    net.add(op, [x, draw(st.sampled_from(fitting))])


def _broadcasts(*shapes: tuple[int, ...]) -> bool:
    try:
        return bool(np.broadcast_shapes(*shapes) or True)
    except ValueError:
        return False


def where(net: Net, draw: st.DrawFn) -> None:
    of = draw(st.sampled_from([name for name in net.feed if name in net.tensors]))
    found = net.add(draw(st.sampled_from(["Greater", "Less"])), [of, net.constant(0.25)])
    fitting = [name for name, other in net.tensors.items() if _broadcasts(net.feed[of].shape, other.shape)]
    net.add("Where", [*found, draw(st.sampled_from(fitting)), net.constant(0.5)])


def matmul(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw, 1, 2, 3, 4) or ""
    shape = net.tensors[x].shape
    batch = draw(st.sampled_from([(), (), (1,)])) if len(shape) > 2 else ()
    product = net.add("MatMul", [x, net.weight(draw, *batch, shape[-1], draw(st.sampled_from([16, 17])))])
    if product and draw(st.booleans()):
        net.add("Add", [*product, net.weight(draw, net.tensors[product[0]].shape[-1])])


def attend(net: Net, draw: st.DrawFn) -> None:
    """Multiply two activations, as attention does."""
    x = pick(net, draw, 2, 3, 4)
    if x is None:
        return
    order = [*range(net.tensors[x].ndim - 2), net.tensors[x].ndim - 1, net.tensors[x].ndim - 2]
    turned = net.add("Transpose", [x], perm=order)
    scores = turned and net.add("MatMul", [x, *turned])
    scaled = scores and net.add("Mul", [*scores, net.constant(0.1)])
    weights = scaled and net.add("Softmax", [*scaled], axis=-1)
    if weights:
        net.add("MatMul", [*weights, x])


def gemm(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw, 2)
    if x is None:
        return
    trans_a, trans_b = draw(st.booleans()), draw(st.booleans())
    rows, inner = net.tensors[x].shape[::-1] if trans_a else net.tensors[x].shape
    outer = draw(st.sampled_from([16, 17]))
    inputs = [x, net.weight(draw, *((outer, inner) if trans_b else (inner, outer)))]
    if draw(st.booleans()):
        inputs.append(net.weight(draw, *draw(st.sampled_from([(outer,), (1, outer), (rows, 1), (1,), ()]))))
    scales = {"alpha": draw(st.sampled_from([1.0, 0.5])), "beta": draw(st.sampled_from([1.0, 2.0]))}
    net.add("Gemm", inputs, transA=int(trans_a), transB=int(trans_b), **scales)


def conv(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw, 3, 4)
    if x is None:
        return
    channels, *sizes = net.tensors[x].shape[1:]
    groups = draw(st.sampled_from([1, 1, channels, 2 if channels % 2 == 0 else 1]))
    side = draw(st.sampled_from([1, 3]))
    outer = groups * draw(st.sampled_from([1, 2])) if groups > 2 else draw(st.sampled_from([16, 32]))
    transposed = groups == 1 and draw(st.integers(0, 4)) == 0
    shape = (channels, outer) if transposed else (outer, channels // groups)
    inputs = [x, net.weight(draw, *shape, *[side] * len(sizes))]
    if draw(st.booleans()):
        inputs.append(net.weight(draw, outer))
    pads = [side // 2] * 2 * len(sizes)
    found = net.add("ConvTranspose" if transposed else "Conv", inputs, group=groups, pads=pads)
    if found and draw(st.booleans()):
        scale, bias, mean = (net.weight(draw, outer) for _ in range(3))
        variance = net.constant(net.rng.uniform(0.5, 2, outer))
        found = net.add("BatchNormalization", [*found, scale, bias, mean, variance])
    if found and draw(st.booleans()):
        net.add("Relu", found)


def norm(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw, 2, 3) or ""
    if x and draw(st.booleans()):
        size = net.tensors[x].shape[-1]
        net.add("LayerNormalization", [x, net.weight(draw, size), net.weight(draw, size)], axis=-1)
    elif x and net.tensors[x].ndim == 3:
        size = net.tensors[x].shape[1]
        net.add("InstanceNormalization", [x, net.weight(draw, size), net.weight(draw, size)])


def pool(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw, 3, 4)
    if x is None:
        return
    kinds = ["MaxPool", "AveragePool", "GlobalAveragePool"]
    # ONNX's reference implementation returns a wrong shape for other ranks.
    op = draw(st.sampled_from([*kinds, "GlobalMaxPool"] if net.tensors[x].ndim == 4 else kinds))
    window = {} if op.startswith("Global") else {"kernel_shape": [2] * (net.tensors[x].ndim - 2)}
    if window and min(net.tensors[x].shape[2:]) < 2:
        return
    net.add(op, [x], **window)


def reduce(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw, 2, 3, 4) or ""
    if x:
        axis = net.constant([draw(st.integers(-net.tensors[x].ndim, -1))])
        op = draw(st.sampled_from(["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"]))
        net.add(op, [x, axis], keepdims=draw(st.integers(0, 1)))


def move(net: Net, draw: st.DrawFn) -> None:
    x = pick(net, draw) or ""
    shape = net.tensors[x].shape
    rank = len(shape)
    op = draw(st.sampled_from("Transpose Reshape Flatten Unsqueeze Squeeze Expand Pad Slice Gather".split()))
    if op == "Transpose":
        net.add(op, [x], perm=draw(st.permutations(range(rank))))
    elif op == "Reshape" and rank > 1:
        at = draw(st.integers(0, rank - 2))
        net.add(op, [x, net.constant([*shape[:at], -1, *shape[at + 2 :]])])
    elif op == "Flatten":
        net.add(op, [x], axis=draw(st.integers(0, rank)))
    elif op == "Unsqueeze" and rank < 5:
        net.add(op, [x, net.constant([draw(st.integers(0, rank))])])
    elif op == "Squeeze" and 1 in shape:
        net.add(op, [x, net.constant([shape.index(1)])])
    elif op == "Expand" and rank < 5:
        net.add(op, [x, net.constant([2, *shape])])
    elif op == "Pad" and rank:
        net.add(op, [x, net.constant([0] * (2 * rank - 1) + [1])])
    elif op == "Slice" and rank:
        axis = draw(st.integers(0, rank - 1))
        net.add(op, [x, *(net.constant([number]) for number in (0, max(1, shape[axis] - 1), axis))])
    elif op == "Gather" and rank:
        net.add(op, [x, net.constant([0, -1])], axis=draw(st.integers(0, rank - 1)))


def parts(net: Net, draw: st.DrawFn) -> None:
    """Split a tensor, and join the parts or others."""
    x = pick(net, draw, 2, 3, 4)
    if x is None:
        return
    axis = draw(st.integers(0, net.tensors[x].ndim - 1))
    found = net.add("Split", [x], count=2, axis=axis, num_outputs=2) if net.tensors[x].shape[axis] > 1 else []
    if draw(st.booleans()):
        others = [*found[::-1], x] if found else [x, x]
        net.add("Concat", others, axis=axis)


STEPS: tuple[Step, ...] = (
    *(unary, unary, clip, with_constant, with_constant, of_two, of_two, where, matmul, matmul, attend, gemm, gemm),
    *(conv, conv, layers, layers, layers, embed, norm, pool, reduce, move, move, parts),
)


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """Return a network of one or two inputs and at most twelve steps, with one to three outputs."""
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float32, np.float16, np.float64]))
    net = Net(dtype, np.random.default_rng(draw(st.integers(0, 99))))
    for number, shape in enumerate(draw(st.lists(st.sampled_from(INPUTS), min_size=1, max_size=2))):
        net.input(f"x{number}", shape)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=12)):
        step(net, draw)
    if not net.nodes:
        net.add("Relu", ["x0"])
    results = [name for node in net.nodes for name in node.output]
    floating = [name for name in results if name in net.tensors] or net.add("Relu", ["x0"])
    others = draw(st.sampled_from([[], [], results[:1], results[-3:-2], results[:2]]))
    net.outputs = list(dict.fromkeys([floating[-1], *others]))
    return net
