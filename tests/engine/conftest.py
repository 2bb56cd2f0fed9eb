from __future__ import annotations

from collections.abc import Iterator

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
