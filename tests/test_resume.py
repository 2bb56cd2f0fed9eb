"""A conversion that is killed at any moment leaves a store from which the next one succeeds, with the same result."""

from __future__ import annotations

import importlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from support import CALIB, DIGITS, EVAL

from trtopt import ConvertPlan, DataPlan, convert

KILLS = 20

# Imported here once, so that the forked conversions spend their time on converting.
for module in ("numba", "onnxslim", "onnx_ir.passes.common", "onnxscript.version_converter"):
    importlib.import_module(module)


def convert_in_child(folder: Path, kill_after: float | None) -> float:
    """Convert in a forked process, killed after so many seconds; return how long it lived. It exits 0 when it ends."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            report, _ = convert(
                ConvertPlan(
                    source=DIGITS,
                    precision="int8",
                    run_dir=folder,
                    calib=DataPlan(source=str(CALIB)),
                    data=DataPlan(source=str(EVAL)),
                )
            )
            code = 0 if report.verdict == "pass" else 2
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if kill_after is None:
        assert os.waitstatus_to_exitcode(status) == 0
    return time.perf_counter() - start


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside idle threads
def test_a_conversion_killed_at_any_moment_is_finished_by_the_next(tmp_path: Path) -> None:
    convert_in_child(tmp_path / "warm", None)  # imports and compiled kernels are in the disk cache from here on
    whole = convert_in_child(tmp_path / "whole", None)
    expected = (tmp_path / "whole/typed.onnx").read_bytes()
    moments = random.Random(7)
    for kill in range(KILLS):
        folder = tmp_path / f"killed{kill}"
        convert_in_child(folder, moments.uniform(0, whole))
        convert_in_child(folder, None)
        assert (folder / "typed.onnx").read_bytes() == expected
        assert not list(folder.glob(".tmp-*"))
