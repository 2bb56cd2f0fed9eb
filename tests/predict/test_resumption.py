"""After a prediction is killed at any moment, the next one writes the same output: no row is lost or repeated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import DIGITS, EVAL

from trtopt.commands.predict import predict
from trtopt.errors import StoreError
from trtopt.plan import DataPlan, PredictPlan

KILLS = 10
SAMPLES = 5000


def plan(out: Path, data: Path = EVAL) -> PredictPlan:
    return PredictPlan(run=DIGITS, out=out, data=DataPlan(source=str(data)), answers="raw", batch=16)


def predict_in_child(out: Path, data: Path, kill_after: float | None) -> float:
    """Predict in a forked process that is killed after some seconds, and return how long it lived."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            predict(plan(out, data))
            code = 0
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
    values = np.load(EVAL)["input"]
    data = folder / "many.npz"
    np.savez(data, input=np.concatenate([values] * (SAMPLES // len(values))))
    predict_in_child(folder / "warm.jsonl", data, None)
    whole = predict_in_child(folder / "whole.jsonl", data, None)
    expected = (folder / "whole.jsonl").read_bytes()
    moments, out, killed = random.Random(7), folder / "killed.jsonl", 0
    for _ in range(KILLS):  # one output that is killed again and again, and begun anew once it is complete
        predict_in_child(out, data, moments.uniform(0.05, 0.6) * whole)
        killed += not out.exists()
        if out.exists() and moments.random() < 0.5:
            predict_in_child(out, data, None)
            assert out.read_bytes() == expected
            out.unlink()
    predict_in_child(out, data, None)
    assert out.read_bytes() == expected
    assert not list(folder.glob("*.parts"))
    print("killed", killed)


def test_a_prediction_killed_at_any_moment_is_finished_by_the_next(tmp_path: Path) -> None:
    # In a process of its own: it forks, which is safe only where no library has started threads.
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith("killed "), done.stderr
    assert int(done.stdout.split()[1]) > KILLS // 3


def test_rows_that_were_written_are_not_computed_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    predict(plan(out))
    (tmp_path / "again").mkdir()
    parts = interrupted(tmp_path / "again/out.jsonl")
    assert len(parts) == 3
    changed = parts[1].read_bytes().replace(b"eval.npz[300]", b"seen before")
    parts[1].write_bytes(changed)
    resumed = predict(plan(tmp_path / "again/out.jsonl"))
    assert resumed.resumed == 768
    text = (tmp_path / "again/out.jsonl").read_text()
    assert text == out.read_text().replace("eval.npz[300]", "seen before")


def interrupted(out: Path) -> list[Path]:
    """Write the first three of four blocks of an output, and return them."""

    def emit(event: object) -> None:
        if getattr(event, "done", 0) > 800:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(plan(out), emit)
    return sorted(out.with_name(f"{out.name}.parts").glob("*.part"))


def test_the_rows_of_another_run_are_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    interrupted(out)
    np.savez(tmp_path / "other.npz", input=np.load(EVAL)["input"][:10])
    with pytest.raises(Exception, match=r"out.jsonl.parts holds the rows of another run: it is of another data set"):
        predict(plan(out, tmp_path / "other.npz"))
    assert len(list(tmp_path.glob("*.parts/*.part"))) == 3


def test_a_second_process_does_not_write_the_same_output(tmp_path: Path) -> None:
    from trtopt.predict.journal import open_journal

    with open_journal(tmp_path / "out.jsonl", {}), pytest.raises(StoreError, match="another process is writing"):
        predict(plan(tmp_path / "out.jsonl"))


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_resumption import plan
from trtopt.commands.predict import predict
from trtopt.errors import StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try: predict(plan(Path({out!r})))
except StoreError as error: print(error)
"""


@pytest.mark.parametrize("size", [1 << 13, 1 << 16])
def test_a_full_disk_is_one_line_and_loses_nothing(size: int, tmp_path: Path) -> None:
    # The limit on the size of a file is met by a block (8 KiB), or by the whole output (64 KiB).
    out = tmp_path / "out.jsonl"
    code = LIMITED.format(tests=str(Path(__file__).parent), size=size, out=str(out))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.startswith(f"cannot write to {out}: the file would be larger than is allowed here"), done.stderr
    assert not out.exists()
    assert not list(tmp_path.rglob(".tmp-*"))
    kept = len(list(tmp_path.glob("*.parts/*.part")))
    assert kept == (0 if size == 1 << 13 else 4)
    assert predict(plan(out)).resumed == (0 if size == 1 << 13 else 1000)
    assert [json.loads(line)["error"] for line in out.read_text().splitlines()] == [None] * 1000


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_resumption import plan\nfrom trtopt.commands.predict import predict\n"
        "predict(plan(Path(sys.argv[1]), Path(sys.argv[2])))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0])"
    )
    values = np.load(EVAL)["input"]
    peaks = []
    for times in (1, 24):
        data = tmp_path / f"{times}.npy"
        np.save(data, np.concatenate([values] * times))
        arguments = [sys.executable, "-c", code, str(tmp_path / f"{times}.npz"), str(data)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 36  # MiB; the samples alone are 72 MiB more


if __name__ == "__main__":
    main(Path(sys.argv[1]))
