"""The typed graph as TensorRT 8.5 and 8.6 take it: in FP32, with the decisions as flags and constraints."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtopt.engine import BuildPlan
from trtopt.engine.onnxruntime import open_runner
from trtopt.engine.trt import weak
from trtopt.engine.trt.options import configure
from trtopt.engine.trt.versions import abilities
from trtopt.errors import AuditError, UsageError
from trtopt.events import Warned, silent
from trtopt.graph.file import describe, load_proto
from trtopt.graph.prepare import check_types, infer_shapes, save
from trtopt.precision import Request, precision
from trtopt.times import cache_name
from trtopt.types import CalibrationTable, Decision, TypedModel

BODY = """<ir_version: 10, opset_import: ["": 19]> g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {
    c = Conv(x, w)\n e = Exp(c)\n s = Sigmoid(e)\n y = Mul(s, c) }"""


def make(folder: Path, name: str, **request: object) -> TypedModel:
    proto = onnx.parser.parse_model(BODY)
    weights = np.random.default_rng(0).normal(0, 0.2, (16, 16, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    for node in proto.graph.node:
        node.name = node.output[0]
    model = ir.from_proto(proto)
    infer_shapes(model)
    decisions = precision(name).apply(model, Request(**request))
    save(model, folder / "typed.onnx")
    check_types(folder / "typed.onnx")
    return TypedModel(onnx=describe(folder / "typed.onnx"), precision=name, rest="fp16", decisions=decisions)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_the_widened_graph_is_in_fp32_and_computes_the_same(tmp_path: Path, name: str) -> None:
    table = CalibrationTable(method="minmax", scales={"x": 0.03})
    typed = make(tmp_path, name, table=table, rest="fp16")
    path = weak.write_widened(typed.onnx.path, tmp_path / "..", 17)
    check_types(path)
    proto = load_proto(path)
    assert not {tensor.data_type for tensor in proto.graph.initializer} & {10, 16}
    assert {node.output[0] for node in proto.graph.node if node.op_type == "Cast"} <= {"y"}  # an output keeps its name
    feed = {"x": np.random.default_rng(1).normal(size=(2, 16, 8, 8)).astype(np.float32)}
    half, full = (open_runner(each).run(feed)["y"] for each in (typed.onnx.path, path))
    # Values that the 16-bit rounding moves across the border of two codes differ by one code.
    assert 10 * np.log10((half**2).sum() / ((half - full) ** 2).sum()) > 45


def test_a_convolution_with_a_quantized_weight_names_its_kernel_shape(tmp_path: Path) -> None:
    typed = make(tmp_path, "int8", table=CalibrationTable(method="minmax", scales={"x": 0.03}), rest="fp16")
    conv = next(
        node
        for node in load_proto(weak.write_widened(typed.onnx.path, tmp_path, 17)).graph.node
        if node.op_type == "Conv"
    )
    assert next(list(a.ints) for a in conv.attribute if a.name == "kernel_shape") == [1, 1]


DIVIDED = """<ir_version: 10, opset_import: ["": 19]> g (float[n, 16, 8, 8] x) => (float[n, 16, 8, 8] y) {
    m = Mul(ORDER)\n q = QuantizeLinear(m, s, z)\n d = DequantizeLinear(q, s, z)\n y = Add(d, x) }"""


@pytest.mark.parametrize("order", ["x, f", "f, x"])
@pytest.mark.parametrize(
    ("factors", "op"),
    [
        (np.linspace(0.5, 2, 16).reshape(16, 1, 1), "Div"),
        (np.linspace(0, 2, 16).reshape(16, 1, 1), "Mul"),
        (np.geomspace(1e-5, 1, 16).reshape(16, 1, 1), "Mul"),
        (np.linspace(0.5, 2, 1024).reshape(16, 8, 8), "Mul"),
        (np.float32(0.5), "Mul"),
    ],
    ids=["per channel", "with a zero", "with a reciprocal beyond FP16", "per element", "scalar"],
)
def test_a_multiplication_per_channel_before_a_quantization_becomes_a_division(
    tmp_path: Path, order: str, factors: np.ndarray, op: str
) -> None:
    proto = onnx.parser.parse_model(DIVIDED.replace("ORDER", order))
    for name, array in (("f", np.float32(factors)), ("s", np.float32(0.03)), ("z", np.int8(0))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, tmp_path / "typed.onnx")
    written = weak.write_widened(tmp_path / "typed.onnx", tmp_path, 17)
    assert load_proto(written).graph.node[0].op_type == op
    feed = {"x": np.random.default_rng(1).normal(size=(2, 16, 8, 8)).astype(np.float32)}
    before, after = (open_runner(path).run(feed)["y"] for path in (tmp_path / "typed.onnx", written))
    np.testing.assert_allclose(after, before, atol=0.031)  # a value between two codes may be rounded to the other one
    assert np.mean(after != before) < 0.01


def test_a_multiplication_that_is_not_quantized_stays(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        DIVIDED.replace("ORDER", "x, f").replace("(m, s, z)", "(x, s, z)", 1).replace("Add(d, x)", "Add(d, m)")
    )
    for name, array in (("f", np.ones((16, 1, 1), np.float32)), ("s", np.float32(0.03)), ("z", np.int8(0))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, tmp_path / "typed.onnx")
    written = weak.write_widened(tmp_path / "typed.onnx", tmp_path, 17)
    assert [node.op_type for node in load_proto(written).graph.node if node.op_type in ("Mul", "Div")] == ["Mul"]


def trt(version: str) -> SimpleNamespace:
    return SimpleNamespace(title=f"TensorRT {version}", can=abilities("tensorrt", version))


@pytest.mark.parametrize("change", [{"precision": "fp8"}, {"rest": "bf16"}])
def test_a_precision_that_came_later_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    model = make(tmp_path, "fp16").onnx
    typed = TypedModel(**{"onnx": model, "precision": "int8", "rest": "fp16", "decisions": ()} | change)
    with pytest.raises(UsageError, match=r"TensorRT 8\.6 does not have"):
        weak.check_precision(trt("8.6"), typed)
    weak.check_precision(trt("10.3"), typed)


@pytest.mark.parametrize(("version", "asked"), [("8.5", True), ("8.6", False), ("10.3", False)])
def test_dynamic_shapes_of_transformers_get_the_preview_feature_of_8_5(version: str, asked: bool) -> None:
    module, config = MagicMock(), MagicMock()
    given = SimpleNamespace(module=module, can=abilities("tensorrt", version))
    configure(given, SimpleNamespace(create_builder_config=lambda: config), BuildPlan())  # type: ignore[arg-type]
    features = [call.args for call in config.set_preview_feature.call_args_list]
    assert features == ([(module.PreviewFeature.FASTER_DYNAMIC_SHAPES_0805, True)] if asked else [])


class Configuration(MagicMock):
    """A configuration that accepts an empty timing cache only."""

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return cache == b"" and not ignore_mismatch


def with_cache(path: Path) -> Configuration:
    config = Configuration()
    path.write_bytes(b"of another GPU")
    given = SimpleNamespace(module=MagicMock(), can=abilities("tensorrt", "8.6"), title="TensorRT 8.6")
    plan = BuildPlan(timing_cache=path)
    configure(given, SimpleNamespace(create_builder_config=lambda: config), plan)  # type: ignore[arg-type]
    return config


def test_a_timing_cache_of_the_user_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a timing cache of TensorRT 8\.6 on this GPU"):
        with_cache(tmp_path / "mine.cache")


def test_a_timing_cache_of_the_run_that_does_not_fit_is_begun_anew(tmp_path: Path) -> None:
    assert with_cache(tmp_path / cache_name({"gpu": 1})).cache == b""


def layer(name: str, datatype: str, tactic: str = "") -> dict[str, object]:
    tensor = {"Name": "t", "Format/Datatype": datatype}
    return {"Name": name, "Inputs": [tensor], "Outputs": [tensor], "TacticName": tactic}


NAMED = "Row major linear FP32", "Channel major FP16 format", "Thirty-two wide channel vectorized row major Int8 format"
FP32, FP16, INT8 = NAMED


def decided(tmp_path: Path, **precisions: str) -> TypedModel:
    decisions = tuple(Decision(node=n, op="Conv", precision=p, reason="") for n, p in precisions.items())
    return TypedModel(onnx=make(tmp_path, "fp16").onnx, precision="int8", rest="fp16", decisions=decisions)


@pytest.mark.parametrize(("lowered", "flag"), [("fp16", "OBEY"), ("int8", "PREFER")])
def test_a_node_in_fp32_is_constrained_and_beside_q_dq_nodes_preferred(lowered: str, flag: str) -> None:
    module, config, layer = MagicMock(), MagicMock(), MagicMock(num_inputs=0, num_outputs=1, type="LayerType.UNARY")
    layer.get_output.return_value.dtype = module.DataType.FLOAT
    decided = {"kept": "fp32", "other": lowered, "rest": "fp16"}
    typed = SimpleNamespace(
        decisions=[Decision(node=name, op="Exp", precision=each, reason="") for name, each in decided.items()],
        onnx=SimpleNamespace(inputs=(), outputs=()),
    )
    weak.constrain(SimpleNamespace(module=module), config, typed, {"kept": [layer]})  # type: ignore[arg-type]
    set_flags = {call.args[0] for call in config.set_flag.call_args_list}
    assert getattr(module.BuilderFlag, f"{flag}_PRECISION_CONSTRAINTS") in set_flags
    assert len([each for each in set_flags if "CONSTRAINTS" in str(each)]) == 1
    assert layer.precision == module.DataType.FLOAT


def test_the_precision_of_fused_layers_is_read_from_the_engine(tmp_path: Path) -> None:
    typed = decided(tmp_path, a="int8", b="int8", c="fp16", d="fp32", e="fp16")
    layers = [layer("a + b", INT8), layer("PWN(c)", FP16), layer("d", FP32)]
    assert weak.audit(layers, typed, silent) == {"fp16": 1, "fp32": 1, "int8": 2, "unknown": 1}


def test_with_dynamic_shapes_the_tactic_tells_the_precision(tmp_path: Path) -> None:
    typed = decided(tmp_path, a="int8", b="fp16", c="fp16")
    unknown = "N/A due to dynamic shapes"
    layers = [
        layer("a", unknown, "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw"),
        layer("b", unknown, "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16"),
        layer("c", unknown),
    ]
    assert weak.audit(layers, typed, silent) == {"fp16": 1, "int8": 1, "unknown": 1}


@pytest.mark.parametrize(("copy", "own"), [(FP16, FP32), (FP32, FP16)])
def test_a_copy_beside_a_layer_is_not_the_layer(tmp_path: Path, copy: str, own: str) -> None:
    layers = [layer("Reformatting CopyNode for Input Tensor 0 to z + a", copy), layer("z + a", own)]
    expected = "fp32" if own == FP32 else "fp16"
    assert weak.audit(layers, decided(tmp_path, a=expected), silent) == {expected: 1}


def test_a_node_that_had_to_stay_in_fp32_and_did_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="Conv node a in fp16"):
        weak.audit([layer("a", FP16)], decided(tmp_path, a="fp32"), silent)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_node_that_is_fused_into_an_int8_layer_is_right(tmp_path: Path, precision: str) -> None:
    events: list[object] = []
    weak.audit([layer("a + b", INT8)], decided(tmp_path, a="int8", b=precision), events.append)
    assert events == []


def test_a_node_that_runs_in_fp32_instead_of_fp16_is_reported(tmp_path: Path) -> None:
    events: list[object] = []
    weak.audit([layer("a", FP32)], decided(tmp_path, a="fp16"), events.append)
    assert isinstance(events[0], Warned)
    assert "Conv node a in fp32" in events[0].message


def test_what_is_fused_with_a_node_that_must_stay_in_fp32_is_built_in_fp32_too(tmp_path: Path) -> None:
    typed = decided(tmp_path, conv="fp16", add="fp32", relu="fp32", other="fp16", q="int8")
    layers = [layer("conv + add + relu", FP16), layer("other", FP16), layer("q", INT8)]
    (changed,) = weak.raised(layers, typed, "TensorRT 8.5.3.1")
    assert (changed.node, changed.precision) == ("conv", "fp32")
    assert changed.reason == "TensorRT 8.5.3.1 fuses it with add and relu, which must stay in FP32"
    mended = weak.with_decisions(typed, (changed,))
    assert [d.precision for d in mended.decisions] == ["fp32", "fp32", "fp32", "fp16", "int8"]
    assert weak.audit([layer("conv + add + relu", FP32), *layers[1:]], mended, silent)["fp32"] == 3


def test_nothing_is_raised_where_every_decision_holds(tmp_path: Path) -> None:
    typed = decided(tmp_path, conv="fp16", add="fp32", q="int8")
    assert weak.raised([layer("conv", FP16), layer("add", FP32), layer("q + add", INT8)], typed, "TensorRT") == ()


def test_a_node_alone_in_a_lowered_layer_has_no_partner_to_raise(tmp_path: Path) -> None:
    typed = decided(tmp_path, add="fp32", conv="fp16")
    assert weak.raised([layer("add", FP16), layer("conv", FP16)], typed, "TensorRT") == ()
