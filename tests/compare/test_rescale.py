"""Estimated factors of equalized tensors: exact for a sound network, and never an explanation for damage."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trtopt.compare.rescale import Rescaling
from trtopt.compare.taps import Link, Point

CONV = Link("consumer", 1)
factor_lists = st.lists(st.floats(1, 1000), min_size=2, max_size=6).map(lambda rest: np.array([1.0, *rest]))


def point(tensor: str, link: Link | None = CONV) -> Point:
    return Point(
        node="n",
        op="Conv",
        precision="int8",
        tensor=tensor,
        reference=tensor,
        chain=(tensor,),
        link=link,
        before=(),
        between=(),
    )


def activation(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, channels, 5, 5)).astype(np.float32)


def scaled(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
    return (x * factors.reshape(1, -1, 1, 1)).astype(np.float32)


@given(factor_lists)
def test_factors_are_estimated_exactly(factors: np.ndarray) -> None:
    rescaling, x = Rescaling(), activation(len(factors))
    rescaling.add(point("a"), x, scaled(x, factors))
    np.testing.assert_allclose(rescaling.apply(point("a"), x), scaled(x, factors), rtol=1e-5)


@given(factor_lists, st.floats(0.01, 0.4))
def test_a_tensor_that_is_too_small_as_a_whole_is_not_explained_by_factors(factors: np.ndarray, damage: float) -> None:
    rescaling, x = Rescaling(), activation(len(factors))
    rescaling.add(point("a"), x, scaled(x, factors * damage))
    np.testing.assert_allclose(rescaling.apply(point("a"), x), scaled(x, factors), rtol=1e-4)


def test_later_tensors_of_a_link_have_the_factors_of_the_first() -> None:
    rescaling, x, factors = Rescaling(), activation(3), np.array([1.0, 4.0, 20.0])
    rescaling.add(point("conv"), x, scaled(x, factors))
    rescaling.add(point("relu"), np.maximum(x, 0), np.zeros_like(x))
    rescaled = rescaling.apply(point("relu"), np.maximum(x, 0))
    np.testing.assert_allclose(rescaled, scaled(np.maximum(x, 0), factors), rtol=1e-5)


def test_channels_without_evidence_are_unchanged() -> None:
    rescaling, x = Rescaling(), activation(3)
    x[:, 1] = 0
    typed = scaled(x, np.array([1.0, 1.0, 5.0]))
    typed[:, 2] = np.nan
    rescaling.add(point("a"), x, typed)
    np.testing.assert_array_equal(rescaling.apply(point("a"), x), x)


def test_the_channels_of_a_product_are_its_last_axis() -> None:
    rescaling, factors = Rescaling(), np.array([1.0, 3.0, 9.0])
    x = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    rescaling.add(point("a", Link("consumer", -1)), x, (x * factors).astype(np.float32))
    np.testing.assert_allclose(rescaling.apply(point("a", Link("consumer", -1)), x), x * factors, rtol=1e-5)


def test_a_tensor_that_is_not_equalized_is_unchanged() -> None:
    x = activation(2)
    assert Rescaling().apply(point("a", None), x) is x
