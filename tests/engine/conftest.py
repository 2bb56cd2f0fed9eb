from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir
import pytest

from trtopt.engine.cuda.device import PACKAGES, Device, open_device
from trtopt.errors import MissingDependencyError


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    try:
        open_device(package=request.param).close()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture
def device(package: str) -> Iterator[Device]:
    with open_device(package=package) as opened:
        yield opened


@pytest.fixture
def parse() -> Callable[..., ir.Model]:
    """Return `parse(body, opset)`: a model from ONNX's text form, with its shapes inferred."""
    from trtopt.graph.prepare import infer_shapes

    def parse(body: str, opset: int) -> ir.Model:
        proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {body}')
        for node in proto.graph.node:
            node.name = node.output[0]
        model = ir.from_proto(proto)
        infer_shapes(model)
        return model

    return parse
