"""Importing a package on use: what is missing is named, and Ctrl-C in the middle stays Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtopt.errors import MissingDependencyError
from trtopt.requires import require

# A C extension reports every exception of its initialization as an ImportError with that exception as the cause.
BROKEN = """
try:
    raise {cause}
except BaseException as error:
    raise ImportError("initialization failed") from error
"""


def test_an_interrupt_during_the_initialization_of_an_extension_is_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "extension_interrupted.py").write_text(BROKEN.format(cause="KeyboardInterrupt"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        require("extension_interrupted")


def test_an_extension_that_fails_is_not_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extension_broken.py").write_text(BROKEN.format(cause="OSError('no libcudnn')"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match="initialization failed"):
        require("extension_broken")
