"""Nodes that a 16-bit type spoils, measured on samples, or recognized by the usual patterns without samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support import DIGITS, EVAL

from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import open_runner
from trtopt.events import silent
from trtopt.graph.file import describe, load_ir
from trtopt.graph.prepare import infer_shapes, save
from trtopt.precision import Request, formats, precision
from trtopt.precision.passes.blocks import grown, measuring, single_nodes
from trtopt.run import Run
from trtopt.stages.blocks import spoiled
from trtopt.store import open_store

Parse = Callable[..., ir.Model]

COUNT = 12

NETWORKS = {
    "rotary embedding": (
        """(float[1, 16, 32] x, int64[1, 16] position) => (float[1, 16, 32] y) <float[16] frequencies = {FREQUENCIES}> {
            real = Cast <to = 1> (position)
            axis = Constant <value_ints = [-1]> ()
            column = Unsqueeze (real, axis)
            angle = Mul (column, frequencies)
            cosine = Cos (angle)
            sine = Sin (angle)
            table = Concat <axis = -1> (cosine, sine)
            product = MatMul (x, w)
            turned = Mul (product, table)
            y = MatMul (turned, v)
        }""",
        {"angle", "cosine", "sine"},
    ),
    "positions in one Einsum": (
        """(float[1, 16, 32] x, int64[1, 16] position) => (float[1, 16, 32] y) <float[16] frequencies = {FREQUENCIES}> {
            real = Cast <to = 1> (position)
            angle = Einsum <equation = "bi,j->bij"> (real, frequencies)
            cosine = Cos (angle)
            sine = Sin (angle)
            table = Concat <axis = -1> (cosine, sine)
            product = MatMul (x, w)
            turned = Mul (product, table)
            y = MatMul (turned, v)
        }""",
        {"angle", "cosine", "sine"},
    ),
    "variance as a difference": (
        """(float[1, 16, 32] x) => (float[1, 16, 32] y) <float thirty = {30.0}> {
            small = MatMul (x, w)
            large = Add (small, thirty)
            axis = Constant <value_ints = [-1]> ()
            mean = ReduceMean (large, axis)
            square = Mul (large, large)
            mean_of_squares = ReduceMean (square, axis)
            squared_mean = Mul (mean, mean)
            variance = Sub (mean_of_squares, squared_mean)
            deviation = Sqrt (variance)
            centered = Sub (large, mean)
            normal = Div (centered, deviation)
            y = MatMul (normal, v)
        }""",
        {"mean", "square", "mean_of_squares", "squared_mean", "variance"},
    ),
    "a feed-forward block": (
        """(float[1, 16, 32] x) => (float[1, 16, 32] y) {
            wide = MatMul (x, w)
            active = Relu (wide)
            narrow = MatMul (active, v)
            sum = Add (narrow, x)
            weights = Softmax <axis = -1> (sum)
            y = MatMul (weights, w)
        }""",
        set(),
    ),
}


FREQUENCIES = ", ".join(f"{10000.0 ** (-i / 16):.9f}" for i in range(16))


@pytest.fixture(params=list(NETWORKS))
def network(request: pytest.FixtureRequest, parse: Parse) -> tuple[ir.Model, set[str]]:
    """Return a network, and the nodes that FP16 spoils."""
    body, nodes = NETWORKS[request.param]
    weights = {name: (32, 32) for name in "wv" if f"{name})" in body}
    return parse(body.replace("FREQUENCIES", FREQUENCIES), weights), nodes


def samples(model: ir.Model) -> Dataset:
    """Return samples with positions up to 4000."""
    rng = np.random.default_rng(5)

    def load(_: int) -> dict[str, np.ndarray]:
        feed: dict[str, np.ndarray] = {"x": rng.normal(size=(1, 16, 32)).astype(np.float32)}
        if len(model.graph.inputs) > 1:
            feed["position"] = rng.integers(0, 4000) + np.arange(16)[None]
        return feed

    return Dataset(source="here", digest="", ids=tuple(map(str, range(COUNT))), load=load, batched=True)


def measured(model: ir.Model, half: str, tmp_path: Path, data: Dataset | None = None) -> dict[str, str]:
    save(model, tmp_path / "fp32.onnx")
    with open_store(tmp_path / "run", silent) as store:
        context = Run(store=store, emit=silent, device="cpu")
        data = data or samples(model)
        return spoiled(context, describe(tmp_path / "fp32.onnx"), data, formats(16)[half])


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_measures_what_the_type_spoils(half: str, network: tuple[ir.Model, set[str]], tmp_path: Path) -> None:
    model, nodes = network
    found = measured(model, half, tmp_path)
    assert set(found) >= nodes
    assert bool(found) == bool(nodes)
    assert not [node.name for node in model.graph if node.op_type == "MatMul" and node.name in found]


def test_the_reason_names_what_suffers(parse: Parse, tmp_path: Path) -> None:
    body, _ = NETWORKS["variance as a difference"]
    found = measured(parse(body, {"w": (32, 32), "v": (32, 32)}), "fp16", tmp_path)
    assert "dB SQNR if its inputs are FP16" in found["variance"]
    assert found["mean_of_squares"] == "computes the inputs of variance, which rounding spoils"


@pytest.mark.parametrize("samples_given", [True, False], ids=["measured", "by pattern"])
def test_the_outputs_stay_close_to_fp32(
    samples_given: bool, network: tuple[ir.Model, set[str]], tmp_path: Path
) -> None:
    model, _ = network
    found = measured(model, "fp16", tmp_path)
    typed = model.clone()
    precision("fp16").apply(typed, Request(spoiled=found if samples_given else None))
    save(typed, tmp_path / "typed.onnx")
    data, signal, error = samples(model), 0.0, 0.0
    exact, rounded = (open_runner(tmp_path / name).run for name in ("fp32.onnx", "typed.onnx"))
    for index in range(COUNT):
        feed = data.load(index)
        reference = exact(feed)["y"]
        signal += np.square(reference).sum()
        error += np.square(rounded(feed)["y"] - reference).sum()
    assert 10 * np.log10(signal / error) > (45 if samples_given else 40)


def tiny_powers() -> Dataset:
    """Return samples whose squares are subnormal in FP16."""
    rng = np.random.default_rng(5)

    def load(_: int) -> dict[str, np.ndarray]:
        return {"x": rng.normal(0, 0.003, (1, 16, 32)).astype(np.float32)}

    return Dataset(source="here", digest="", ids=tuple(map(str, range(COUNT))), load=load, batched=True)


def test_a_layer_whose_result_is_spoiled_is_kept(parse: Parse, tmp_path: Path) -> None:
    """A logarithm magnifies the rounding of small powers, which a bank of filters adds up."""
    model = parse(
        """(float[1, 16, 32] x) => (float[1, 16, 32] y) <float least = {1e-10}> {
            power = Mul (x, x)
            bands = MatMul (power, w)
            positive = Abs (bands)
            guarded = Add (positive, least)
            level = Log (guarded)
            y = MatMul (level, v)
        }""",
        {"w": (32, 32), "v": (32, 32)},
    )
    found = measured(model, "fp16", tmp_path, tiny_powers())
    assert {"level", "guarded", "positive", "bands"} <= set(found)
    assert "y" not in found


INDICES = {
    "positions": ("scaled = Mul (x, many) where = Floor (scaled)", {"scaled", "where"}),
    "rows of 7": ("scaled = Mul (x, many) rest = Mod <fmod = 1> (scaled, seven) whole = Sub (scaled, rest) "
                  "where = Div (whole, seven)", {"rest", "whole", "where", "index"}),
    "buckets": ("size = Abs (x) level = Log (size) scaled = Mul (level, many) where = Floor (scaled)",
                {"level", "scaled", "where"}),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "kept"), INDICES.values(), ids=INDICES)
def test_indices_that_are_computed_from_numbers_stay_exact(
    lines: str, kept: set[str], parse: Parse, tmp_path: Path
) -> None:
    model = parse(
        "(float[1, 16, 32] x) => (float[1, 16, 32] y, int64[1, 16, 32] index) "
        "<float many = {10000.0}, float seven = {7.0}>"
        f"{{ {lines} index = Cast <to = 7> (where) y = MatMul (x, w) }}",
        {"w": (32, 32)},
    )
    found = measured(model, "fp16", tmp_path)
    assert set(found) >= kept
    assert "y" not in found
    assert "of its values change if its inputs are FP16" in " ".join(found.values())


def test_a_threshold_behind_a_layer_does_not_keep_the_layer(parse: Parse, tmp_path: Path) -> None:
    model = parse(
        """(float[1, 16, 32] x) => (int64[1, 16, 32] y) {
            wide = MatMul (x, w) where = Round (wide) y = Cast <to = 7> (where) }""",
        {"w": (32, 32)},
    )
    assert "wide" not in measured(model, "fp16", tmp_path)


def test_a_block_of_too_many_nodes_is_not_kept(parse: Parse) -> None:
    lines = [f"s{i + 1} = Add (s{i}, s{i // 2})" for i in range(60)]
    model = parse(f"(float[4] s0) => (float[4] s60) {{ {' '.join(lines)} }}")
    assert grown(model, "s60", 2) is not None
    assert grown(model, "s60", 60) is None


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_measurement_needs_no_simulation_of_16_bits(tmp_path: Path, name: str) -> None:
    graph = load_ir(DIGITS)
    infer_shapes(graph)
    save(measuring(graph, formats(16)[name], single_nodes(graph)), tmp_path / "model.onnx")
    with np.load(EVAL) as samples:
        feed = {"input": samples["input"][:1]}
    plain, simulated = (open_runner(tmp_path / "model.onnx", simulates=each).run(feed) for each in (False, True))
    assert (plain["trtopt/error"] > 0).sum() > 10
    for output, array in plain.items():
        np.testing.assert_array_equal(array, simulated[output])
