"""Fingerprints of samples, to find evaluation samples that were also used for calibration.

Drift measured on calibration samples is not evidence.

Touches: nothing; samples are fingerprinted when another stage loads them.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from trtopt.data.dataset import Dataset, Feed


def fingerprinted(dataset: Dataset, fingerprints: dict[int, str]) -> Dataset:
    """Return the same dataset, whose `load` also writes the sample's fingerprint to `fingerprints`, by index.

    A fingerprint is a 64-bit hash in hexadecimal. Each sample of a group gets its own.
    """

    def load(index: int) -> Feed:
        feed = dataset.load(index)
        if dataset.groups is None:
            fingerprints[index] = _fingerprint(feed)
        else:
            for row, sample in enumerate(dataset.groups.members(index)):
                fingerprints[sample] = _fingerprint({name: array[row : row + 1] for name, array in feed.items()})
        return feed

    return dataclasses.replace(dataset, load=load)


def _fingerprint(feed: Feed) -> str:
    sha = hashlib.blake2b(digest_size=8)
    for name in sorted(feed):
        sha.update(np.ascontiguousarray(feed[name]).data)
    return sha.hexdigest()
