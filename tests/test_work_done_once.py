"""Work that a run does once: files that it parses, and reports that it renders."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from support import CALIB, DIGITS, EVAL, Done

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
