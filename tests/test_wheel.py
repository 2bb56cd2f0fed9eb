"""The package as it is published: its files and its metadata."""

from __future__ import annotations

import email
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

import trtopt

ROOT = Path(trtopt.__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    hatchling = pytest.importorskip("hatchling.build")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("trtopt", "calibration"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = Path.cwd()
    os.chdir(source)
    try:
        return zipfile.ZipFile(source / hatchling.build_wheel(str(source)))
    finally:
        os.chdir(before)


def test_every_file_of_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trtopt").rglob("*") if path.is_file()}
    own = {name for name in own if "__pycache__" not in name}
    assert own <= set(wheel.namelist())
    assert "trtopt/py.typed" in own


def test_the_wheel_holds_the_recipes_and_nothing_else_of_the_repository(wheel: zipfile.ZipFile) -> None:
    assert "trtopt/data/recipes/imagenet.toml" in wheel.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in wheel.namelist()} == {"trtopt"}


def test_the_metadata_says_what_it_runs_on(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "trtopt"
    assert metadata["Version"] == trtopt.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert "TERMS AND CONDITIONS" in wheel.read(name.replace("METADATA", "licenses/LICENSE")).decode()
    assert metadata["Requires-Python"] == ">=3.10"
    classifiers = metadata.get_all("Classifier")
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(classifiers)
    assert f"Programming Language :: Python :: {sys.version_info.major}.{sys.version_info.minor}" in classifiers
