"""Synthetic inputs for the samples, from seeded random numbers; calibration and evaluation inputs differ.

The networks of these samples have random weights: they show how a framework's model becomes an engine, not an accuracy.
For your own network use your own data.

    trtopt convert ... --calib samples.data:images --data samples.data:other_images
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SIZE = 96
_VOCABULARY = 1000


def images() -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield 64 images for calibration: `pixels`, float32 [3, 96, 96], about -1 to 1."""
    for image in _scenes(64, seed=0):
        yield {"pixels": np.ascontiguousarray(image.transpose(2, 0, 1))}


def other_images(count: int = 32) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield `count` images for evaluation, in the form of `images`."""
    for image in _scenes(count, seed=1):
        yield {"pixels": np.ascontiguousarray(image.transpose(2, 0, 1))}


def images_nhwc() -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the images for calibration in TensorFlow's layout: `pixels`, float32 [96, 96, 3]."""
    for image in _scenes(64, seed=0):
        yield {"pixels": image}


def other_images_nhwc() -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the images for evaluation in TensorFlow's layout."""
    for image in _scenes(32, seed=1):
        yield {"pixels": image}


def sentences() -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yield 64 sentences for calibration, padded to 32 tokens: `input_ids` and `attention_mask`, int64 [32]."""
    yield from _sentences(64, seed=0)


def other_sentences(count: int = 32) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yield `count` sentences for evaluation, in the form of `sentences`."""
    yield from _sentences(count, seed=1)


def _scenes(count: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield images of smooth colours with rectangles in front: like photographs, they have edges and plain areas."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    for _ in range(count):
        phase, speed = random.uniform(0, 6, 3), random.uniform(1, 8, (2, 3))
        image = 0.6 * np.sin(x[..., None] * speed[0] + y[..., None] * speed[1] + phase)
        for _ in range(random.integers(2, 6)):
            top, left = random.integers(0, SIZE - 16, 2)
            height, width = random.integers(8, 48, 2)
            image[top : top + height, left : left + width] = random.uniform(-1, 1, 3)
        yield image.astype(np.float32)


def _sentences(count: int, seed: int) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Yield sentences of 8 to 32 random tokens, padded with zeros."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        length = int(random.integers(8, 33))
        mask = (np.arange(32) < length).astype(np.int64)
        yield {"input_ids": random.integers(1, _VOCABULARY, 32) * mask, "attention_mask": mask}
