"""Sizes of ONNX's data types."""

import onnx
import onnx_ir as ir
import pytest

from trtopt.graph.validity import bits

SIZED = [value for name, value in onnx.TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")]


@pytest.mark.parametrize("data_type", SIZED)
def test_a_type_has_as_many_bits_as_onnx_ir_says(data_type: int) -> None:
    assert bits(data_type) == ir.DataType(data_type).bitwidth


@pytest.mark.parametrize("data_type", [0, 8, 999, -1])
def test_a_type_without_a_size_is_an_error(data_type: int) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        bits(data_type)
