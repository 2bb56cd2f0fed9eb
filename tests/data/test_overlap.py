"""Fingerprints of samples: the same whether a sample is fed alone or in a group."""

from pathlib import Path

import numpy as np

from trtopt.data import open_dataset
from trtopt.data.overlap import fingerprinted
from trtopt.types import Dim, TensorSpec


def fingerprints(source: Path, batch: Dim) -> dict[int, str]:
    by_index: dict[int, str] = {}
    inputs = (TensorSpec(name="x", dtype="float32", shape=(batch, 3)),)
    dataset = fingerprinted(open_dataset(str(source), inputs), by_index)
    for i in range(len(dataset)):
        dataset.load(i)
    return by_index


def test_samples_of_a_group_have_the_fingerprints_that_they_have_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(15, dtype=np.float32).reshape(5, 3))
    alone = fingerprints(tmp_path / "x.npy", "n")
    assert list(alone) == [0, 1, 2, 3, 4]
    assert len(set(alone.values())) == 5
    assert fingerprints(tmp_path / "x.npy", 2) == fingerprints(tmp_path / "x.npy", 4) == alone
