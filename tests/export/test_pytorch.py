"""The three kinds of PyTorch source: the exported model with its names and dimensions, and one error for each fault."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from trtopt.errors import DataError, ModelError, TrtoptError, UsageError
from trtopt.export import factory as building
from trtopt.export import pytorch
from trtopt.export.request import Example, Exported, Request
from trtopt.export.source import Source, identify
from trtopt.graph.file import describe
from trtopt.types import ShapeRange

# torch's warnings while it exports are for its own developers, and stay in the child process.
pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])


def example(name: str, *shapes: tuple[int, ...], dtype: str = "float32") -> Example:
    low, opt, high = shapes if len(shapes) == 3 else shapes * 3
    return Example(name=name, dtype=dtype, shape=ShapeRange(name=name, min=low, opt=opt, max=high))


IMAGE = example("image", (1, 3, 8, 8), (4, 3, 8, 8), (9, 3, 8, 8))


def factory(name: str) -> Source:
    return Source(kind="factory", text=f"frameworks:{name}")


def small() -> torch.nn.Module:
    return building.build("frameworks:small", None).eval()


@pytest.fixture
def route(request: pytest.FixtureRequest, tmp_path: Path) -> Request:
    """Return a request for the same network as each of the three kinds of source."""
    if request.param == "factory":
        return Request(source=factory("small"), examples=(IMAGE,))
    path = tmp_path / ("small.pt" if request.param == "torchscript" else "small.pt2")
    if request.param == "torchscript":
        torch.jit.script(small()).save(str(path))
        return Request(source=identify(str(path)), examples=(IMAGE,))
    batch = {"image": {0: torch.export.Dim("b", min=1, max=9)}}
    torch.export.save(torch.export.export(small(), (torch.ones(4, 3, 8, 8),), dynamic_shapes=batch), str(path))
    return Request(source=identify(str(path)))


every_route = pytest.mark.parametrize("route", ["factory", "torchscript", "pt2"], indirect=True)


@every_route
def test_every_kind_of_source_has_the_frameworks_outputs_at_every_batch_size(route: Request, tmp_path: Path) -> None:
    exported = pytorch.export(route, tmp_path)
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    feeds = [{"image": random.normal(size=(batch, 3, 8, 8)).astype(np.float32)} for batch in (1, 4, 9)]
    module = small()
    for feed, framework_outputs in zip(feeds, pytorch.run(route, feeds), strict=True):
        onnx_outputs = session.run(None, feed)
        with torch.no_grad():
            expected_outputs = [tensor.numpy() for tensor in module(torch.from_numpy(feed["image"]))]
        assert len(onnx_outputs) == len(framework_outputs) == len(expected_outputs) == 2
        for exported_output, own, expected in zip(onnx_outputs, framework_outputs, expected_outputs, strict=True):
            np.testing.assert_array_equal(own, expected)
            assert np.abs(exported_output - expected).max() <= 1e-4 * np.abs(expected).max()


@every_route
def test_inputs_keep_their_names_and_the_first_axis_is_the_batch(route: Request, tmp_path: Path) -> None:
    model = describe(pytorch.export(route, tmp_path).path)
    assert [(spec.name, spec.shape) for spec in model.inputs] == [("image", ("batch", 3, 8, 8))]
    assert [spec.name for spec in model.outputs] == ["output_0", "output_1"]
    assert model.outputs[0].shape[-1] == 5
    assert [path.name for path in tmp_path.glob("*.data")] == []


def export(name: str, folder: Path, *examples: Example, weights: Path | None = None) -> Exported:
    return pytorch.export(Request(source=factory(name), examples=examples, weights=weights), folder)


def test_several_inputs_share_the_names_of_dimensions_that_must_be_equal(tmp_path: Path) -> None:
    shapes = (1, 2), (2, 6), (4, 9)
    examples = [example(name, *shapes, dtype="int64") for name in ("mask", "ids")]
    model = describe(export("masked", tmp_path, *examples).path)
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.inputs] == [
        ("ids", "int64", ("batch", "ids_dim1")),
        ("mask", "int64", ("batch", "ids_dim1")),
    ]
    assert [(spec.name, spec.shape) for spec in model.outputs] == [("pooled", ("batch", 4))]


def test_a_fixed_shape_stays_fixed(tmp_path: Path) -> None:
    model = describe(export("small", tmp_path, example("image", (2, 3, 8, 8))).path)
    assert model.inputs[0].shape == (2, 3, 8, 8)


def test_a_dynamic_dimension_that_the_module_fixes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"dimension 0 of input x cannot be dynamic: the export fixed it at 4"):
        export("fixed", tmp_path, example("x", (1, 6), (4, 6), (8, 6)))


def test_a_module_in_training_mode_is_switched_to_eval_with_a_note(tmp_path: Path) -> None:
    assert any("training mode" in note for note in export("small", tmp_path, IMAGE).notes)
    assert not any("training mode" in note for note in export("evaluated", tmp_path, IMAGE).notes)


def test_a_program_exported_in_training_mode_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "training.pt2"
    torch.export.save(torch.export.export(small().train(), (torch.ones(4, 3, 8, 8),)), str(path))
    with pytest.raises(ModelError, match=r"training mode: its (batch_norm|dropout).* is active"):
        pytorch.export(Request(source=identify(str(path))), tmp_path)


def test_the_unnamed_example_is_the_first_input(tmp_path: Path) -> None:
    exported = export("small", tmp_path, example("", (2, 3, 8, 8)))
    assert describe(exported.path).inputs[0].name == "image"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_loaded_into_the_module(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(99)
    state = import_module("frameworks").Small().state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    feed = {"image": np.ones((1, 3, 8, 8), np.float32)}
    plain, loaded = (
        pytorch.run(Request(source=factory("small"), weights=weights), [feed])[0][0] for weights in (None, path)
    )
    module = building.build("frameworks:small", path)
    assert torch.equal(module.conv.weight, state["conv.weight"])
    assert not np.allclose(plain, loaded)


class Sneaky:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("/nonexistent-by-test", "w"))  # type: ignore[return-value]


def _weights(fault: str, folder: Path) -> Path:
    path = folder / "weights.pt"
    state = small().state_dict()
    match fault:
        case "pickle":
            torch.save({"a": Sneaky()}, path)
        case "module":
            torch.save(small(), path)
        case "truncated":
            torch.save(state, path)
            path.write_bytes(path.read_bytes()[:1000])
        case "list":
            torch.save([torch.ones(1)], path)
        case "names":
            torch.save({**{key: state[key] for key in list(state)[1:]}, "extra": torch.ones(1)}, path)
        case "shapes":
            torch.save({**state, "head.bias": torch.ones(6)}, path)
    return path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("pickle", "contains more than weights: unpickling it could run code"),
        ("module", "contains more than weights"),
        ("truncated", "cannot be read"),
        ("list", "is not a state_dict"),
        ("names", "it lacks conv.weight; the module has no extra"),
        ("shapes", "size mismatch for head.bias"),
        ("missing", "does not exist"),
    ],
)
def test_wrong_weights_are_rejected(fault: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        export("small", tmp_path, IMAGE, weights=_weights(fault, tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frameworks:failing", "failed: ValueError: no such size: 7"),
        ("frameworks:nothing", "did not return a torch.nn.Module: it returned str"),
        ("frameworks:NOT_A_FUNCTION", "NOT_A_FUNCTION is not a function"),
        ("frameworks:absent", "frameworks has no absent. It has .*small"),
        ("no_such_package.models:make", "module no_such_package was not found"),
    ],
)
def test_a_wrong_factory_is_rejected(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        pytorch.export(Request(source=Source(kind="factory", text=text), examples=(IMAGE,)), tmp_path)


def test_an_unknown_input_is_rejected_with_the_names_of_the_inputs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no input photo. Its inputs are image"):
        export("small", tmp_path, example("photo", (1, 3, 8, 8)))


def test_the_names_of_the_inputs_keep_their_case(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Its inputs are pixelValues"):
        export("camel_case", tmp_path, example("photo", (1, 3, 8, 8)))


def test_without_a_shape_the_inputs_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"its inputs are image. Add --shape image="):
        export("small", tmp_path)


def test_an_example_of_the_wrong_shape_is_an_error_that_names_the_flags(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"torch.export cannot export frameworks:small: .*Check --shape"):
        export("small", tmp_path, example("image", (1, 4, 8, 8)))


@pytest.mark.parametrize("size", [0, 200, 2000])
def test_a_truncated_archive_is_rejected(size: int, tmp_path: Path) -> None:
    path = tmp_path / "small.pt2"
    torch.export.save(torch.export.export(small(), (torch.ones(4, 3, 8, 8),)), str(path))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"small.pt2 cannot be loaded as a torch.export archive"):
        pytorch.export(Request(source=identify(str(path))), tmp_path)


def test_a_feed_that_does_not_fit_the_module_is_a_data_error() -> None:
    request = Request(source=factory("small"), examples=(IMAGE,))
    with pytest.raises(DataError, match=r"cannot be run on image \[1, 4, 8, 8\]"):
        pytorch.run(request, [{"image": np.ones((1, 4, 8, 8), np.float32)}])


def test_corrupt_torchscript_is_a_trtopt_error(tmp_path: Path) -> None:
    script = tmp_path / "corrupt.pt"
    torch.jit.script(small()).save(str(script))
    content = script.read_bytes()
    middle = len(content) // 2
    script.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(TrtoptError):
        pytorch.export(Request(source=Source(kind="torchscript", text=str(script)), examples=()), tmp_path)


def test_a_buffer_named_like_a_value_of_the_exporter_is_no_obstacle(tmp_path: Path) -> None:
    request = Request(source=factory("indexed"), examples=(example("x", (1, 2, 4, 4), (3, 2, 4, 4), (8, 2, 4, 4)),))
    exported = pytorch.export(request, tmp_path)
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((5, 2, 4, 4), np.float32)}
    np.testing.assert_array_equal(session.run(None, feed)[0], pytorch.run(request, [feed])[0][0])
