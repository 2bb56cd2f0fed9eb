"""Find evaluation samples that were calibrated on: drift measured on them is not evidence.

Touches: nothing; it looks at samples as they are loaded for other work.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from trtopt.data.dataset import Dataset, Feed


def fingerprinted(dataset: Dataset, seen: dict[int, str]) -> Dataset:
    """Return the same dataset, whose `load` also keeps the sample's fingerprint (64 bits, hex) in `seen`, by index.

    Of a group, every sample has its own.
    """

    def load(index: int) -> Feed:
        feed = dataset.load(index)
        if dataset.groups is None:
            seen[index] = _fingerprint(feed)
        else:
            for row, sample in enumerate(dataset.groups.members(index)):
                seen[sample] = _fingerprint({name: array[row : row + 1] for name, array in feed.items()})
        return feed

    return dataclasses.replace(dataset, load=load)


def _fingerprint(feed: Feed) -> str:
    sha = hashlib.blake2b(digest_size=8)
    for name in sorted(feed):
        sha.update(np.ascontiguousarray(feed[name]).data)
    return sha.hexdigest()
