"""The CI recipes and the action: they parse, trtopt accepts every command line in them, and the action's scripts work
on a real model.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from support import CALIB, DIGITS, EVAL, ROOT, accepted

SAMPLES = ROOT / "samples/ci"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
WORKFLOW = yaml.safe_load((SAMPLES / "github.yml").read_text())
OUTSIDE = re.compile(r"\$\{\{")
"""An expression that is put into a text before anything reads it."""


def texts(value: Any) -> Iterator[str]:
    """Yield every string in a parsed YAML document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def command_lines() -> list[str]:
    """Return every command line of the samples that runs trtopt, with continuations joined, up to a redirection."""
    sources = [*texts(WORKFLOW), *texts(yaml.safe_load((SAMPLES / "gitlab-ci.yml").read_text()))]
    jenkins = (SAMPLES / "Jenkinsfile").read_text()
    sources += [*re.findall(r"sh '''(.*?)'''", jenkins, re.DOTALL), *re.findall(r"sh '([^'\n]+)'\n", jenkins)]
    lines = [line.strip() for text in sources for line in text.replace("\\\n", " ").splitlines()]
    found = [re.sub(r"^\.venv/bin/", "", line) for line in lines]
    return [line.partition(">")[0].strip() for line in found if line.startswith("trtopt ")]


def test_trtopt_accepts_every_command_line_of_the_samples() -> None:
    lines = command_lines()
    # One bench for GitHub, where the action converts; for GitLab and Jenkins both conversions, a bench, three reports.
    assert Counter(map(accepted, lines)) == {"convert": 4, "bench": 3, "report": 6}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--nonsense", "--nonsense"),
        ("--gate top9=1%", "top9"),
        ("--precision int4", "int4"),
        ("--shape x=1:2", "x=1:2"),
    ],
)
def test_a_command_line_that_trtopt_refuses_is_found(flags: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        accepted(f"trtopt convert model.onnx {flags}")


@pytest.mark.parametrize("job", ["drift", "speed"])
def test_the_workflow_uses_the_action_with_its_inputs(job: str) -> None:
    used = [step for step in WORKFLOW["jobs"][job]["steps"] if "/trtopt@" in step.get("uses", "")]
    assert len(used) == 1
    assert set(used[0]["with"]) <= set(ACTION["inputs"])
    assert {name for name, each in ACTION["inputs"].items() if each.get("required")} <= set(used[0]["with"])


def test_every_pipeline_has_a_job_for_drift_and_one_for_speed() -> None:
    gitlab = yaml.safe_load((SAMPLES / "gitlab-ci.yml").read_text())
    assert {"drift", "speed"} <= set(gitlab) & set(gitlab["stages"])
    assert set(WORKFLOW["jobs"]) == {"drift", "speed"}
    assert re.findall(r"stage\('(\w+)'\)", (SAMPLES / "Jenkinsfile").read_text()) == ["drift", "speed"]


def test_the_brackets_of_the_jenkinsfile_are_balanced() -> None:
    text = re.sub(r"'''.*?'''|'[^']*'|//[^\n]*", "", (SAMPLES / "Jenkinsfile").read_text(), flags=re.DOTALL)
    for opening, closing in ("{}", "()"):
        assert text.count(opening) == text.count(closing) > 0
    assert "'" not in text


def test_no_input_is_ever_part_of_a_script() -> None:
    scripts = [step["run"] for step in STEPS.values() if "run" in step]
    scripts += [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    assert len(scripts) >= 3
    for script in scripts:
        assert not OUTSIDE.search(script)
        assert "eval" not in script


def test_the_action_is_valid_for_github() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for step in STEPS.values():
        assert ("run" in step) != ("uses" in step)
        assert ("shell" in step) == ("run" in step)
    for each in (*ACTION["inputs"].values(), *ACTION["outputs"].values()):
        assert each["description"]
    ids = {step["id"] for step in STEPS.values() if "id" in step}
    for expression in re.findall(r"\$\{\{ (.*?) \}\}", (ROOT / "action.yml").read_text()):
        kind, name = expression.split(".")[:2]
        assert (kind == "inputs" and name in ACTION["inputs"]) or (kind == "steps" and name in ids), expression
    # A variable that starts with TRTOPT_ would be read as a setting, and refused.
    assert not [name for step in STEPS.values() for name in step.get("env", {}) if name.startswith("TRTOPT_")]


@dataclass(frozen=True)
class Ran:
    """Result of a step: exit code, log, outputs, step summary."""

    code: int
    log: str
    outputs: dict[str, str]
    summary: str


def judge(folder: Path, **inputs: str) -> Ran:
    """Run the step that converts as the runner does: its script in bash, its inputs in the environment."""
    step = STEPS["Convert and judge"]
    given = {name: inputs.get(name, each.get("default", "")) for name, each in ACTION["inputs"].items()}
    environment = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: given[found[1]], value)
        for name, value in step["env"].items()
    }
    output, summary = folder / ".output", folder / ".summary"
    for file in (output, summary):
        file.write_text("")
    (folder / ".script").write_text(step["run"])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", ".script"],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("TRTOPT_")},
            **environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_ACTIONS": "true",
            "CI": "true",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return Ran(done.returncode, done.stdout + done.stderr, outputs, summary.read_text())


ONNX_ONLY = "--backend=onnxruntime"


def test_the_action_passes_a_model_whose_gates_pass(tmp_path: Path) -> None:
    inputs = {"model": str(DIGITS), "precision": "int8", "calib": str(CALIB), "data": str(EVAL)}
    ran = judge(tmp_path, **inputs, gate="sqnr=20", arguments=f"{ONNX_ONLY}\n\n--method=minmax\n")
    assert ran.code == 0, ran.log
    assert "::notice title=trtopt convert::PASS" in ran.log
    assert ran.outputs == {
        "verdict": "pass",
        "report": "trtopt-out/ci/report.json",
        "html": "trtopt-out/ci/report.html",
        "junit": "trtopt-out/ci/report.xml",
    }
    assert "PASS" in ran.summary
    assert "scales from 200 samples by minmax" in ran.log
    assert (tmp_path / ran.outputs["html"]).read_text().startswith("<!DOCTYPE html>")
    suite = ElementTree.parse(tmp_path / ran.outputs["junit"]).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")


def test_the_action_fails_a_model_whose_gates_fail_with_a_reason(tmp_path: Path) -> None:
    ran = judge(tmp_path, model=str(DIGITS), data=str(EVAL), gate="sqnr=200", arguments=ONNX_ONLY, out="elsewhere")
    assert ran.code == 1
    assert "::error title=trtopt logits%3A sqnr::" in ran.log
    assert ran.outputs["verdict"] == "fail"
    assert ran.outputs["report"] == "elsewhere/report.json"
    assert "FAIL" in ran.summary


@pytest.mark.parametrize(("gate", "code", "kind"), [("top1=1%", 4, "error"), ("", 0, "warning")])
def test_the_action_fails_an_inconclusive_gate_that_was_asked_for_only(
    tmp_path: Path, gate: str, code: int, kind: str
) -> None:
    with np.load(EVAL) as archive:
        np.savez(tmp_path / "few.npz", **{name: archive[name][::25] for name in archive.files})
    ran = judge(tmp_path, model=str(DIGITS), data="few.npz", gate=gate, arguments=ONNX_ONLY)
    assert (ran.code, ran.outputs["verdict"]) == (code, "inconclusive"), ran.log
    assert f"::{kind} title=trtopt convert::INCONCLUSIVE: " in ran.log
    failures = ElementTree.parse(tmp_path / ran.outputs["junit"]).getroot().get("failures")
    assert (failures == "1") == (code == 4)


def test_the_action_uses_the_settings_file_for_inputs_that_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "trtopt.toml").write_text(f"[convert]\ndata = '{EVAL}'\ngate = 'sqnr=200'\nbackend = 'onnxruntime'\n")
    ran = judge(tmp_path, model=str(DIGITS))
    assert (ran.code, ran.outputs["verdict"]) == (1, "fail"), ran.log


def test_an_error_gives_no_verdict_even_with_an_old_report(tmp_path: Path) -> None:
    (tmp_path / "trtopt-out/ci").mkdir(parents=True)
    (tmp_path / "trtopt-out/ci/report.json").write_text('{"verdict": "pass"}')
    ran = judge(tmp_path, model="nowhere.onnx", data=str(EVAL))
    assert ran.code == 2
    assert "nowhere.onnx does not exist" in ran.log
    assert ran.outputs == {"verdict": "error", "report": "", "html": "", "junit": ""}
    assert ran.summary == ""


@pytest.mark.parametrize("field", ["model", "precision", "calib", "data", "gate", "arguments", "out"])
def test_an_input_never_runs_as_code(field: str, tmp_path: Path) -> None:
    hostile = "\"; touch broken; $(touch broken) `touch broken` ' && touch broken #"
    ran = judge(tmp_path, **{"model": str(DIGITS), "data": str(EVAL), "arguments": ONNX_ONLY, field: hostile})
    assert ran.code in (0, 2), ran.log  # 0 for an input that accepts any text, such as the run directory
    assert not list(tmp_path.rglob("broken"))


def test_the_action_installs_its_own_checkout_with_the_extras(tmp_path: Path) -> None:
    step = STEPS["Install trtopt"]
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_ACTION_PATH": "/a b", "INPUT_EXTRAS": "cpu,rtx"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "/a b[cpu,rtx]"
