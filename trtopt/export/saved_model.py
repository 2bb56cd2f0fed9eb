"""SavedModels and Keras files, opened with one signature.

Touches: reads the source; writes a Keras model as a SavedModel into the folder that it is given.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from trtopt.errors import ModelError, UsageError
from trtopt.export.request import Request
from trtopt.export.text import brief
from trtopt.requires import require

_DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class Opened:
    """A signature that was loaded: its function, input specs by name, and output names in order.

    `keep` is the loaded SavedModel: TensorFlow deletes its variables when it goes out of scope.
    """

    function: Any
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    keep: Any


def tensorflow() -> Any:
    """Import TensorFlow, with Keras on it as the backend and without its warnings."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    tf = require("tensorflow")
    tf.get_logger().setLevel("ERROR")
    return tf


def load_keras(text: str) -> Any:
    """Return the Keras model in a file; raise ModelError if it cannot be loaded."""
    keras = require("keras")
    try:
        model = keras.models.load_model(text, compile=False)
    except Exception as error:  # any layer's own code may fail
        raise ModelError(
            f"{text} cannot be loaded as a Keras model",
            why=brief(error),
            fix="Save it again with Keras 3, without Lambda layers or custom classes, or give a SavedModel",
        ) from error
    if not getattr(model, "inputs", None):
        raise ModelError(f"{text} has no inputs", why="it was never built", fix="Call it once on data before saving it")
    return model


def save(model: Any, folder: str, text: str) -> None:
    """Write a Keras model as a SavedModel; raise ModelError if it cannot be written."""
    try:
        model.export(folder, verbose=False)
    except Exception as error:  # any layer's own code may fail
        raise ModelError(f"{text} cannot be exported as a SavedModel", why=brief(error)) from error


def open_signature(folder: str, request: Request) -> Opened:
    """Load a SavedModel and return the requested signature, or the only one it has.

    Raises:
        ModelError: the SavedModel cannot be loaded.
        UsageError: it does not have the signature.
    """
    tf = tensorflow()
    try:
        loaded = tf.saved_model.load(folder)
        signatures = dict(loaded.signatures)
    except Exception as error:
        raise ModelError(
            f"{request.source.text} cannot be loaded as a SavedModel", why=brief(error), fix="Save it again"
        ) from error
    name = request.signature or _DEFAULT_SIGNATURE
    if request.signature is None and name not in signatures and len(signatures) == 1:
        name = next(iter(signatures))
    if name not in signatures:
        available = f"it has {', '.join(sorted(signatures))}" if signatures else "it has none"
        fix = "Choose one with --signature" if signatures else "Save it with signatures=, or with Keras' model.export"
        raise UsageError(f"{request.source.text} has no signature {name}", why=available, fix=fix)
    function = signatures[name]
    # The file stores inputs and outputs as unordered maps: sort them, so that every export has the same order.
    return Opened(
        function,
        dict(sorted(function.structured_input_signature[1].items())),
        tuple(sorted(function.structured_outputs, key=_output_order)),
        loaded,
    )


def _output_order(output: str) -> tuple[str, int]:
    """Return a sort key that puts output_2 before output_10: Keras numbers its outputs."""
    stem, number = re.fullmatch(r"(.*?)(\d*)", output, re.DOTALL).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)


def check_inputs(tf: Any, opened: Opened, text: str) -> None:
    """Raise ModelError if an input is of a type or shape that TensorRT does not support."""
    for key, spec in opened.inputs.items():
        if spec.dtype == tf.string:
            raise ModelError(
                f"input {key} of {text} is a string tensor",
                why="TensorRT supports only numbers",
                fix="Choose a signature that takes numbers (--signature), or remove the preprocessing from the model",
            )
        if spec.shape.rank is None:
            raise ModelError(f"input {key} of {text} has no shape", why="TensorRT needs its number of dimensions")
