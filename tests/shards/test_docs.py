"""The commands in docs/predict.md and docs/shards.md print what is written there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, Done

BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("name", ["predict", "shards"])
def test_the_commands_print_what_is_written(
    name: str, cli: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("samples", "calibration"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / f"docs/{name}.md").read_text())
    assert blocks
    for command, printed in re.findall(r"^\$ trtopt (.*)\n((?:[^$].*\n)*)", "".join(blocks), re.MULTILINE):
        done = cli(*shlex.split(command), *([] if "error: " in printed else ["-q"]))
        version = re.compile(r"onnxruntime [\w.]+")
        said = done.out or done.err
        assert version.sub("onnxruntime", said) == version.sub("onnxruntime", printed), done.err
