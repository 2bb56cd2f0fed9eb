"""Statistics of all activations over a small subset of samples."""

from __future__ import annotations

import numpy as np
import pytest

from trtopt.calibrate.ranges import SAMPLES, VALUES, ChannelRanges, Wanted, few, look
from trtopt.data.dataset import Dataset, grouped
from trtopt.errors import CalibrationError
from trtopt.events import silent


def dataset(values: list[np.ndarray]) -> Dataset:
    return Dataset(
        source="d",
        digest="",
        ids=tuple(f"d[{i}]" for i in range(len(values))),
        load=lambda i: {"x": values[i]},
        batched=True,
    )


def test_magnitudes_sizes_and_channel_means_are_computed_over_the_samples() -> None:
    values = list(np.random.default_rng(0).normal(size=(5, 1, 3, 4, 4)).astype(np.float32))
    seen = look(lambda feed: {"y": feed["x"] * 2}, dataset(values), Wanted(channels={("x", 1), ("y", -1)}), emit=silent)
    joined = np.concatenate(values)
    assert seen.ranges == {"x": np.abs(joined).max(), "y": np.abs(joined).max() * 2}
    assert seen.sizes == {"x": 48, "y": 48}
    np.testing.assert_allclose(seen.means["x", 1], joined.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(seen.means["y", -1], 2 * joined.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-6)
    assert seen.samples == 5


def test_a_sample_in_which_a_tensor_is_empty_does_not_count_in_its_means() -> None:
    values = [np.full((1, 2), value, np.float32) for value in (1.0, 3.0)]
    seen = look(
        lambda feed: {"boxes": feed["x"][feed["x"][:, 0] > 2]},
        dataset(values),
        Wanted(channels={("boxes", 1)}, roundings={"boxes": np.ones_like}),
        emit=silent,
    )
    assert seen.means["boxes", 1].tolist() == [3.0, 3.0]
    assert seen.errors["boxes", 1].tolist() == [1.0, 1.0]


def test_the_samples_are_a_small_subset_spread_over_the_dataset() -> None:
    ran: list[float] = []
    values = [np.full((1, 2), i, np.float32) for i in range(1000)]
    look(lambda feed: ran.append(float(feed["x"][0, 0])) or {}, dataset(values), Wanted(), emit=silent)
    assert len(ran) == SAMPLES
    assert (ran[0], ran[-1]) == (0.0, 999.0)


def test_infinity_in_an_attention_mask_does_not_count_as_a_magnitude() -> None:
    values = [np.array([[-3.4e38, 5.0, -7.0]], np.float32)]
    seen = look(lambda feed: {}, dataset(values), Wanted(), emit=silent)
    assert seen.ranges == {"x": 7.0}
    assert seen.masks == {"x": pytest.approx(3.4e38)}


def test_infinity_and_nan_within_the_network_are_legal() -> None:
    values = [np.array([[np.inf, -np.inf, 3.0, np.nan]], np.float32)]
    seen = look(
        lambda feed: {"y": feed["x"][:, 2:3]}, dataset(values), Wanted(outputs="y", channels={("x", 1)}), emit=silent
    )
    assert seen.ranges == {"x": 3.0, "y": 3.0}
    assert (seen.masks, seen.means) == ({}, {})


def test_the_first_tensor_that_is_nan_is_named_if_an_output_is() -> None:
    values = [np.ones((1, 2), np.float32), np.array([[1, np.nan]], np.float32)]
    with pytest.raises(CalibrationError, match=r"tensor x holds NaN for sample d\[1\]"):
        look(lambda feed: {"y": feed["x"]}, dataset(values), Wanted(outputs=["y"]), emit=silent)


@pytest.mark.parametrize("axis", [1, -1])
def test_channels_have_the_absmax_and_values_of_each(axis: int) -> None:
    values = list(np.random.default_rng(0).normal(size=(5, 1, 3, 40, 2)).astype(np.float32))
    ranges = ChannelRanges({"y": axis})
    for array in values:
        ranges.add({"y": array})
    seen = ranges.result()["y"]
    rows = np.moveaxis(np.concatenate(values), axis, 0)
    rows = rows.reshape(rows.shape[0], -1)
    np.testing.assert_array_equal(seen.peaks, np.abs(rows).max(axis=1))
    assert seen.values.shape == (len(rows), 5 * VALUES)
    for row, kept in zip(rows, seen.values, strict=True):
        assert np.isin(kept, row).all()


@pytest.mark.parametrize("axis", [1, -1])
def test_a_feed_of_several_samples_keeps_the_same_values_as_its_samples(axis: int) -> None:
    samples = np.random.default_rng(0).normal(size=(3, 2, 100, 2)).astype(np.float32)
    together, alone = ChannelRanges({"y": axis}, per_feed=3), ChannelRanges({"y": axis})
    together.add({"y": samples})
    for sample in samples:
        alone.add({"y": sample[None]})
    np.testing.assert_array_equal(together.result()["y"].values, alone.result()["y"].values)


def test_the_values_of_a_tensor_without_a_part_for_each_sample_are_kept() -> None:
    ranges = ChannelRanges({"y": 1}, per_feed=3)
    ranges.add({"y": np.arange(2 * 100, dtype=np.float32).reshape(1, 2, 100)})
    assert ranges.result()["y"].values.shape == (2, 3 * VALUES)


def test_statistics_do_not_depend_on_the_number_of_callers() -> None:
    values = list(np.random.default_rng(0).normal(size=(50, 1, 3, 4)).astype(np.float32))
    one, many = (
        look(lambda feed: {}, dataset(values), Wanted(channels={("x", 1)}), emit=silent, callers=callers)
        for callers in (1, 3)
    )
    assert (one.ranges, one.sizes, one.samples) == (many.ranges, many.sizes, many.samples)
    np.testing.assert_array_equal(one.means["x", 1], many.means["x", 1])


def test_few_returns_the_samples_that_look_uses() -> None:
    values = [np.full((1, 2), i, np.float32) for i in range(100)]
    loaded: list[float] = []

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        loaded.append(float(feed["x"][0, 0]))
        return {}

    look(run, dataset(values), Wanted(), emit=silent)
    chosen = few(dataset(values))
    assert len(chosen) == SAMPLES
    assert [float(chosen.load(i)["x"][0, 0]) for i in range(SAMPLES)] == loaded
    assert chosen.ids == tuple(f"d[{int(i)}]" for i in loaded)


@pytest.mark.parametrize("size", [8, 12, 64])
def test_the_samples_are_the_same_if_they_are_fed_in_groups(size: int) -> None:
    alone = dataset([np.full((1, 2), i, np.float32) for i in range(100)])
    chosen, single = few(grouped(alone, size)), few(alone)
    assert chosen.samples == SAMPLES
    fed = np.concatenate([chosen.load(i)["x"][:, 0] for i in range(len(chosen))])
    assert {*fed} == {float(single.load(i)["x"][0, 0]) for i in range(SAMPLES)}
