"""After a conversion is killed at any moment, the next one in the same directory succeeds with the same result."""

from __future__ import annotations

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from support import CALIB, DIGITS, EVAL

from trtopt.commands.convert import convert
from trtopt.plan import ConvertPlan, DataPlan

KILLS = 20

# Imported here once, so that the forked processes do not spend their time on imports.
for module in ("numba", "onnxslim", "onnx_ir.passes.common", "onnxscript.version_converter"):
    importlib.import_module(module)


def convert_in_child(folder: Path, kill_after: float | None) -> float:
    """Convert in a forked process that is killed after some seconds, and return how long it lived."""
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


def main(folder: Path) -> None:
    convert_in_child(folder / "warm", None)  # fills the disk caches of imports and compiled kernels
    whole = convert_in_child(folder / "whole", None)
    expected = (folder / "whole/typed.onnx").read_bytes()
    moments = random.Random(7)
    for kill in range(KILLS):
        run = folder / f"killed{kill}"
        convert_in_child(run, moments.uniform(0, whole))
        convert_in_child(run, None)
        assert (run / "typed.onnx").read_bytes() == expected
        assert not list(run.glob(".tmp-*"))
        print("finished after a kill")


def test_a_conversion_killed_at_any_moment_is_finished_by_the_next(tmp_path: Path) -> None:
    # In a process of its own: it forks, which is safe only where no library has started threads.
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.stdout.count("finished after a kill") == KILLS, done.stderr


if __name__ == "__main__":
    main(Path(sys.argv[1]))
