"""Work that a run does once: files that it parses, and reports that it renders."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx_ir as ir
import pytest
from support import CALIB, DIGITS, EVAL, Done

from trtopt.plugins import load
from trtopt.report import html
from trtopt.types import Report

Cli = Callable[..., Done]
CONVERT = ("convert", DIGITS, "-p", "int8", "--calib", CALIB, "--data", EVAL, "--backend", "onnxruntime")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often the content of each ONNX file is parsed, whatever the name of the file."""
    counts: Counter[str] = Counter()

    def counted(load: Callable[..., object]) -> Callable[..., object]:
        def of_file(path: str | Path, *arguments: object, **options: object) -> object:
            counts[hashlib.sha256(Path(path).read_bytes()).hexdigest()] += 1
            return load(path, *arguments, **options)

        return of_file

    monkeypatch.setattr("trtopt.graph.parsed._files", OrderedDict())  # other tests of this process parse files, too
    monkeypatch.setattr(onnx, "load", counted(onnx.load))
    monkeypatch.setattr(ir, "load", counted(ir.load))
    return counts


def test_a_conversion_parses_every_graph_once(tmp_path: Path, cli: Cli, parsed: Counter[str]) -> None:
    assert cli(*CONVERT, "-o", tmp_path / "run").code == 0
    assert len(parsed) > 10  # the source, the graphs of the stages, and those of the trials
    assert {content for content, times in parsed.items() if times > 1} == set()


def test_a_cached_conversion_parses_the_source_alone(tmp_path: Path, cli: Cli, parsed: Counter[str]) -> None:
    cli(*CONVERT, "-o", tmp_path / "run")
    parsed.clear()
    cli(*CONVERT, "-o", tmp_path / "run")
    assert set(parsed) <= {hashlib.sha256(Path(DIGITS).read_bytes()).hexdigest()}


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the pages that are rendered."""
    rendered: list[str] = []

    def render(report: Report) -> str:
        rendered.append(html.render(report))
        return rendered[-1]

    monkeypatch.setattr(
        "trtopt.plugins.load", lambda *name: SimpleNamespace(render=render) if name[1] == "html" else load(*name)
    )
    return rendered


def test_the_page_of_an_equal_report_is_not_rendered_again(tmp_path: Path, cli: Cli, pages: list[str]) -> None:
    folder = tmp_path / "run"
    for count in (1, 2, 2, 2):  # the second report says that the stages were cached
        cli(*CONVERT, "-o", folder)
        assert len(pages) == count
    assert (folder / "report.html").read_text() == pages[1]


@pytest.mark.parametrize("change", ["edited", "deleted", "other gates"])
def test_a_page_that_is_not_of_this_report_is_rendered(tmp_path: Path, cli: Cli, pages: list[str], change: str) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        cli(*CONVERT, "-o", folder)
    page = folder / "report.html"
    if change == "edited":
        page.write_text("PASS")
    elif change == "deleted":
        page.unlink()
    cli(*CONVERT, "-o", folder, *(["--gate", "sqnr=1"] if change == "other gates" else []))
    assert len(pages) == 3
    assert page.read_text() == pages[2]
