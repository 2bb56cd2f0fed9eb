"""Save a Keras MobileNetV2 with random weights as a SavedModel: `python samples/tf_mobilenet/make.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from samples.data import images_nhwc


def main(folder: str) -> None:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((96, 96, 3), name="pixels")
    model = keras.applications.MobileNetV2(
        input_tensor=pixels, alpha=0.35, weights=None, classes=100, classifier_activation=None
    )
    # Set the statistics of batch normalization to those of the random weights, or the signal vanishes on the way. And
    # move most activations into the linear range of ReLU6: otherwise 35 of them in a row amplify every rounding error,
    # which does not happen in trained networks.
    batch = np.stack([sample["pixels"] for sample in images_nhwc()])
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            if "project" not in layer.name:
                layer.beta.assign(layer.beta + 1.0)
    model([batch], training=True)
    model.export(folder, verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
