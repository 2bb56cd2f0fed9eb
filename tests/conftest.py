from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from onnx import helper, numpy_helper
from support import SLOW, Done, save

from trtopt.cli.app import main

# How long an example takes depends on the machine and its load: timings never fail a test.
hypothesis.settings.register_profile("trtopt", deadline=None)
hypothesis.settings.load_profile("trtopt")

# A shell starts background jobs with Ctrl-C ignored. The children of the tests would inherit that, and never stop.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the slow modules."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Return a function that runs `trtopt ARGS...` in this process, through the real entry point."""
    for name in ("CI", "GITHUB_ACTIONS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["trtopt", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            main()
        captured = capsys.readouterr()
        return Done(int(leave.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def conv_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a net of two convolutions with 16 channels: input `x` and output `y` are float32 [n, 16, 8, 8]."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(0, 0.1, (16, 16, 3, 3)).astype(np.float32), f"w{i}") for i in (0, 1)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w1"], ["y"], "conv1", pads=[1] * 4),
    ]
    return save(tmp_path_factory.mktemp("net") / "net.onnx", nodes, weights)
