"""Hints name packages that can be installed, and say what a file is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, Done

from trtopt import requires

Cli = Callable[..., Done]


def test_hints_name_packages_of_the_project_not_its_extras() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    for packages in requires.PACKAGES.values():
        for package in packages.split():
            assert f'"{package.strip(chr(39))}>=' in declared, package
    for path in (ROOT / "trtopt").rglob("*.py"):
        assert not re.search(r"pip install[^\n]*trtopt\[", path.read_text()), path


@pytest.mark.parametrize("there", [(), ("onnxruntime",), ("onnxruntime-gpu",)])
def test_onnxruntime_is_never_proposed_beside_its_gpu_package(
    there: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requires, "_installed", lambda package: package in there)
    plain, gpu = requires.install("onnxruntime"), requires.install_onnxruntime_gpu()
    assert ("-gpu" in plain) == ("onnxruntime-gpu" in there)
    assert ("uninstall -y onnxruntime &&" in gpu) == ("onnxruntime" in there)


def test_an_image_is_called_an_image(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    done = cli("inspect", tmp_path / "cat.png")
    assert done.code == 2
    assert "cat.png is an image" in done.err
    assert "engine" not in done.err
