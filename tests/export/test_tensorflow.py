"""TensorFlow and Keras sources: the exported model with its names and layout, and one error for each fault."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from trtopt.errors import DataError, ModelError, UsageError
from trtopt.export import tensorflow
from trtopt.export.request import Request
from trtopt.export.source import identify
from trtopt.graph.file import describe

# The warnings of TensorFlow and Keras are for their own developers, and stay in the child process.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    image, extra = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="extra")
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = keras.layers.BatchNormalization(moving_mean_initializer="random_normal")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(keras.layers.ReLU(6.0)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    features = keras.layers.Concatenate()([x, extra])
    scores = keras.layers.Dense(5, bias_initializer="random_normal")(keras.layers.Dropout(0.5)(features))
    return keras.Model([image, extra], [scores, features])


@pytest.fixture(params=["saved_model", "keras", "h5"])
def route(request: pytest.FixtureRequest, network: keras.Model, tmp_path: Path) -> Request:
    """Return a request for the same network as each of the three kinds of source."""
    path = tmp_path / ("folder" if request.param == "saved_model" else f"net.{request.param}")
    if request.param == "saved_model":
        network.export(path, verbose=False)
    else:
        network.save(path)
    return Request(source=identify(str(path)))


def test_every_kind_of_source_has_the_frameworks_outputs_under_the_same_names(
    route: Request, network: keras.Model, tmp_path: Path
) -> None:
    exported = tensorflow.export(route, tmp_path)
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    feeds = [
        {
            "image": random.normal(size=(batch, 8, 8, 3)).astype(np.float32),
            "extra": random.normal(size=(batch, 4)).astype(np.float32),
        }
        for batch in (1, 3)
    ]
    for feed, framework_outputs in zip(feeds, tensorflow.run(route, feeds), strict=True):
        onnx_outputs = session.run(["output_0", "output_1"], feed)
        expected_outputs = [tensor.numpy() for tensor in network([feed["image"], feed["extra"]], training=False)]
        assert [array.shape[1] for array in expected_outputs] == [5, 12]
        for exported_output, own, expected in zip(onnx_outputs, framework_outputs, expected_outputs, strict=True):
            assert np.abs(own - expected).max() <= 1e-6 * np.abs(expected).max()
            assert np.abs(exported_output - expected).max() <= 1e-4 * np.abs(expected).max()
    model = describe(exported.path)
    assert [(spec.name, spec.shape) for spec in model.inputs] == [
        ("extra", ("batch", 4)),
        ("image", ("image_dim0", 8, 8, 3)),
    ]
    assert [spec.name for spec in model.outputs] == ["output_0", "output_1"]
    assert model.opset == 17
    assert exported.notes == ("input image stays NHWC: [None, 8, 8, 3]",)


def test_node_names_have_no_call_prefixes(network: keras.Model, tmp_path: Path) -> None:
    import onnx

    network.export(tmp_path / "folder", verbose=False)
    path = tensorflow.export(Request(source=identify(str(tmp_path / "folder"))), tmp_path).path
    names = [node.name for node in onnx.load(str(path)).graph.node]
    assert not any("PartitionedCall" in name for name in names)
    assert len(set(names)) == len(names)


class Signatures(tf.Module):
    """Signatures with eleven outputs, with an operator that ONNX does not have, and with a string input."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x"), tf.TensorSpec([None], tf.int32, name="n")]
    )
    def many(self, x: tf.Tensor, n: tf.Tensor) -> dict[str, tf.Tensor]:
        return {f"y_{i}": x * float(i + 1) for i in range(11)}

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2], tf.float32, name="x")])
    def svd(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"s": tf.linalg.svd(x)[0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def words(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"length": tf.strings.length(text)}


@pytest.fixture(scope="module")
def signatures(tmp_path_factory: pytest.TempPathFactory) -> str:
    module, path = Signatures(), tmp_path_factory.mktemp("tf") / "signatures"
    tf.saved_model.save(module, str(path), signatures={"many": module.many, "svd": module.svd, "words": module.words})
    return str(path)


def test_outputs_are_in_numeric_order_and_unused_inputs_are_kept(signatures: str, tmp_path: Path) -> None:
    request = Request(source=identify(signatures), signature="many")
    exported = tensorflow.export(request, tmp_path)
    model = describe(exported.path)
    assert [spec.name for spec in model.outputs] == [f"y_{i}" for i in range(11)]
    assert [(spec.name, spec.dtype) for spec in model.inputs] == [("n", "int32"), ("x", "float32")]
    feed = {"x": np.ones((2, 4), np.float32), "n": np.ones(2, np.int32)}
    assert [array[0, 0] for array in tensorflow.run(request, [feed])[0]] == list(range(1, 12))


def test_a_missing_or_ambiguous_signature_is_rejected_with_the_names_of_all(signatures: str, tmp_path: Path) -> None:
    for name in (None, "absent"):
        with pytest.raises(UsageError, match=r"it has many, svd, words. Choose one with --signature"):
            tensorflow.export(Request(source=identify(signatures), signature=name), tmp_path)


def test_a_saved_model_without_signatures_is_rejected(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"it has none"):
        tensorflow.export(Request(source=identify(str(tmp_path / "none"))), tmp_path)


def test_an_operator_that_onnx_does_not_have_is_named(signatures: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tf2onnx cannot convert .*: ONNX has no operator for TensorFlow's Svd"):
        tensorflow.export(Request(source=identify(signatures), signature="svd"), tmp_path)


def test_string_inputs_are_rejected(signatures: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"input text of .* is a string tensor"):
        tensorflow.export(Request(source=identify(signatures), signature="words"), tmp_path)


@pytest.mark.parametrize("name", ["corrupt.keras", "corrupt.h5", "saved_model.pb"])
def test_corrupt_files_are_rejected(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 not a model")
    text = str(tmp_path if name == "saved_model.pb" else tmp_path / name)
    with pytest.raises(ModelError, match=r"cannot be loaded as a") as caught:
        tensorflow.export(Request(source=identify(text)), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_feed_that_does_not_fit_the_model_is_a_data_error(signatures: str) -> None:
    with pytest.raises(DataError, match=r"cannot be run on x \[1, 3\]"):
        tensorflow.run(Request(source=identify(signatures), signature="many"), [{"x": np.ones((1, 3), np.float32)}])
