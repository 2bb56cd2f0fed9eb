"""Drift layer by layer: a node is blamed for its own quantization error only, and a damaged layer is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from support import CALIB, DIGITS, EVAL

from trtopt.commands.convert import convert
from trtopt.compare.layers import look, worst
from trtopt.compare.views import Subject
from trtopt.data import open_dataset
from trtopt.data.dataset import Array, Dataset
from trtopt.errors import DataError, ModelError
from trtopt.events import Event, Progress, StageCached, silent
from trtopt.graph.file import describe, load_ir
from trtopt.graph.prepare import infer_shapes, save
from trtopt.plan import BuildPlan, ConvertPlan, DataPlan
from trtopt.precision import Request, precision
from trtopt.precision.passes import saturate
from trtopt.run import Run
from trtopt.stages.layers import _source, layers
from trtopt.store import open_store, read_result
from trtopt.types import LayerDrift, Layers, OnnxModel, TypedModel

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(4, 32)).astype(np.float32)
W = RANDOM.normal(size=(32, 32)).astype(np.float32)
Net = Callable[..., OnnxModel]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return `runs(precision)`, which gives the directory of a finished conversion of the digits network."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            plan = ConvertPlan(
                source=DIGITS,
                precision=name,
                run_dir=made[name],
                calib=DataPlan(source=str(CALIB)),
                compare=False,
                build=BuildPlan(backend="onnxruntime"),
            )
            convert(plan)
        return made[name]

    return run


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(str(EVAL), describe(DIGITS).inputs)


@pytest.fixture
def net(tmp_path: Path) -> Net:
    """Return `net(body, name, w=..., b=...)`, which writes a graph from `x` to `y` with these constants."""

    def net(body: str, name: str = "fp32.onnx", **constants: Array) -> OnnxModel:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 19]> g {body}')
        for key, array in constants.items():
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), key))
        for node in proto.graph.node:
            node.name = f"make_{node.output[0]}"
        onnx.save(proto, tmp_path / name)
        return describe(tmp_path / name)

    return net


@pytest.fixture
def halved(tmp_path: Path) -> Callable[[OnnxModel], OnnxModel]:
    """Return `halved(model)`, which writes the FP16 graph of a model without observed ranges."""

    def halved(model: OnnxModel) -> OnnxModel:
        graph = load_ir(model.path)
        infer_shapes(graph)
        precision("fp16").apply(graph, Request())
        save(graph, tmp_path / "typed.onnx")
        return describe(tmp_path / "typed.onnx")

    return halved


@pytest.fixture
def drift(tmp_path: Path) -> Callable[..., Layers]:
    def drift(reference: OnnxModel, typed: OnnxModel, data: Array = X) -> Layers:
        return look(Subject(reference=reference, typed=typed), samples(data), emit=silent, workspace=tmp_path)

    return drift


def samples(data: Array) -> Dataset:
    return Dataset(
        source="x.npz",
        digest="d",
        ids=tuple(map(str, range(len(data)))),
        load=lambda i: {"x": np.asarray(data[i])[None]},
        batched=True,
    )


def typed_of(run: Path) -> TypedModel:
    typed = read_result(run, "precision", TypedModel)
    assert typed is not None
    return typed


def source_of(run: Path) -> OnnxModel:
    source = read_result(run, "equalize", OnnxModel) or read_result(run, "prepare", OnnxModel)
    assert source is not None
    return source


def scales(path: Path, *, weights: bool) -> list[tuple[str, str]]:
    """Return (scale, consumer of the scaled tensor) of each Q/DQ of activations, or of weights, in graph order."""
    pairs = [node for node in load_ir(path).graph if node.op_type == "DequantizeLinear"]
    chosen = [node for node in pairs if (node.inputs[0].producer() is None) == weights]  # type: ignore[union-attr]
    return [(str(node.inputs[1].name), str(next(iter(node.outputs[0].uses())).node.name)) for node in chosen]  # type: ignore[union-attr]


def damaged(path: Path, scale: str, target: Path, factor: float = 0.1) -> OnnxModel:
    """Write a copy of a typed graph in which one scale is multiplied by `factor`."""
    graph = load_ir(path)
    value = graph.graph.initializers[scale]
    array = value.const_value.numpy()  # type: ignore[union-attr]
    value.const_value = ir.tensor((array.astype(np.float32) * factor).astype(array.dtype), name=scale)
    save(graph, target)
    return describe(target)


def row(found: Layers, node: str) -> LayerDrift:
    return next(layer for layer in found.layers if layer.node == node)


def db(signal: Array, noise: Array) -> float:
    return float(10 * np.log10((np.float64(signal) ** 2).sum() / (np.float64(noise) ** 2).sum()))


@pytest.mark.parametrize("name", ["int8", "fp8", "fp16", "bf16"])
@pytest.mark.parametrize("own", [True, False], ids=["against its source", "against the user's model"])
def test_a_sound_network_has_no_divergent_layer(
    runs: Callable[[str], Path], digits: Dataset, tmp_path: Path, name: str, own: bool
) -> None:
    typed = typed_of(runs(name))
    reference = source_of(runs(name)) if own else describe(DIGITS)
    found = look(
        Subject(reference=reference, typed=typed.onnx, decisions=typed.decisions),
        digits,
        emit=silent,
        workspace=tmp_path,
    )
    assert found.jump == ""
    assert found.reason.startswith("no divergent layer: ")
    # A Clip that was written as Relu has no counterpart in FP32.
    decisions = [decision for decision in typed.decisions if decision.reason != saturate.REASON]
    assert [layer.node for layer in found.layers] == [decision.node for decision in decisions]
    assert [layer.precision for layer in found.layers] == [decision.precision for decision in decisions]


@pytest.mark.parametrize("own", [True, False], ids=["against its source", "against the user's model"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("weights", [True, False], ids=["weight", "activation"])
def test_the_layer_whose_scale_is_ten_times_too_small_is_divergent(
    runs: Callable[[str], Path], digits: Dataset, tmp_path: Path, weights: bool, place: str, own: bool
) -> None:
    run = runs("int8")
    all_scales = scales(run / "typed.onnx", weights=weights)
    scale, reader = all_scales[{"first": 0, "middle": len(all_scales) // 2, "last": -1}[place]]
    typed = damaged(run / "typed.onnx", scale, tmp_path / "damaged.onnx")
    subject = Subject(reference=source_of(run) if own else describe(DIGITS), typed=typed)
    found = look(subject, digits, emit=silent, workspace=tmp_path)
    assert found.jump == reader
    assert found.reason.startswith(f"{reader} (")


def test_a_node_is_not_blamed_for_the_error_of_its_inputs(net: Net, drift: Callable[..., Layers]) -> None:
    body = "(float[n, 32] x) => (float[n, 32] y) { a = Mul(x, w)\n y = Relu(a) }"
    found = drift(net(body, w=np.float32(2)), net(body, "typed.onnx", w=np.float32(1.5)))
    first, second = found.layers
    assert first.added == pytest.approx(1 / 16)
    assert first.sqnr == pytest.approx(10 * np.log10(16))
    assert first.sqnr_in == np.inf
    assert second.added == 0
    assert second.sqnr_in == first.sqnr == pytest.approx(second.sqnr, abs=1e-4)
    assert found.jump == "make_a"


def test_a_node_that_magnifies_an_error_is_not_divergent(net: Net, drift: Callable[..., Layers]) -> None:
    body = "(float[n, 32] x) => (float[n, 32] y) { a = Add(x, w)\n y = Sub(a, v) }"
    exact = {"w": np.float32(1000), "v": np.float32(1000)}
    found = drift(net(body, **exact), net(body, "typed.onnx", **exact | {"w": np.float32(1001)}))
    assert row(found, "make_y").sqnr < 3 < 55 < row(found, "make_y").sqnr_in
    assert row(found, "make_y").added == 0
    assert found.jump == ""


def test_a_difference_of_numbers_that_round_to_the_same_value_is_divergent(
    net: Net, halved: Callable[[OnnxModel], OnnxModel], drift: Callable[..., Layers]
) -> None:
    # 1000 + x in FP16 is off by up to 0.25, which is visible only after the 1000 is subtracted.
    model = net("(float[n, 32] x) => (float[n, 32] y) { a = Add(x, w)\n y = Sub(a, w) }", w=np.float32(1000))
    found = drift(model, halved(model))
    assert row(found, "make_a").sqnr > 60
    assert found.jump == "make_y"


def test_sqnr_is_that_of_the_rounded_numbers(
    net: Net, halved: Callable[[OnnxModel], OnnxModel], drift: Callable[..., Layers]
) -> None:
    model = net("(float[n, 32] x) => (float[n, 32] y) { y = Mul(x, w) }", w=W[0])
    exact = X * W[0]
    rounded = (X.astype(np.float16).astype(np.float32) * W[0].astype(np.float16)).astype(np.float16)
    assert drift(model, halved(model)).layers[0].sqnr == pytest.approx(db(exact, rounded - exact), abs=0.01)


def test_the_node_that_overflows_is_divergent(
    net: Net, halved: Callable[[OnnxModel], OnnxModel], drift: Callable[..., Layers]
) -> None:
    body = "(float[n, 32] x) => (float[n, 32] y) { a = Mul(x, w)\n b = Mul(a, w)\n c = Mul(b, v)\n y = Mul(c, v) }"
    model = net(body, w=np.float32(1000), v=np.float32(0.001))
    found = drift(model, halved(model))
    assert found.jump == "make_b"
    assert found.reason == "make_b (Mul, fp16) produces NaN or Inf where FP32 is finite"
    assert row(found, "make_b").sqnr == -np.inf
    assert row(found, "make_a").sqnr > 60


def test_an_overflow_that_only_drift_causes_is_found(net: Net, drift: Callable[..., Layers]) -> None:
    body = "(float[n, 32] x) => (float[n, 32] y) { a = Add(x, w)\n b = Sqrt(a)\n y = Mul(b, b) }"
    found = drift(net(body, w=np.float32(0)), net(body, "typed.onnx", w=np.float32(-0.01)), np.abs(X))
    assert row(found, "make_a").added < 1e-3
    assert row(found, "make_b").added == 0
    assert found.jump == "make_b"


def test_a_substitute_for_infinity_is_not_drift(
    net: Net, halved: Callable[[OnnxModel], OnnxModel], drift: Callable[..., Layers]
) -> None:
    mask = np.where(np.arange(32) < 8, np.float32(-3.4e38), np.float32(0))
    model = net("(float[n, 32] x) => (float[n, 32] y) { a = Add(x, w)\n y = Softmax(a) }", w=mask)
    found = drift(model, halved(model))
    assert row(found, "make_a").sqnr > 60
    assert found.jump == ""


def test_a_product_and_its_bias_are_one_layer(net: Net, drift: Callable[..., Layers]) -> None:
    # The bias compensates for the mean quantization error of the weight, as bias correction does.
    body = "(float[n, 32] x) => (float[n, 32] y) { a = MatMul(x, w)\n b = Add(a, c)\n y = Relu(b) }"
    bias, data = RANDOM.normal(size=32).astype(np.float32), np.repeat(X[:1], 4, axis=0)
    rounded = np.round(W)
    corrected = bias + (X[0] @ (W - rounded))
    found = drift(net(body, w=W, c=bias), net(body, "typed.onnx", w=rounded, c=corrected), data)
    assert [layer.node for layer in found.layers] == ["make_a", "make_y"]
    assert found.layers[0].tensor == "b"
    assert found.layers[0].added < 1e-9


def test_a_tensor_of_zeros_is_left_out(net: Net, drift: Callable[..., Layers]) -> None:
    body = "(float[n, 32] x) => (float[n, 32] y) { a = Mul(x, w)\n b = Relu(a)\n y = Add(b, x) }"
    model = net(body, w=np.float32(-1))
    found = drift(model, net(body, "typed.onnx", w=np.float32(-1.01)), np.abs(X))
    assert [layer.node for layer in found.layers] == ["make_a", "make_y"]


def test_a_tensor_of_another_shape_is_not_a_counterpart(net: Net, drift: Callable[..., Layers]) -> None:
    reference = net("(float[n, 32] x) => (float[n, 32] y) { a = Relu(x)\n y = Exp(a) }")
    other = "{ r = Reshape(x, s)\n a = Relu(r)\n q = Reshape(a, t)\n y = Exp(q) }"
    typed = onnx.load(net(f"(float[n, 32] x) => (float[n, 32] y) {other}", "typed.onnx").path)
    for name, shape in {"s": [-1, 4, 8], "t": [-1, 32]}.items():
        typed.graph.initializer.append(numpy_helper.from_array(np.array(shape), name))
    onnx.save(typed, reference.path.with_name("typed.onnx"))
    found = drift(reference, describe(reference.path.with_name("typed.onnx")))
    assert [layer.node for layer in found.layers] == ["make_y"]


def test_the_error_of_a_node_without_counterpart_counts_for_the_next_with_a_note(
    net: Net, drift: Callable[..., Layers]
) -> None:
    reference = net("(float[n, 32] x) => (float[n, 32] y) { a = Mul(x, w)\n y = Relu(a) }", w=np.float32(1))
    typed = net("(float[n, 32] x) => (float[n, 32] y) { renamed = Mul(x, w)\n y = Relu(renamed) }", "t.onnx", w=2)
    found = drift(reference, typed)
    assert [layer.node for layer in found.layers] == ["make_y"]
    assert found.jump == "make_y"
    assert "make_renamed" in found.reason


def test_graphs_without_a_common_tensor_have_no_layers(net: Net, drift: Callable[..., Layers]) -> None:
    reference = net("(float[n, 32] x) => (float[n, 32] z) { z = Relu(x) }")
    found = drift(reference, net("(float[n, 32] x) => (float[n, 32] y) { y = Relu(x) }", "typed.onnx"))
    assert (found.layers, found.jump) == ((), "")
    assert "have no tensor names in common" in found.reason


def test_quantized_outputs_are_matched_behind_their_dequantization(net: Net, drift: Callable[..., Layers]) -> None:
    # onnxruntime's quantizer gives the output's name to the last DequantizeLinear.
    reference = net("(float[n, 32] x) => (float[n, 32] y) { y = Relu(x) }")
    body = (
        "(float[n, 32] x) => (float[n, 32] y) { r = Relu(x)\n q = QuantizeLinear(r, s)\n y = DequantizeLinear(q, s) }"
    )
    found = drift(reference, net(body, "typed.onnx", s=np.float32(0.05)))
    assert [layer.node for layer in found.layers] == ["make_r"]
    relu = np.maximum(X, 0)
    codes = np.clip(np.rint(relu / np.float32(0.05)), 0, 255) * np.float32(0.05)
    assert found.layers[0].sqnr == pytest.approx(db(relu, codes - relu), abs=0.01)


def test_a_quantization_that_replaces_a_relu_is_its_counterpart(net: Net, drift: Callable[..., Layers]) -> None:
    # onnxruntime's quantizer drops the Relu, gives its name to its input, and quantizes to 0 and above.
    reference = net("(float[n, 32] x) => (float[n, 32] y) { a = Mul(x, w)\n b = Relu(a)\n y = Exp(b) }", w=W[0])
    body = "{ b = Mul(x, w)\n q = QuantizeLinear(b, s)\n d = DequantizeLinear(q, s)\n y = Exp(d) }"
    found = drift(reference, net(f"(float[n, 32] x) => (float[n, 32] y) {body}", "t.onnx", w=W[0], s=np.float32(0.02)))
    assert [layer.tensor for layer in found.layers] == ["b", "y"]
    assert row(found, "make_b").sqnr > 30
    assert found.jump == ""


def test_arithmetic_on_integers_is_not_missed(net: Net, drift: Callable[..., Layers]) -> None:
    body = (
        "(float[n, 32] x) => (float[n, 32] y) { i = Cast<to = 7>(x)\n j = Abs(i)\n f = Cast<to = 1>(j)\n y = Exp(f) }"
    )
    model = net(body)
    assert drift(model, model).reason == "no layer adds any quantization error"


def test_several_passes_give_the_result_of_one(runs: Callable[[str], Path], digits: Dataset, tmp_path: Path) -> None:
    typed = typed_of(runs("int8"))
    for reference in (source_of(runs("int8")), describe(DIGITS)):
        subject = Subject(reference=reference, typed=typed.onnx)
        events: list[Event] = []
        whole = look(subject, digits, emit=silent, workspace=tmp_path)
        parts = look(subject, digits, emit=events.append, workspace=tmp_path, budget=60_000)
        goes = {event.total for event in events if isinstance(event, Progress)}
        assert goes.pop() > 3 * whole.samples
        for one, other in zip(whole.layers, parts.layers, strict=True):
            assert (one.node, one.precision) == (other.node, other.precision)
            assert (other.sqnr, other.sqnr_in) == pytest.approx((one.sqnr, one.sqnr_in), abs=0.01)
            assert other.added == pytest.approx(one.added, rel=0.02)


def test_eight_samples_are_taken_from_all_over_the_dataset(
    digits: Dataset, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    asked: set[int] = set()

    def load(index: int) -> dict[str, Array]:
        asked.add(index)
        return digits.load(index)

    run = runs("fp16")
    subject = Subject(reference=source_of(run), typed=typed_of(run).onnx)
    found = look(subject, replace(digits, load=load), emit=silent, workspace=tmp_path)
    assert found.samples == len(asked) == 8
    assert {0, len(digits) - 1} <= asked
    assert max(b - a for a, b in pairwise(sorted(asked))) <= len(digits) / 6


def test_samples_may_differ_in_size(
    net: Net, halved: Callable[[OnnxModel], OnnxModel], drift: Callable[..., Layers], tmp_path: Path
) -> None:
    model = net("(float[time, 32] x) => (float[time, 32] y) { a = MatMul(x, w)\n y = Relu(a) }", w=W)
    data = replace(samples(X), load=lambda i: {"x": np.repeat(X, i + 1, axis=0)}, batched=False)
    found = look(Subject(reference=model, typed=halved(model)), data, emit=silent, workspace=tmp_path)
    assert [layer.sqnr > 50 for layer in found.layers] == [True, True]


def test_a_shape_that_depends_on_values_is_refused(net: Net, drift: Callable[..., Layers]) -> None:
    body = "(float[n, 32] x) => (float[m, k] y) { a = Mul(x, w)\n i = NonZero(a)\n f = Cast<to = 1>(i)\n y = Relu(f) }"
    with pytest.raises(ModelError, match="Compare without --layers"):
        drift(net(body, w=np.float32(1)), net(body, "typed.onnx", w=np.float32(0)))


def test_no_samples_are_an_error(net: Net, drift: Callable[..., Layers]) -> None:
    model = net("(float[n, 32] x) => (float[n, 32] y) { y = Relu(x) }")
    with pytest.raises(DataError, match="holds no samples"):
        drift(model, model, X[:0])


def test_the_worst_layers_come_worst_first(net: Net, drift: Callable[..., Layers]) -> None:
    body = "(float[n, 32] x) => (float[n, 32] y) { a = Mul(x, u)\n b = Mul(x, v)\n y = Add(a, b) }"
    exact = {"u": np.float32(1), "v": np.float32(1)}
    found = drift(net(body, **exact), net(body, "typed.onnx", u=np.float32(1.01), v=np.float32(1.2)))
    assert [layer.node for layer in worst(found, 2)] == ["make_b", "make_y"]
    assert len(worst(found, 9)) == 3


def test_the_stage_compares_a_run_with_its_own_source_and_is_cached(
    runs: Callable[[str], Path], digits: Dataset, tmp_path: Path
) -> None:
    typed = typed_of(runs("int8"))
    events: list[Event] = []
    results = []
    with open_store(tmp_path / "run", events.append) as store:
        context = Run(store=store, emit=events.append, device="cpu")
        for known in (typed, typed, None):
            results.append(layers(context, describe(DIGITS), typed.onnx, known, digits))
    own, again, plain = results
    assert own == again
    assert sum(isinstance(event, StageCached) for event in events) == 1
    assert {layer.tensor for layer in plain.layers} <= {layer.tensor for layer in own.layers}
    made_from = json.loads((runs("int8") / "manifest.json").read_text())["stages"]["precision"]["inputs"]["model"]
    source = _source(runs("int8"))
    assert source is not None
    assert source.digest == made_from
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "manifest.json"}


def test_the_shape_that_differs_is_told(net: Net, drift: Callable[..., Layers]) -> None:
    """The layer alone keeps other rows than FP32, although the whole candidate keeps the same."""
    body = (
        "(float[1, 32] x) => (float[k] y) { a = Add(x, c) m = Greater(a, c) f = Reshape(a, s) r = Reshape(m, s) "
        "y = Compress<axis = 0>(f, r) }"
    )
    body = body.replace("{ a", "<int64[1] s = {-1}> { a")
    fp32, shifted = net(body, c=np.float32(0)), net(body, "shifted.onnx", c=np.float32(1))
    with pytest.raises(ModelError, match=r"another shape in the candidate: \[(\d+)\] instead of \[(?!\1\])"):
        drift(fp32, shifted)
