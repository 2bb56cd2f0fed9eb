"""Default run directory of a command without `-o`.

    trtopt-out/<model>/<precision>                    convert, calibrate
    trtopt-out/<model>/export                         export; <model> is the ONNX file that it writes
    trtopt-out/compare/<baseline>/<candidate>
    trtopt-out/bench/<targets>

Each directory belongs to one source, named in `source.txt` in `<model>`, `<baseline>`, ... Another source of the same
name gets its own directory with a digest after the name: `model-1a2b3c`. A directory without `source.txt`, such as one
of an earlier version, goes to the first source that claims it.

Touches: `trtopt-out`, when a directory is claimed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtopt.export.source import Source

ROOT = Path("trtopt-out")
OWNER = "source.txt"
_LOCK = ".claims.lock"
_LOCK_TIMEOUT = 60
"""Timeout for the lock in seconds; it is held only briefly."""

_DIGITS = (6, 12, 64)
"""Lengths of the digest after a name; a longer one is used if another source has the shorter one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultDir:
    """Directory that is chosen when it is claimed, so that rejected runs write nothing.

    `levels` are the folders below `trtopt-out`, each with the text that identifies its owner (empty: no owner).
    """

    levels: tuple[tuple[str, str], ...]


def of_source(source: Source, precision: str) -> DefaultDir:
    """Return the run directory of a source for a precision."""
    owner = source.text if source.kind == "factory" else _place(Path(source.text))
    return DefaultDir(levels=((source.name, owner), (precision, "")))


def of_export(out: Path) -> DefaultDir:
    """Return the run directory of an export to the ONNX file `out`."""
    return DefaultDir(levels=((out.stem, _place(out)), ("export", "")))


def of_comparison(baseline: Path, candidates: Sequence[Path]) -> DefaultDir:
    """Return the run directory of a comparison."""
    names = _absolute(candidates[0]).name if len(candidates) == 1 else f"{len(candidates)}-candidates"
    return DefaultDir(
        levels=(("compare", "trtopt compare"), (baseline.stem, _place(baseline)), (names, _places(candidates)))
    )


def of_bench(targets: Sequence[Path]) -> DefaultDir:
    """Return the run directory of a benchmark: `model`, `model-and-int8`, or `<n>-targets`."""
    absolute = [_absolute(target) for target in targets]
    names = [target.name if target.is_dir() else target.stem for target in absolute]
    name = "-and-".join(names) if len(names) <= 2 else f"{len(names)}-targets"
    return DefaultDir(levels=(("bench", "trtopt bench"), (name, _places(targets))))


def found(directory: Path | DefaultDir) -> Path:
    """Return the directory that `claimed` would return, without claiming it."""
    if isinstance(directory, Path):
        return directory
    folder = ROOT
    for name, owner in directory.levels:
        folder = _owned(folder, name, owner) if owner else folder / name
    return folder


def claimed(directory: Path | DefaultDir) -> Path:
    """Return the run directory; a directory given with `-o` is returned unchanged.

    Raises:
        OSError: `trtopt-out` cannot be read or written.
    """
    if isinstance(directory, Path):
        return directory
    from filelock import FileLock

    folder = ROOT
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(ROOT / _LOCK, timeout=_LOCK_TIMEOUT):  # two concurrent first runs must not claim the same directory
        for name, owner in directory.levels:
            folder = _claimed(folder, name, owner) if owner else folder / name
    return folder


def _owned(parent: Path, name: str, owner: str) -> Path:
    """Return the owner's folder; if there is none, the first free name."""
    text = os.fsencode(f"{owner}\n")
    digest = hashlib.sha256(text).hexdigest()
    folders = [parent / name, *(parent / f"{name}-{digest[:length]}" for length in _DIGITS)]
    folders = [folder for folder in folders if _place(folder) != owner]  # a SavedModel may lie in `trtopt-out` itself
    owners = [_owner(folder) for folder in folders]
    return folders[owners.index(text if text in owners else b"")]


def _claimed(parent: Path, name: str, owner: str) -> Path:
    """Return the owner's folder; if there is none, create one under the first free name."""
    folder, text = _owned(parent, name, owner), os.fsencode(f"{owner}\n")
    if _owner(folder) != text:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".tmp-{OWNER}"
        temporary.write_bytes(text)
        temporary.replace(folder / OWNER)
    return folder


def _owner(folder: Path) -> bytes:
    """Return the content of `source.txt`, empty if there is none."""
    try:
        return (folder / OWNER).read_bytes()
    except FileNotFoundError:
        return b""


def _places(paths: Sequence[Path]) -> str:
    return "\n".join(map(_place, paths))


def _place(path: Path) -> str:
    """Return one text for all spellings of a path.

    Links are resolved. A path below the folder of `trtopt-out` is relative to it, so that a project that is moved, or
    restored on another machine, keeps its runs.
    """
    resolved = Path(os.path.realpath(path))
    here = Path(os.path.realpath(ROOT)).parent
    return str(resolved.relative_to(here) if resolved.is_relative_to(here) else resolved)


def _absolute(path: Path) -> Path:
    """Return the absolute path, which has a name even for `.` and `..`; a link keeps its own name."""
    return Path(os.path.abspath(path))  # noqa: PTH100  (`resolve` would follow links)
