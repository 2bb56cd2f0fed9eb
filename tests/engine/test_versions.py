"""Abilities of each TensorRT."""

import pytest

from trtopt.engine.trt.versions import abilities, parsed


@pytest.mark.parametrize(
    ("package", "version", "strong", "progress", "sized"),
    [
        ("tensorrt", "8.5.3.1", False, False, False),
        ("tensorrt", "8.6.1", False, False, False),
        ("tensorrt", "10.0.1", True, True, False),
        ("tensorrt", "10.14.1.48", True, True, True),
        ("tensorrt", "11.5.0", True, True, True),
        ("tensorrt_rtx", "1.7.1.116", True, True, True),
    ],
)
def test_a_version_has_its_abilities(package, version, strong, progress, sized):
    can = abilities(package, version)
    assert (can.strong_typing, can.progress, can.sized_memory) == (strong, progress, sized)


def test_tensorrt_8_has_no_bf16_and_no_fp8():
    assert abilities("tensorrt", "8.6.1").precisions == {"fp32", "fp16", "int8"}


@pytest.mark.parametrize(
    ("text", "number"), [("8.5.3.1", (8, 5)), ("10.0.0b6", (10, 0)), ("11", (0, 0)), ("", (0, 0)), ("a.b", (0, 0))]
)
def test_a_version_is_parsed(text, number):
    assert parsed(text) == number
