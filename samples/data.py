"""Inputs for the samples: synthetic, seeded, the calibration ones drawn apart from the evaluation ones.

The networks of these samples have random weights: they show the way from a framework to an engine, not an accuracy.
Give your own data for your own network.

    trtopt convert ... --calib samples.data:pictures --data samples.data:other_pictures
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SIZE = 96
_VOCABULARY = 1000


def pictures() -> Iterator[dict[str, NDArray[np.float32]]]:
    """64 pictures for `pixels`, float32 [3, 96, 96], about -1 to 1."""
    for picture in _scenes(64, seed=0):
        yield {"pixels": np.ascontiguousarray(picture.transpose(2, 0, 1))}


def other_pictures() -> Iterator[dict[str, NDArray[np.float32]]]:
    """32 other pictures."""
    for picture in _scenes(32, seed=1):
        yield {"pixels": np.ascontiguousarray(picture.transpose(2, 0, 1))}


def pictures_nhwc() -> Iterator[dict[str, NDArray[np.float32]]]:
    """The pictures as TensorFlow has them, float32 [96, 96, 3]."""
    for picture in _scenes(64, seed=0):
        yield {"pixels": picture}


def other_pictures_nhwc() -> Iterator[dict[str, NDArray[np.float32]]]:
    """The other pictures as TensorFlow has them."""
    for picture in _scenes(32, seed=1):
        yield {"pixels": picture}


def sentences() -> Iterator[dict[str, NDArray[np.int64]]]:
    """64 sentences of 32 places: `input_ids` and `attention_mask`, int64 [32]."""
    yield from _sentences(64, seed=0)


def other_sentences() -> Iterator[dict[str, NDArray[np.int64]]]:
    """32 other sentences."""
    yield from _sentences(32, seed=1)


def _scenes(count: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Smooth colours with a few rectangles in front: edges and areas, as in photographs."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    for _ in range(count):
        phase, speed = random.uniform(0, 6, 3), random.uniform(1, 8, (2, 3))
        picture = 0.6 * np.sin(x[..., None] * speed[0] + y[..., None] * speed[1] + phase)
        for _ in range(random.integers(2, 6)):
            top, left = random.integers(0, SIZE - 16, 2)
            height, width = random.integers(8, 48, 2)
            picture[top : top + height, left : left + width] = random.uniform(-1, 1, 3)
        yield picture.astype(np.float32)


def _sentences(count: int, seed: int) -> Iterator[dict[str, NDArray[np.int64]]]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        length = int(random.integers(8, 33))
        mask = (np.arange(32) < length).astype(np.int64)
        yield {"input_ids": random.integers(1, _VOCABULARY, 32) * mask, "attention_mask": mask}
