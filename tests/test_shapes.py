"""`--shape` flags: accepted forms, defaults, and errors that propose a flag which works as typed."""

import re
import shlex
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtopt.errors import UsageError
from trtopt.shapes import DEFAULT_BATCH, Seen, fixed, of_profile, parse_shapes
from trtopt.shapes import profile as profile_of
from trtopt.types import Dim, ShapeRange, TensorSpec


def spec(name: str, *shape: Dim) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


IMAGE = spec("pixels", "batch", 3, 28, 28)
FULLY_DYNAMIC = spec("pixels", "batch", 3, "height", "width")


def profile(
    inputs: Sequence[TensorSpec], flags: Sequence[str], *seen: Callable[[], Seen]
) -> tuple[tuple[ShapeRange, ...], str]:
    return profile_of(inputs, parse_shapes(flags), *seen)


def refusal(inputs: list[TensorSpec], *flags: str) -> str:
    with pytest.raises(UsageError) as caught:
        profile(inputs, flags)
    return str(caught.value)


def flags_in(message: str) -> list[str]:
    """Return the values of the `--shape` flags in a message, split as a shell would."""
    words = shlex.split(re.sub(r"\(.*", "", message[message.index("--shape", message.index(". ")) :]))
    return words[1::2]


def test_a_dynamic_batch_gets_the_default_and_says_so() -> None:
    low, best, high = DEFAULT_BATCH
    ranges, assumed = profile([IMAGE], [])
    assert ranges == (ShapeRange(name="pixels", min=(low, 3, 28, 28), opt=(best, 3, 28, 28), max=(high, 3, 28, 28)),)
    assert assumed == "--shape not given: assuming batch 1 to 32, optimized for 8"


def test_a_fixed_input_needs_nothing() -> None:
    assert profile([spec("x", 1, 3, 8, 8), spec("scalar")], []) == ((), "")


def test_a_range_of_shapes_is_used_as_written() -> None:
    ranges, assumed = profile([FULLY_DYNAMIC], ["pixels=1x3x32x32:4x3x64x48:8x3x512x512"])
    assert ranges == (ShapeRange(name="pixels", min=(1, 3, 32, 32), opt=(4, 3, 64, 48), max=(8, 3, 512, 512)),)
    assert assumed == ""


def test_one_shape_is_smallest_usual_and_largest() -> None:
    ranges, _ = profile([IMAGE], ["pixels=4x3x28x28"])
    assert ranges == (ShapeRange(name="pixels", min=(4, 3, 28, 28), opt=(4, 3, 28, 28), max=(4, 3, 28, 28)),)


def test_ranges_are_in_the_order_of_the_inputs() -> None:
    ranges, assumed = profile([spec("a", "n", 2), spec("b", "n", 3), spec("c", 1)], ["b=5x3"])
    assert [entry.name for entry in ranges] == ["a", "b"]
    assert assumed != ""


@pytest.mark.parametrize("name", ["serving_default_x:0", "a=b", "a b"])
def test_an_input_may_have_any_name(name: str) -> None:
    ranges, _ = profile([spec(name, "n", 2)], [f"{name}=5x2"])
    assert ranges[0].name == name


def test_an_unknown_input_is_rejected_with_the_names() -> None:
    message = refusal([IMAGE, spec("mask", "batch", 1)], "pixel=1x3x28x28")
    assert message == "--shape pixel=1x3x28x28: the model has no such input. Its inputs are: pixels, mask"


def test_a_shape_without_a_name_is_rejected() -> None:
    assert "Write --shape pixels=1x3x28x28" in refusal([IMAGE], "1x3x28x28")


@pytest.mark.parametrize(
    "text",
    ["", "1", "axb", "1x3x28x", "1,3,28,28", "1X3X28X28", "-1x3x28x28", "1x3x28x28:2x3x28x28", ":::", "1x3x28x28:",
     "1x3x28x" + "9" * 5000, "1.5x3x28x28", "\u0661x3x28x28"],
)  # fmt: skip
def test_a_flag_that_does_not_parse_is_rejected_with_one_that_does(text: str) -> None:
    message = refusal([IMAGE], f"pixels={text}")
    assert "does not parse" in message or "has rank 1" in message
    assert profile([IMAGE], flags_in(message))[0]


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("pixels=1x28x28", "has rank 3: pixels has rank 4"),
        ("pixels=1x3x28x28:1x3x28:8x3x28x28", "has rank 3: pixels has rank 4"),
        ("pixels=0x3x28x28", "has a size of 0: only the smallest size of a dimension may be 0"),
        ("pixels=1x1x28x28", "does not fit pixels: the model expects [batch, 3, 28, 28]"),
        ("pixels=8x3x28x28:4x3x28x28:16x3x28x28", "is not ordered: it must be smallest:usual:largest"),
        ("pixels=1x3x28x28:16x3x28x28:8x3x28x28", "is not ordered: it must be smallest:usual:largest"),
    ],
)
def test_a_flag_that_does_not_fit_is_rejected_with_one_that_does(flag: str, reason: str) -> None:
    message = refusal([IMAGE], flag)
    assert f"--shape {flag} {reason}" in message
    assert profile([IMAGE], flags_in(message))[0]


def test_an_input_named_twice_is_rejected() -> None:
    assert "given twice for input pixels" in refusal([IMAGE], "pixels=1x3x28x28", "pixels=2x3x28x28")


def test_all_missing_dynamic_sizes_are_reported_at_once() -> None:
    inputs = [spec("ids", "batch", "sequence"), spec("my mask", 1, "?"), IMAGE]
    message = refusal(inputs)
    assert "dynamic dimensions without sizes: ids [batch, sequence], my mask [1, ?]" in message
    ranges, _ = profile(inputs, flags_in(message))
    assert [entry.name for entry in ranges] == ["ids", "my mask", "pixels"]


def test_a_flag_for_one_input_does_not_apply_to_another() -> None:
    inputs = [spec("ids", "batch", "sequence"), spec("mask", "batch", "sequence")]
    assert "without sizes: mask" in refusal(inputs, "ids=1x8:4x16:8x64")


@given(st.lists(st.integers(1, 9) | st.sampled_from(["batch", "?"]), max_size=5))
def test_the_example_in_a_refusal_can_be_typed_for_any_shape(shape: list[Dim]) -> None:
    inputs = [spec("x", *shape)]
    if not shape:
        return
    ranges, _ = profile(inputs, flags_in(refusal(inputs, "x=bad")))
    assert ranges[0].name == "x"
    assert len(ranges[0].min) == len(shape)


def test_a_refusal_proposes_the_sizes_of_the_samples() -> None:
    with pytest.raises(UsageError) as caught:
        profile([FULLY_DYNAMIC], [], lambda: {"pixels": [(1, 3, 320, 480), (1, 3, 640, 320), (1, 3, 640, 320)]})
    (flag,) = flags_in(str(caught.value))
    assert flag == "pixels=1x3x320x320:8x3x640x320:32x3x640x480"
    assert "as in the samples" in str(caught.value)
    profile([FULLY_DYNAMIC], [flag])


def test_a_first_dimension_larger_than_1_in_the_samples_is_proposed_with_their_sizes() -> None:
    with pytest.raises(UsageError) as caught:
        profile([spec("ids", "length", "width")], [], lambda: {"ids": [(20, 4), (40, 4)]})
    assert flags_in(str(caught.value)) == ["ids=20x4:40x4:40x4"]


def test_a_dimension_fixed_by_the_profile_is_fixed_in_every_input_that_has_its_name() -> None:
    inputs = (spec("a", "n", "?", 3), spec("b", "n", "?"), spec("c", 5))
    ranges, _ = profile(inputs, ["a=4x7x3", "b=1x2:1x4:1x8"])
    assert [spec.shape for spec in fixed(inputs[:1], of_profile(ranges))] == [(4, 7, 3)]
    assert [spec.shape for spec in fixed(inputs, {"a": (4, 7, 3)})] == [(4, 7, 3), (4, "?"), (5,)]
    assert fixed(inputs, {"a": ("m", "?", 3), "b": ()}) == inputs
