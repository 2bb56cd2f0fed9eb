"""Formats for machines when a run fails, notes beside warnings, and SIGTERM."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import CALIB, DIGITS, EVAL, Done

Cli = Callable[..., Done]
FAILURES = {
    "a file that does not exist": ("convert", "missing.onnx", "--data", EVAL),
    "a gate that does not exist": ("compare", DIGITS, DIGITS, "--data", EVAL, "--gate", "nothing=1"),
    "a flag that does not exist": ("convert", DIGITS, "--nothing"),
    "a value that does not parse": ("convert", DIGITS, "--optimization-level", "high"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter an empty working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=FAILURES.values(), ids=FAILURES)
def arguments(request: pytest.FixtureRequest) -> tuple[object, ...]:
    return request.param


def test_github_gets_an_error(arguments: tuple[object, ...], cli: Cli) -> None:
    done = cli(*arguments, "--format", "github")
    assert done.code == 2
    (line,) = done.out.splitlines()
    assert line.startswith(f"::error title=trtopt {arguments[0]}::ERROR: ")


def test_junit_gets_a_test_case_with_an_error(arguments: tuple[object, ...], cli: Cli) -> None:
    done = cli(*arguments, "--format=junit")
    root = ElementTree.fromstring(done.out)
    assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("1", "1", "0")
    (error,) = root.iter("error")
    assert error.get("type") == "exit code 2"
    assert error.get("message")


def test_json_gets_the_error(arguments: tuple[object, ...], cli: Cli) -> None:
    done = cli(*arguments, "--format", "json")
    found = json.loads(done.out)
    assert found["error"]["exit_code"] == done.code == 2
    assert "\n" not in found["error"]["message"]


def test_markdown_and_html_get_the_error(arguments: tuple[object, ...], cli: Cli) -> None:
    first = cli(*arguments, "--format", "markdown").out.splitlines()[0]
    assert first.startswith(f"## ❌ trtopt {arguments[0]}: ERROR: ")
    assert "ERROR: " in cli(*arguments, "--format", "html").out


def test_the_format_may_be_a_setting(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("trtopt.toml").write_text('[convert]\nformat = "github"\n')
    assert cli("convert", "missing.onnx").out.startswith("::error ")
    monkeypatch.setenv("TRTOPT_CONVERT_FORMAT", "json")
    assert json.loads(cli("convert", "missing.onnx").out)["error"]


def test_text_is_for_people_who_read_stderr(cli: Cli) -> None:
    done = cli("convert", "missing.onnx")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: missing.onnx does not exist")


@pytest.mark.parametrize("format", ["github", "junit", "json"])
def test_a_machine_without_tensorrt_is_an_error_beside_the_verdict(
    format: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    done = cli("convert", DIGITS, "--data", EVAL, "--format", format)
    assert done.code == 3, done.err
    if format == "github":
        first = done.out.splitlines()[0]
        assert first.startswith("::error title=trtopt convert::ERROR: ")
        assert "the graph alone: PASS" in first
    elif format == "junit":
        root = ElementTree.fromstring(done.out)
        assert root.get("errors") == "1"
        assert int(root.get("tests", "")) == len(list(root.iter("testcase"))) > 1
    else:
        found = json.loads(done.out)
        assert (found["error"]["exit_code"], found["verdict"]) == (3, "pass")


def test_facts_are_notes_and_no_annotations(cli: Cli) -> None:
    run = ("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, "-o", "run")
    done = cli(*run, "--format", "github")
    assert done.code == 0, done.err
    assert "::warning" not in done.out
    assert "note: --shape not given: assuming batch 1 to 32, optimized for 8" in done.out.splitlines()
    report = json.loads(Path("run/report.json").read_text())
    assert report["warnings"] == []
    assert f"{CALIB}: images are preprocessed with {CALIB}/recipe.toml" in report["notes"]
    assert "warning" not in done.err


def test_what_may_be_wrong_is_a_warning_and_said_once(cli: Cli) -> None:
    for name in ("calib", "eval"):
        shutil.copytree(CALIB, name)
        Path(name, "recipe.toml").unlink()
    run = ("convert", DIGITS, "-p", "int8", "--calib", "calib", "--data", "eval", "--backend", "onnxruntime", "-o", "r")
    done = cli(*run, "--allow-inconclusive")
    assert done.code in (0, 1), done.err
    assumed = [line for line in done.err.splitlines() if "is assumed for images" in line]
    assert len(assumed) == 1
    assert assumed[0].startswith("warning: calib, eval: no recipe was given")
    assert len(re.findall("recipe was given", done.out)) == 1


def test_on_one_stream_nothing_is_said_twice() -> None:
    run = [sys.executable, "-m", "trtopt", "convert", DIGITS, "--data", EVAL, "-o", "run"]
    plain = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS", "FORCE_COLOR")}
    done = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=plain, check=True)
    lines = " ".join(done.stdout.split())
    assert lines.count("--shape not given") == 1
    assert lines.count("29 nodes become") == 1


def test_sigterm_ends_like_ctrl_c() -> None:
    Path("slow.py").write_text(
        "import sys, time\n"
        "def samples():\n"
        "    print('at work', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "    yield {}\n"
    )
    program = [sys.executable, "-m", "trtopt", "convert", DIGITS, "--data", "slow:samples", "-o", "run"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        assert child.stdout is not None
        for line in child.stderr:
            if line == "at work\n":
                child.send_signal(signal.SIGTERM)
                break
        rest = child.stderr.readlines()
        out = child.stdout.read()
    assert child.returncode == 143, rest
    assert rest[-1] == "error: terminated; run again to resume after the last completed stage\n"
    assert out == ""
    assert not list(Path("run").glob(".tmp-*"))
