"""Feeds and outputs as .npz files, which carry them to a child process and back.

Touches: reads and writes the files it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def write_feeds(path: Path, feeds: Sequence[Mapping[str, Array]]) -> None:
    """Write feeds, each a mapping from input name to array."""
    # Arrays become files in the archive, named by feed and position. The names of inputs are stored beside them, as
    # they may contain characters that a file name may not.
    names = json.dumps([list(feed) for feed in feeds])
    arrays = {f"{i}_{j}": array for i, feed in enumerate(feeds) for j, array in enumerate(feed.values())}
    np.savez(path, allow_pickle=False, names=np.array(names), **arrays)


def read_feeds(path: Path) -> list[dict[str, Array]]:
    """Read the feeds that `write_feeds` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        names = json.loads(str(archive["names"]))
        return [{name: archive[f"{i}_{j}"] for j, name in enumerate(feed)} for i, feed in enumerate(names)]


def write_arrays(path: Path, runs: Sequence[Sequence[Array]]) -> None:
    """Write the outputs of several runs, each a sequence of arrays."""
    arrays = {f"{i}_{j}": array for i, run in enumerate(runs) for j, array in enumerate(run)}
    np.savez(path, allow_pickle=False, counts=np.array([len(run) for run in runs]), **arrays)


def read_arrays(path: Path) -> list[list[Array]]:
    """Read the outputs that `write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        return [[archive[f"{i}_{j}"] for j in range(int(count))] for i, count in enumerate(archive["counts"])]
