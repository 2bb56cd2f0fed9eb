"""The calibration table of a real network is the same, bit for bit, for any batching and order of the samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support import CALIB, DIGITS

from trtopt.calibrate import method_names
from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.observe import observe, tap
from trtopt.calibrate.table import make_table
from trtopt.data import open_dataset
from trtopt.data.dataset import Dataset
from trtopt.engine.onnxruntime import open_runner
from trtopt.events import silent
from trtopt.graph.file import load_ir
from trtopt.graph.prepare import prepare
from trtopt.precision.passes.placement import place
from trtopt.types import OnnxModel

SAMPLES = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return prepare(DIGITS, tmp_path_factory.mktemp("digits"), min_opset=19, profile=())


@pytest.fixture(scope="module")
def data(model: OnnxModel) -> Dataset:
    return part(open_dataset(str(CALIB), model.inputs), np.linspace(0, 199, SAMPLES).astype(int).tolist())


def part(data: Dataset, indices: list[int]) -> Dataset:
    """Return the samples with these indices, in this order."""
    ids = tuple(data.ids[i] for i in indices)
    return dataclasses.replace(data, ids=ids, labels=None, load=lambda i: data.load(indices[i]))


def histograms(model: OnnxModel, batches: list[Dataset]) -> dict[str, Histogram]:
    """Return the sum of the histograms of batches that are observed separately."""
    tensors = place(load_ir(model.path)).tensors()
    path = Path(model.path).with_name("tapped.onnx")
    tap(model, tensors, path)
    run = open_runner(path).run
    total: dict[str, Histogram] = {}
    for batch in batches:
        for name, histogram in observe(run, tensors, batch, stage="test", emit=silent).items():
            if name in total:
                total[name].merge(histogram)
            else:
                total[name] = histogram
    return total


@pytest.mark.parametrize("size", [1, 7, 32])
def test_batches_of_any_size_in_any_order_give_the_same_table(model: OnnxModel, data: Dataset, size: int) -> None:
    whole = histograms(model, [data])
    order = np.random.default_rng(size).permutation(SAMPLES).tolist()
    parts = histograms(model, [part(data, order[start : start + size]) for start in range(0, SAMPLES, size)])
    for method in method_names():
        expected = make_table(method, whole, model=model, dataset=data)
        found = make_table(method, parts, model=model, dataset=data)
        assert len(expected.scales) == 6
        assert found == expected
