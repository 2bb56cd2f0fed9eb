"""Contents of stdout and stderr, in pipes and on a real terminal, with any colour settings in the environment."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from support import DIGITS, EVAL, Done, save

PROGRAM = (sys.executable, "-m", "trtopt")
ESCAPE = "\x1b"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
COLOR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8]|9[0-7])[0-9;]*m")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")
"""Escape codes other than styles: hiding or moving the cursor, erasing a line."""

ENVIRONMENTS = [{}, {"CI": "1"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}]


def named(environment: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in environment.items()) or "plain"


def clean(extra: dict[str, str]) -> dict[str, str]:
    """Return the environment without variables about colours, and with `extra`."""
    unsaid = ("CI", "GITHUB_ACTIONS", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {**{k: v for k, v in os.environ.items() if k not in unsaid}, "TERM": "xterm", "COLUMNS": "120", **extra}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write forty digits with their labels, and return the path."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    with np.load(EVAL) as archive:
        np.savez(path, **{name: archive[name][:40] for name in archive.files})
    return path


def compare(data: Path, out: Path, *more: str) -> list[str]:
    """Return the command line that compares the digits network with itself."""
    return [*PROGRAM, "compare", str(DIGITS), str(DIGITS), "--data", str(data), "-o", str(out), *more]


def in_pipes(command: list[str], environment: dict[str, str]) -> Done:
    done = subprocess.run(command, env=clean(environment), capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def on_terminals(command: list[str], environment: dict[str, str], where: tuple[str, ...] = ("out", "err")) -> Done:
    """Run with a pseudo-terminal for each stream in `where`, and a pipe for the other; both on one give only `out`."""
    ends = {name: pty.openpty() if name in where else os.pipe() for name in ("out", "err")}
    texts: dict[str, str] = {}

    def read(name: str) -> None:
        pieces = []
        while True:
            try:
                piece = os.read(ends[name][0], 65536)
            except OSError:  # the other end of a terminal is closed
                break
            if not piece:
                break
            pieces.append(piece)
        texts[name] = b"".join(pieces).decode().replace("\r\n", "\n")

    with subprocess.Popen(
        command, env=clean(environment), stdin=subprocess.DEVNULL, stdout=ends["out"][1], stderr=ends["err"][1]
    ) as child:
        for name in ends:
            os.close(ends[name][1])
        readers = [threading.Thread(target=read, args=(name,)) for name in ends]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    for name in ends:
        os.close(ends[name][0])
    return Done(child.returncode, texts["out"], texts["err"])


def stage_lines(text: str, stage: str) -> int:
    """Return the number of lines with that stage and its time."""
    plain = STYLE.sub("", CONTROL.sub("", text)).replace("\r", "\n")
    return len(re.findall(rf"^[^\w\n]*{stage} +[0-9.]+ s", plain, re.MULTILINE))


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=named)
def test_in_pipes_stdout_is_the_result_and_stderr_one_line_per_stage(
    environment: dict[str, str], data: Path, tmp_path: Path
) -> None:
    done = in_pipes(compare(data, tmp_path, "--gate", "sqnr=1", "--format", "json"), environment)
    assert done.code == 0, done.err
    assert json.loads(done.out)["verdict"] == "pass"
    assert ESCAPE not in done.out
    assert stage_lines(done.err, "compare") == 1
    assert not CONTROL.search(done.err)  # no bar, even if colours are forced
    assert (ESCAPE in done.err) == ("FORCE_COLOR" in environment)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=named)
def test_bars_and_colours_appear_only_on_a_terminal(environment: dict[str, str], data: Path, tmp_path: Path) -> None:
    done = on_terminals(compare(data, tmp_path, "--gate", "sqnr=1"), environment)
    assert done.code == 0, done.err
    assert "PASS" in done.out
    assert not CONTROL.search(done.out)
    assert bool(CONTROL.search(done.err)) == (not {"CI", "TERM"} & set(environment))
    colored = not {"NO_COLOR", "TERM"} & set(environment)
    assert bool(COLOR.search(done.out)) == colored
    assert bool(COLOR.search(done.err)) == colored
    if environment.get("TERM") == "dumb":
        assert ESCAPE not in done.out + done.err
    # Each stage is reported once, on stderr, when it ends.
    assert (stage_lines(done.err, "compare"), stage_lines(done.out, "compare")) == (1, 0)


def test_a_json_report_is_pure_on_a_terminal_too(data: Path, tmp_path: Path) -> None:
    done = on_terminals(compare(data, tmp_path, "--gate", "sqnr=1", "--format", "json"), {"FORCE_COLOR": "1"})
    assert json.loads(done.out)["verdict"] == "pass"
    assert ESCAPE not in done.out


def test_a_piped_report_lists_the_stages_and_has_no_escape_codes(data: Path, tmp_path: Path) -> None:
    done = on_terminals(compare(data, tmp_path, "--gate", "sqnr=1"), {}, where=("err",))
    assert ESCAPE not in done.out
    assert (stage_lines(done.err, "compare"), stage_lines(done.out, "compare")) == (1, 1)
    assert CONTROL.search(done.err)


def test_a_report_on_a_terminal_lists_the_stages_when_stderr_is_not_one(data: Path, tmp_path: Path) -> None:
    done = on_terminals(compare(data, tmp_path, "--gate", "sqnr=1"), {}, where=("out",))
    assert COLOR.search(done.out)
    assert ESCAPE not in done.err
    assert (stage_lines(done.err, "compare"), stage_lines(done.out, "compare")) == (1, 1)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Write a net, the same net with a NaN for positive inputs, and data for both."""
    folder = tmp_path_factory.mktemp("nan")
    weight = numpy_helper.from_array(np.full((16, 8, 8), 1.0, np.float32), "w")
    healthy = save(folder / "healthy.onnx", [helper.make_node("Mul", ["x", "w"], ["y"], "m")], [weight])
    nodes = [helper.make_node("Neg", ["x"], ["n"], "neg"), helper.make_node("Sqrt", ["n"], ["y"], "root")]
    ill = save(folder / "ill.onnx", nodes, [])
    np.save(folder / "x.npy", np.ones((4, 16, 8, 8), np.float32))
    return healthy, ill, folder / "x.npy"


@pytest.mark.parametrize(
    ("more", "verdict", "code"),
    [
        (("--gate", "sqnr=1"), "pass", 0),
        (("--gate", "equal=99%"), "fail", 1),
        (("--gate", "top1=1%"), "inconclusive", 4),
        (("--gate", "top1=1%", "--allow-inconclusive"), "inconclusive", 0),
    ],
)
def test_json_goes_through_a_pipe_for_every_verdict(
    more: tuple[str, ...], verdict: str, code: int, data: Path, tmp_path: Path
) -> None:
    command = shlex.join(compare(data, tmp_path, *more, "--format", "json"))
    script = f"{command} | {shlex.quote(sys.executable)} -m json.tool; exit ${{PIPESTATUS[0]}}"
    done = in_pipes(["bash", "-c", script], {})
    assert done.code == code, done.err
    assert strict(done.out)["verdict"] == verdict


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}], ids=named)
@pytest.mark.parametrize(
    ("gate", "pipe", "code"),
    [
        ("equal=99%", "| exec true", 1),  # the pipe of the report is closed; the verdict is unchanged
        ("sqnr=1", "| exec true", 0),
        ("sqnr=1", "2>&1 | exec true", 2),  # that of the progress: there is none
    ],
)
def test_a_closed_pipe_does_not_change_the_verdict(
    gate: str, pipe: str, code: int, environment: dict[str, str], data: Path, tmp_path: Path
) -> None:
    command = shlex.join(compare(data, tmp_path, "--gate", gate))
    done = in_pipes(["bash", "-c", f"{command} {pipe}; exit ${{PIPESTATUS[0]}}"], environment)
    assert done.code == code, done.err
    assert "Traceback" not in done.err


def test_json_is_json_where_outputs_are_nan(broken: tuple[Path, Path, Path], tmp_path: Path) -> None:
    healthy, ill, data = broken
    arguments = ["compare", str(healthy), str(ill), "--data", str(data), "-o", str(tmp_path), "--format", "json"]
    done = in_pipes([*PROGRAM, *arguments], {})
    assert done.code == 1, done.err
    assert strict(done.out)["verdict"] == "fail"


def test_json_is_json_without_a_verdict(tmp_path: Path) -> None:
    arguments = ["convert", str(DIGITS), "--no-compare", "--backend", "onnxruntime", "-o", str(tmp_path)]
    done = in_pipes([*PROGRAM, *arguments, "--format", "json"], {})
    assert done.code == 0, done.err
    assert strict(done.out)["verdict"] == "unchecked"


def strict(text: str) -> dict[str, object]:
    """Parse a document as strict JSON, which has no NaN or infinities."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    loaded: dict[str, object] = json.loads(text, parse_constant=refuse)
    return loaded


@pytest.mark.parametrize("arguments", [["compare", "nowhere.onnx", "x", "--data", "d"], ["convert"], ["nonsense"]])
def test_an_error_leaves_stdout_empty_for_people(arguments: list[str]) -> None:
    done = in_pipes([*PROGRAM, *arguments], {})
    assert (done.code, done.out) == (2, "")
    assert done.err
    machine = in_pipes([*PROGRAM, *arguments, "--format", "json"], {})
    assert strict(machine.out)["error"]


def test_help_has_no_escape_codes_in_a_pipe_wherever_it_runs() -> None:
    done = in_pipes([*PROGRAM, "compare", "--help"], {"GITHUB_ACTIONS": "true", "FORCE_COLOR": "1"})
    assert done.code == 0
    assert ESCAPE not in done.out + done.err


@pytest.mark.parametrize("module", ["shutil", "typer", "rich.console", "numpy", "onnx", "onnxruntime.capi"])
def test_an_interrupt_during_imports_prints_no_traceback(module: str, data: Path, tmp_path: Path) -> None:
    # `-X importtime` prints a line at the end of each import.
    command = [sys.executable, "-X", "importtime", *PROGRAM[1:], *compare(data, tmp_path)[3:]]
    with subprocess.Popen(
        command, env=clean({}), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if re.search(rf"\| +{re.escape(module)}$", line):
                child.send_signal(signal.SIGINT)
                break
        seen = [line for line in child.stderr if not line.startswith("import time:")]
    assert child.returncode == 130, seen
    assert seen == ["error: interrupted; run again to resume after the last completed stage\n"]


@pytest.mark.parametrize("arguments", [("doctor",), ("inspect", str(DIGITS)), ("config", "convert")])
def test_a_full_disk_behind_stdout_is_one_line_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


@pytest.mark.parametrize("arguments", [("doctor",), ("inspect", str(DIGITS))])
def test_lines_in_a_pipe_end_without_blanks(arguments: tuple[str, ...]) -> None:
    lines = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False).stdout.splitlines()
    assert lines
    assert [line for line in lines if line != line.rstrip()] == []


@pytest.mark.parametrize(("model", "code"), [(DIGITS, 0), ("nowhere.onnx", 2)])
def test_without_a_stdout_the_exit_code_is_the_same(model: object, code: int) -> None:
    command = f"exec {shlex.join([*PROGRAM, 'inspect', str(model)])} >&-"
    done = subprocess.run(["sh", "-c", command], env=clean({}), stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)
