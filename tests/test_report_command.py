"""`trtopt report`: the report of one run, and several side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import CALIB, DIGITS, EVAL, Done

Cli = Callable[..., Done]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the digits network to the run directories `fp16` and `int8`, and to `bf16` on other samples."""
    from trtopt.commands.convert import convert
    from trtopt.plan import BuildPlan, ConvertPlan, DataPlan

    folder = tmp_path_factory.mktemp("runs")
    for precision, data in (("fp16", EVAL), ("int8", EVAL), ("bf16", CALIB)):
        plan = ConvertPlan(
            source=DIGITS, precision=precision, run_dir=folder / precision, build=BuildPlan(backend="onnxruntime"),
            calib=DataPlan(source=str(CALIB)), data=DataPlan(source=str(data)), method="minmax", equalization=False,
        )  # fmt: skip
        convert(plan)
    return folder


def test_several_runs_are_candidates_side_by_side(cli: Cli, runs: Path) -> None:
    done = cli("report", runs / "fp16", runs / "int8", "--format", "json")
    assert done.code == 0
    report = json.loads(done.out)
    rows = {row["name"]: row for row in report["candidates"]}
    assert list(rows) == [str(runs / "fp16"), str(runs / "int8")]
    single = json.loads((runs / "int8/report.json").read_text())
    assert rows[str(runs / "int8")]["comparison"] == single["comparison"]
    assert rows[str(runs / "int8")]["size_bytes"] < rows[str(runs / "fp16")]["size_bytes"]
    assert [row["pareto"] for row in rows.values()] == [True, True]
    assert (report["command"], report["verdict"], report["comparison"]) == ("report", "pass", None)
    assert report["invocation"] == f"trtopt report {runs / 'fp16'} {runs / 'int8'} --format json"


@pytest.mark.parametrize("format", ["text", "html", "markdown", "junit", "github"])
def test_several_runs_are_printed_in_every_format(cli: Cli, runs: Path, format: str) -> None:
    done = cli("report", runs / "fp16", runs / "int8", "--format", format)
    assert done.code == 0
    assert "8/8 gates passed" in done.out


@pytest.mark.parametrize("command", [("report",), ("compare", "--from")])
def test_a_run_is_also_given_as_its_report(cli: Cli, runs: Path, command: tuple[str, ...]) -> None:
    by_folder, by_file = (cli(*command, path) for path in (runs / "int8", runs / "int8/report.json"))
    assert (by_file.code, by_file.out) == (by_folder.code, by_folder.out)
    assert "PASS" in by_file.out


def test_only_the_reports_are_needed(cli: Cli, runs: Path, tmp_path: Path) -> None:
    for precision in ("fp16", "int8"):
        (tmp_path / precision).mkdir()
        shutil.copy(runs / precision / "report.json", tmp_path / precision)
    done = cli("report", tmp_path / "fp16", tmp_path / "int8", "--format", "html")
    assert done.code == 0
    assert "Side by side" in done.out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("fp16", "bf16"), "cannot be shown side by side: their data differ"),
        (("fp16", "../{runs}/fp16"), "is named twice"),
        (("fp16", "nothing"), "no report at"),
    ],
)
def test_runs_that_cannot_be_shown_together_are_one_line(
    cli: Cli, runs: Path, names: tuple[str, ...], message: str
) -> None:
    done = cli("report", *(runs / name.format(runs=runs.name) for name in names))
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert done.err.count("error:") == 1


def test_the_page_has_the_command_that_made_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTOPT_CONVERT_METHOD", "minmax")
    arguments = ("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--backend", "onnxruntime", "-o", tmp_path / "a b")
    assert cli(*arguments).code == 0
    report = json.loads((tmp_path / "a b/report.json").read_text())
    words = " ".join(map(str, arguments[:-1]))
    assert report["invocation"] == f"TRTOPT_CONVERT_METHOD=minmax trtopt {words} '{tmp_path / 'a b'}'"
