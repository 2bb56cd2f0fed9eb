"""What calibration counts over samples, or over a shard of them.

Counts are integers, so those of shards add up to those of the whole, whatever the division. Masks are left out only at
the end: a shard without a mask would keep an exact absmax where the whole has the edge of a bin.

Touches: nothing itself.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

from trtopt.calibrate.histogram import BINS, Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Histograms by tensor, with masks, and the fingerprints of the samples."""

    histograms: Mapping[str, Histogram]
    fingerprints: tuple[str, ...]

    def unmasked(self) -> dict[str, Histogram]:
        """Return the histograms without masks."""
        return {name: histogram.unmasked() for name, histogram in self.histograms.items()}


def merged(parts: Sequence[Counted]) -> Counted:
    """Return the counts of all parts together; all have the same tensors."""
    histograms = {name: Histogram() for name in parts[0].histograms}
    for part in parts:
        for name, histogram in histograms.items():
            histogram.merge(part.histograms[name])
    fingerprints = {fingerprint for part in parts for fingerprint in part.fingerprints}
    return Counted(histograms=histograms, fingerprints=tuple(sorted(fingerprints)))


def write(counted: Counted, file: IO[bytes]) -> None:
    """Write counts as a NumPy archive: the non-empty bins of all tensors, one after the other."""
    histograms = list(counted.histograms.values())
    pairs = [histogram.counts() for histogram in histograms]
    np.savez(
        file,
        allow_pickle=False,
        names=np.array(list(counted.histograms), np.str_),
        fingerprints=np.array(counted.fingerprints, np.str_),
        sizes=np.array([len(used) for used, _ in pairs], np.int64),
        bins=np.concatenate([np.zeros(0, np.int64), *(used for used, _ in pairs)]),
        counts=np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in pairs)]),
        tops=np.array([histogram.top for histogram in histograms], np.int64),
        totals=np.array([histogram.total for histogram in histograms], np.int64),
    )


def read(data: bytes) -> Counted:
    """Return the counts that `write` wrote.

    Raises:
        ValueError, KeyError, OSError: they are damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    ends = np.cumsum(arrays["sizes"])
    histograms = {}
    for name, used, counts, top, total in zip(
        arrays["names"].tolist(),
        np.split(arrays["bins"], ends)[:-1],  # what follows the last end is empty
        np.split(arrays["counts"], ends)[:-1],
        arrays["tops"].tolist(),
        arrays["totals"].tolist(),
        strict=True,
    ):
        full = np.zeros(BINS, np.int64)
        if used.size and not 0 <= used.min() <= used.max() < BINS:
            raise ValueError("a bin does not exist")
        full[used] = counts
        histograms[name] = Histogram.of(full, int(top), int(total))
    return Counted(histograms=histograms, fingerprints=tuple(arrays["fingerprints"].tolist()))
