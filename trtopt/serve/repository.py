"""Folders of models in a repository: written under a temporary name, and renamed into place when all are complete.

Touches: the repository.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtopt.errors import StoreError, TrtoptError, UsageError
from trtopt.graph.file import copy
from trtopt.serve.config import text

_MOST_NAMED = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A model's folder.

    Attributes:
        config: its configuration, whose name is that of the folder.
        files: by path in the folder: the text of a file; or a file to copy, where a `.onnx` brings its external data.
        graph: the graph that a server without a GPU runs in place of the model; None if it can run the model itself.
    """

    config: Any
    files: Mapping[str, str | Path] = field(default_factory=dict)
    graph: Path | None = None

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.config.name)


def check_name(name: str) -> str:
    """Return the name of a model.

    Raises:
        UsageError: it is not one that Triton and a file system accept.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a model",
            why="letters, digits, '_', '-' and '.' are allowed",
            fix="Give another one with --name",
        )
    return name


def check_free(repository: Path, names: Sequence[str]) -> None:
    """Check that a repository can take models of these names.

    Raises:
        UsageError: it is a file, or it has such a model.
    """
    if repository.exists() and not repository.is_dir():
        raise UsageError(f"{repository} is a file", fix="Name a folder with --triton")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two models would be named {twice[0]}", fix="Package them one by one, each with its --name")
    for name in names:
        if (repository / name).exists():
            raise UsageError(
                f"{repository} already has a model {name}",
                why="a server may be serving it",
                fix="Give another name with --name, or remove the folder first",
            )


def others(repository: Path) -> str:
    """Return the first names of the folders in a repository that are not models; empty if all of them are.

    They have neither a configuration nor a version. A server takes hidden folders for models, too.
    """
    names = [
        place.name
        for place in sorted(repository.iterdir())
        if place.is_dir()
        and not (place / "config.pbtxt").exists()
        # A server completes the configuration of a model that has none.
        and not any(each.is_dir() and each.name.isdigit() for each in place.iterdir())
    ]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


@contextlib.contextmanager
def staged(repository: Path, folders: Sequence[Folder]) -> Iterator[Path]:
    """Write the folders under a temporary name, yield their parent, and rename them into place at the end.

    If the block raises an error, or a folder cannot be renamed, nothing is left of them.

    Raises:
        StoreError: the repository cannot be written.
    """
    created = not repository.exists()
    stage: Path | None = None
    done: list[Path] = []
    try:
        repository.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".tmp-trtopt-", dir=repository))
        for folder in folders:
            write(folder, stage / folder.name)
        yield stage
        for folder in folders:
            (stage / folder.name).rename(repository / folder.name)
            done.append(repository / folder.name)
    except BaseException as error:
        for path in done:
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise StoreError(
                f"cannot write to {repository}", why=why, fix="Name another folder with --triton"
            ) from error
        raise
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        if created:
            with contextlib.suppress(OSError):  # it is not empty: the models are in it
                repository.rmdir()


def write(folder: Folder, place: Path) -> None:
    """Write a model's folder.

    Raises:
        OSError: it cannot be written.
    """
    (place / "1").mkdir(parents=True)
    (place / "config.pbtxt").write_text(text(folder.config), encoding="utf-8")
    for name, content in folder.files.items():
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content, encoding="utf-8")
            if target.suffix == ".sh":
                target.chmod(0o755)
        elif target.suffix == ".onnx":
            _copy_graph(content, target)
        else:
            shutil.copyfile(content, target)
    if not any((place / "1").iterdir()):
        # An ensemble has only its configuration, but a server asks for a version, and git keeps no empty folder.
        (place / "1/.keep").touch()


def _copy_graph(path: Path, target: Path) -> None:
    try:
        copy(path, target)
    except TrtoptError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise
