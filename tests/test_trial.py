"""Trials of quantized networks on calibration samples, which decide equalization, bias correction and method."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from trtopt.calibrate import AUTO
from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import open_runner
from trtopt.errors import CalibrationError, ModelError, OutOfMemoryError
from trtopt.events import Warned, silent
from trtopt.graph.file import describe, load_ir
from trtopt.graph.prepare import save
from trtopt.precision import Request, precision
from trtopt.run import Run
from trtopt.stages import calibrate, equalize, observe, set_precision
from trtopt.stages.calibrate import Scales
from trtopt.stages.target import Target
from trtopt.stages.trial import output_error, rough, scratch
from trtopt.store import open_store
from trtopt.types import CalibrationTable, OnnxModel

SPREAD = np.geomspace(0.05, 20, 16, dtype=np.float32)


def network(
    folder: Path, body: str = "{ h = HardSwish(x) y = MatMul(h, w) }", outputs: str = "float[n, 24] y"
) -> OnnxModel:
    text = f'<ir_version: 10, opset_import: ["": 19]> g (float[n, 16] x) => ({outputs}) {body}'
    proto = onnx.parser.parse_model(text)
    # Weights compensate for the spread of the channels, so that all of them matter equally.
    weight = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32) / SPREAD[:, None]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    for node in proto.graph.node:
        node.name = node.output[0]
    proto = onnx.shape_inference.infer_shapes(proto)
    onnx.save(proto, folder / "model.onnx")
    return describe(folder / "model.onnx")


def coarser(request: Request, times: float) -> Request:
    assert request.table is not None
    scales = {name: scale * times for name, scale in request.table.scales.items()}
    return replace(request, table=CalibrationTable(method="mse", scales=scales))


def dataset(spread: np.ndarray | float, count: int = 40) -> Dataset:
    random = np.random.default_rng(1)
    values = [random.normal(size=(32, 16)).astype(np.float32) * np.float32(spread) for _ in range(count)]
    return Dataset(
        source="d",
        digest=f"{spread}",
        ids=tuple(f"d[{i}]" for i in range(count)),
        load=lambda i: {"x": values[i]},
        batched=True,
    )


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Run]:
    with open_store(tmp_path / "run", silent) as store:
        yield Run(store=store, emit=silent, device="cpu")


def test_the_error_is_that_of_the_quantized_outputs(context: Run, tmp_path: Path) -> None:
    model, data = network(tmp_path), dataset(1.0)
    request = rough(context, model, data, "int8")
    error = output_error(context, model, data, "int8")
    fine = error(model, request)
    assert 0 < fine < 0.01
    assert error(model) == fine  # with its own default request
    assert error(model, coarser(request, 20)) > 20 * fine


def test_a_sample_in_which_a_tensor_is_empty_does_not_count_in_its_means(context: Run, tmp_path: Path) -> None:
    model, values = network(tmp_path), (np.full((4, 16), 3.0, np.float32), np.zeros((0, 16), np.float32))
    data = replace(dataset(1.0, count=2), load=lambda i: {"x": values[i]})
    assert rough(context, model, data, "int8").means["h", -1].tolist() == [3.0] * 16


def test_channels_that_differ_are_equalized_and_the_outputs_stay(context: Run, tmp_path: Path) -> None:
    model, data = network(tmp_path), dataset(SPREAD)
    equalized = equalize(context, model, data, "int8")
    assert equalized.notes[0] == "1 activation equalized, 1 with an inserted Mul"
    assert equalized.notes[1].endswith("dB SQNR on 16 samples")
    feed = data.load(0)
    np.testing.assert_allclose(
        open_runner(equalized.path).run(feed)["y"], open_runner(model.path).run(feed)["y"], rtol=1e-4, atol=1e-4
    )
    error = output_error(context, model, data, "int8")
    assert (
        error(equalized, rough(context, equalized, data, "int8"))
        < error(model, rough(context, model, data, "int8")) / 10
    )


def test_an_equalization_without_gain_is_not_kept(
    context: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No network is certain to become worse, so the result of the trial is replaced.
    verdict = lambda candidate, *_: float(bool(candidate.notes))  # noqa: E731
    monkeypatch.setattr(sys.modules["trtopt.stages.equalize"], "output_error", lambda *_: verdict)
    equalized = equalize(context, network(tmp_path), dataset(SPREAD), "int8")
    assert equalized.notes == ("not equalized: no significant gain in output SQNR",)
    assert [node.op_type for node in onnx.load(equalized.path).graph.node] == ["HardSwish", "MatMul"]


@pytest.mark.parametrize("body", ["{ y = MatMul(x, w) }", "{ h = Clip(x) y = MatMul(h, w) }"])
def test_a_network_with_nothing_to_equalize_is_copied(context: Run, tmp_path: Path, body: str) -> None:
    equalized = equalize(context, network(tmp_path, body), dataset(SPREAD), "int8")
    assert equalized.notes == ()
    assert [node.op_type for node in onnx.load(equalized.path).graph.node][-1] == "MatMul"


def test_channels_of_similar_range_are_unchanged(context: Run, tmp_path: Path) -> None:
    model = network(tmp_path, "{ h = Sigmoid(x) y = MatMul(h, w) }")
    proto = onnx.load(model.path)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.eye(16, 24, dtype=np.float32), "w"))
    onnx.save(proto, model.path)
    equalized = equalize(context, describe(model.path), dataset(1.0), "int8")
    assert equalized.notes == ()
    assert [node.op_type for node in onnx.load(equalized.path).graph.node] == ["Sigmoid", "MatMul"]


BIASED = "{ h = HardSwish(x) z = MatMul(h, w) y = Add(z, b) }"
TARGET = Target(precision="int8", rest="fp32", bias_correction=True)


def with_bias(folder: Path) -> OnnxModel:
    model = network(folder, BIASED)
    proto = onnx.load(model.path)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(24, np.float32), "b"))
    onnx.save(onnx.shape_inference.infer_shapes(proto), model.path)
    return describe(model.path)


def backgrounds(count: int = 40) -> Dataset:
    """Return samples that are nearly constant, like the paper around a line of text, with a few large values."""
    random = np.random.default_rng(2)
    paper = random.uniform(3, 4, size=16).astype(np.float32)
    ink = [np.where(random.random((32, 16)) < 0.02, 30 * random.random((32, 16)), paper) for _ in range(count)]
    return replace(dataset(1.0), load=lambda i: {"x": ink[i].astype(np.float32)}, digest="paper")


def test_biases_correct_the_rounding_of_nearly_constant_inputs(context: Run, tmp_path: Path) -> None:
    model, data = with_bias(tmp_path), backgrounds()
    table = rough(context, model, data, "int8").table
    seen = observe(context, model, data, TARGET, table)
    assert seen.correction == "weights and inputs"
    assert seen.gain > 3
    typed = set_precision(context, model, TARGET, table, seen)
    assert any(decision.reason.endswith("quantization error of the weight and input") for decision in typed.decisions)
    feed = data.load(3)
    wanted, right = (open_runner(path).run(feed)["y"] for path in (model.path, typed.onnx.path))
    plain = set_precision(context, model, TARGET, table, replace(seen, correction=""))
    left = open_runner(plain.onnx.path).run(feed)["y"]
    assert np.square(right - wanted).sum() < np.square(left - wanted).sum() / 2


def test_biases_are_unchanged_if_correcting_them_has_no_gain(
    context: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As above, the result of the trial is replaced.
    monkeypatch.setattr(
        sys.modules["trtopt.stages.observe"], "output_error", lambda *_: lambda _, request: float(bool(request.means))
    )
    model, data = with_bias(tmp_path), backgrounds()
    table = rough(context, model, data, "int8").table
    seen = observe(context, model, data, TARGET, table)
    assert (seen.correction, seen.gain) == ("", 0.0)
    assert context.store.outcomes[-1].summary.endswith("no bias correction: no gain in output SQNR")
    typed = set_precision(context, model, TARGET, table, seen)
    assert not any("its bias" in decision.reason for decision in typed.decisions)


@pytest.mark.parametrize(("errors", "best", "gain"), [((1.0, np.inf, 0.1), "weights and inputs", 10.0),
                                                      ((np.inf, 0.5, np.inf), "", 0.0),
                                                      ((np.inf, np.inf, np.inf), "", 0.0)])  # fmt: skip
def test_a_correction_that_cannot_be_tried_is_not_chosen(
    context: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: tuple[float, ...], best: str, gain: float
) -> None:
    found = iter(errors)
    monkeypatch.setattr(sys.modules["trtopt.stages.observe"], "output_error", lambda *_: lambda *_: next(found))
    model, data = with_bias(tmp_path), backgrounds()
    seen = observe(context, model, data, TARGET, rough(context, model, data, "int8").table)
    assert (seen.correction, seen.gain) == (best, pytest.approx(gain))


def test_a_trial_that_cannot_run_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(context: Run, name: str) -> AbstractContextManager[Path]:
        if name == "trial.onnx":
            raise ModelError("onnxruntime cannot load trial.onnx", why="no kernel for it")
        return scratch(context, name)

    events: list[object] = []
    monkeypatch.setattr("trtopt.stages.trial.scratch", refuse)
    model, data = with_bias(tmp_path), dataset(SPREAD)
    with open_store(tmp_path / "run", silent) as store:
        context = Run(store=store, emit=events.append, device="cpu")
        equalized = equalize(context, model, data, "int8")
        table = calibrate(context, equalized, data, Scales(method=AUTO, precision="int8"))
        seen = observe(context, equalized, data, TARGET, table)
    assert equalized.notes == ("not equalized: the quantized network could not be evaluated",)
    assert (table.method, table.tried, seen.correction) == ("mse", {}, "")
    messages = [event.message for event in events if isinstance(event, Warned)]
    assert len(messages) == 3  # one per stage, however many candidates it tried
    assert all("no kernel for it" in message for message in messages)


@pytest.mark.parametrize("last", ["Reciprocal(z)", "Div(z, z)"])  # 1 / 0 and 0 / 0
def test_outputs_that_are_not_finite_have_an_infinite_error(context: Run, tmp_path: Path, last: str) -> None:
    model, data = network(tmp_path, f"{{ h = HardSwish(x) z = MatMul(h, w) y = {last} }}"), dataset(1.0)
    request = rough(context, model, data, "int8")
    error = output_error(context, model, data, "int8")
    assert np.isfinite(error(model, request))
    assert error(model, coarser(request, 1e6)) == np.inf


def test_outputs_with_infinities_in_fp32_are_not_counted(context: Run, tmp_path: Path) -> None:
    body = "{ h = HardSwish(x) y = MatMul(h, w) s = Relu(x) n = Log(s) }"  # half of n is minus infinity
    model, data = network(tmp_path, body, "float[n, 24] y, float[n, 16] n"), dataset(1.0)
    (tmp_path / "alone").mkdir()
    alone = network(tmp_path / "alone", "{ h = HardSwish(x) y = MatMul(h, w) }")
    error = output_error(context, model, data, "int8")(model)
    assert error == pytest.approx(
        output_error(context, alone, data, "int8")(alone) / 2
    )  # the mean of its error and of 0


def test_outputs_that_no_node_computes_have_no_error(context: Run, tmp_path: Path) -> None:
    model = network(
        tmp_path, "{ h = HardSwish(x) y = MatMul(h, w) }", "float[n, 24] y, float[16, 24] w, float[n, 16] x"
    )
    (tmp_path / "alone").mkdir()
    alone = network(tmp_path / "alone", "{ h = HardSwish(x) y = MatMul(h, w) }")
    error = output_error(context, model, dataset(1.0), "int8")(model)
    assert error == pytest.approx(output_error(context, alone, dataset(1.0), "int8")(alone) / 3)


def test_a_tensor_that_is_nan_needs_a_scale_from_a_given_table(context: Run, tmp_path: Path) -> None:
    body = "{ h = Sqrt(x) z = MatMul(h, w) n = IsNaN(z) o = Sub(w, w) s = ReduceMax<keepdims=0>(o) y = Where(n, s, z) }"
    model, data = network(tmp_path, body), dataset(1.0)
    with pytest.raises(CalibrationError, match="tensor 'h' is NaN"):
        rough(context, model, data, "int8")
    given = rough(context, model, data, "int8", CalibrationTable(method="mse", scales={"h": 0.1}))
    assert np.isfinite(output_error(context, model, data, "int8")(model, given))


def test_the_error_is_infinite_if_all_outputs_are_nan_in_fp32(context: Run, tmp_path: Path) -> None:
    model = network(tmp_path, "{ h = HardSwish(x) z = MatMul(h, w) y = Sqrt(z) }")
    assert output_error(context, model, dataset(1.0), "int8")(model) == np.inf


def test_out_of_memory_in_a_trial_ends_the_stage_and_leaves_nothing(
    context: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(context: Run, name: str) -> AbstractContextManager[Path]:
        if name == "trial.onnx":
            raise OutOfMemoryError("the memory of the GPU is exhausted")
        return scratch(context, name)

    model, data = network(tmp_path), dataset(1.0)
    monkeypatch.setattr("trtopt.stages.trial.scratch", exhausted)
    with pytest.raises(OutOfMemoryError):
        calibrate(context, model, data, Scales(method=AUTO, precision="int8"))
    monkeypatch.setattr("trtopt.stages.trial.scratch", scratch)
    assert calibrate(context, model, data, Scales(method=AUTO, precision="int8")).tried


def test_methods_are_tried_in_the_requested_precision(context: Run, tmp_path: Path) -> None:
    model, data = network(tmp_path), dataset(1.0)
    int8, fp8 = (calibrate(context, model, data, Scales(method=AUTO, precision=kind)) for kind in ("int8", "fp8"))
    assert (int8.precision, fp8.precision) == ("int8", "fp8")
    assert max(fp8.tried.values()) < max(int8.tried.values())  # INT8 has 8 bits for evenly spread values, FP8 only 4
    for name in fp8.tried:
        error = output_error(context, model, data, "fp8")
        of_it = replace(
            rough(context, model, data, "fp8"),
            table=calibrate(context, model, data, Scales(method=name, precision="fp8")),
        )
        assert fp8.tried[name] == pytest.approx(-10 * np.log10(error(model, of_it)))


def test_rough_scales_are_chosen_by_the_error_of_the_precision(context: Run, tmp_path: Path) -> None:
    model, data = network(tmp_path), dataset(SPREAD)  # heavy tails: FP8 represents them without clipping
    tables = [rough(context, model, data, kind).table for kind in ("int8", "fp8")]
    int8, fp8 = (table.scales["h"] for table in tables if table is not None)
    assert fp8 > int8


def test_the_error_of_indices_is_the_fraction_that_differs(context: Run, tmp_path: Path) -> None:
    data, body = dataset(SPREAD), "{ h = HardSwish(x) z = MatMul(h, w) y = ArgMax<axis=1>(z) }"
    model = network(tmp_path, body, "int64[n, 1] y")
    request = rough(context, model, data, "int8")
    share = output_error(context, model, data, "int8")(model, request)
    typed = load_ir(model.path)
    precision("int8").apply(typed, request)
    save(typed, tmp_path / "typed.onnx")
    feeds = [data.load(int(i)) for i in np.linspace(0, 39, 16).astype(int)]
    first, second = (
        [open_runner(path).run(feed)["y"] for feed in feeds] for path in (model.path, tmp_path / "typed.onnx")
    )
    assert 0 < share == np.mean(np.array(first) != np.array(second)) < 1


def test_auto_takes_the_method_with_the_highest_output_sqnr(context: Run, tmp_path: Path) -> None:
    model, data = network(tmp_path), dataset(1.0)
    table = calibrate(context, model, data, Scales(method=AUTO, precision="int8"))
    assert table.method == max(table.tried, key=table.tried.__getitem__)
    assert table.scales == calibrate(context, model, data, Scales(method=table.method, precision="int8")).scales
    error, request = output_error(context, model, data, "int8"), rough(context, model, data, "int8")
    for name, decibels in table.tried.items():
        of_it = replace(request, table=calibrate(context, model, data, Scales(method=name, precision="int8")))
        assert decibels == pytest.approx(-10 * np.log10(error(model, of_it)))


def test_outputs_of_other_shapes_are_entirely_wrong(context: Run, tmp_path: Path) -> None:
    model, data = (
        network(tmp_path, "{ h = HardSwish(x) z = MatMul(h, w) n = NonZero(z) y = Cast<to=1>(n) }"),
        dataset(1.0),
    )
    request = rough(context, model, data, "int8")
    assert output_error(context, model, data, "int8")(model, coarser(request, 200)) == 1.0


def test_without_bias_correction_or_a_table_nothing_is_tried(context: Run, tmp_path: Path) -> None:
    model, data = with_bias(tmp_path), backgrounds()
    table = rough(context, model, data, "int8").table
    for target, given in ((replace(TARGET, bias_correction=False), table), (replace(TARGET, precision="fp16"), None)):
        seen = observe(context, model, data, target, given)
        assert seen.correction == ""
        assert "bias correction" not in context.store.outcomes[-1].summary


def test_the_stages_that_try_share_one_pass_of_fp32(context: Run, tmp_path: Path) -> None:
    model, data = with_bias(tmp_path), dataset(SPREAD)
    equalized = equalize(context, model, data, "int8")
    table = calibrate(context, equalized, data, Scales(method=AUTO, precision="int8"))
    observe(context, equalized, data, TARGET, table)
    runs = {outcome.name: outcome.runs for outcome in context.store.outcomes}
    assert runs == {
        "equalize": 16 * (1 + 1 + 2 * 2),  # FP32, its trial, and two ways to equalize: statistics and a trial
        "calibrate": 40 + 16 * 4,  # all samples, and a trial of each method
        "observe": 16 * (1 + 3),  # FP32, and a trial of each correction
    }


def test_nothing_temporary_is_left(context: Run, tmp_path: Path) -> None:
    equalize(context, network(tmp_path), dataset(SPREAD), "int8")
    assert [path.name for path in context.store.root.rglob("*") if path.name.startswith(".tmp")] == []


def test_errors_do_not_name_a_temporary_file(context: Run) -> None:
    def fail() -> None:
        with scratch(context, "tapped.onnx") as path:
            path.write_bytes(b"not a model")
            open_runner(path)

    with pytest.raises(ModelError) as error:
        fail()
    assert "tapped.onnx" not in str(error.value)
    assert str(error.value).startswith("a rewritten copy of the model is not an ONNX model")
