"""Small networks from text. Each node is named after its first output, and shapes are inferred, as by preparation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtopt.graph.prepare import check_types, infer_shapes, save

Parse = Callable[..., ir.Model]


@pytest.fixture
def parse() -> Parse:
    """Return `parse(body, weights, opset=19)`: a model from ONNX's text form, with random weights of these shapes."""

    def parse(body: str, weights: Mapping[str, tuple[int, ...]] | None = None, opset: int = 19) -> ir.Model:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "custom": 1]> g {body}')
        rng = np.random.default_rng(3)
        for name, shape in (weights or {}).items():
            array = rng.normal(0, 0.2, shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        for node in proto.graph.node:
            node.name = node.output[0]
        onnx.checker.check_model(proto)
        model = ir.from_proto(proto)
        infer_shapes(model)
        return model

    return parse


@pytest.fixture
def write(tmp_path: Path) -> Callable[[ir.Model], Path]:
    """Return `write(model)`, which saves the model, runs ONNX's full checker on it, and returns its path."""

    def write(model: ir.Model) -> Path:
        path = tmp_path / "typed.onnx"
        save(model, path)
        check_types(path)
        return path

    return write
