"""The tensors with the largest relative quantization error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.noisiest import COUNT, noisiest, read, write
from trtopt.types import CalibrationTable


def histogram(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


def table(scales: dict[str, float]) -> CalibrationTable:
    return CalibrationTable(method="mse", scales=scales)


NORMAL = np.random.default_rng(0).normal(size=20_000)


def test_the_worst_scale_comes_first_with_its_measured_error() -> None:
    scales = {"good": 4 / 127, "clipping": 0.4 / 127, "coarse": 400 / 127}
    tensors = noisiest(table(scales), {name: histogram(NORMAL) for name in scales})
    assert [tensor.tensor for tensor in tensors] == ["coarse", "clipping", "good"]
    assert {tensor.method for tensor in tensors} == {"mse"}
    for tensor in tensors:
        step = scales[tensor.tensor]
        error = NORMAL - np.clip(np.rint(NORMAL / step), -127, 127) * step
        assert tensor.noise == pytest.approx(float((error**2).sum() / (NORMAL**2).sum()), rel=0.02)


def test_the_histogram_counts_every_value_that_is_not_zero() -> None:
    values = np.concatenate([np.zeros(5000), NORMAL])
    (tensor,) = noisiest(table({"t": 2 / 127}), {"t": histogram(values)})
    assert sum(tensor.spread.counts) == pytest.approx(NORMAL.size, abs=64)
    assert tensor.spread.edges[-1] == pytest.approx(tensor.largest)
    assert tensor.amax == pytest.approx(2.0)
    assert tensor.clipped == pytest.approx(np.mean(np.abs(values) > 127.5 * 2 / 127), abs=1e-3)


def test_only_the_worst_few_are_described_and_a_tensor_of_zeros_is_not_one() -> None:
    names = [f"t{i}" for i in range(COUNT + 3)]
    histograms = {name: histogram(NORMAL) for name in names} | {"zeros": histogram(np.zeros(9))}
    tensors = noisiest(table(dict.fromkeys(histograms, 0.1)), histograms)
    assert len(tensors) == COUNT
    assert "zeros" not in {tensor.tensor for tensor in tensors}


def test_written_tensors_are_read_back(tmp_path: Path) -> None:
    tensors = noisiest(table({"t": 2 / 127}), {"t": histogram(NORMAL)})
    write(tensors, tmp_path)
    assert read(tmp_path) == tensors


@pytest.mark.parametrize("text", [None, "", "[", "[{}]", "5", '{"a": 1}'])
def test_an_unreadable_file_gives_no_tensors(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "histograms.json").write_text(text)
    assert read(tmp_path) == ()
