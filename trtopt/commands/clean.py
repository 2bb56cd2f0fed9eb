"""The command `trtopt clean`: remove what runs wrote, and nothing else.

Touches: run directories: the files that their manifests list, the manifest, and folders that are then empty.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtopt.errors import StoreError, UsageError
from trtopt.events import silent
from trtopt.manifest import read_manifest
from trtopt.store import JOURNAL
from trtopt.times import own
from trtopt.writing import writing

_LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removable:
    """A run directory, the names of the files in it that its manifest lists, and their size in bytes."""

    run_dir: Path
    files: tuple[str, ...]
    size: int


def removable(folders: Sequence[Path]) -> tuple[Removable, ...]:
    """Return the run directories in the folders, in the order of their paths.

    Raises:
        UsageError: a folder does not exist.
    """
    found: dict[Path, Removable] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder", fix="Give a run directory, or a folder of them")
        for manifest in _manifests(folder):
            run_dir = manifest.parent
            names = [name for name in recorded_files(run_dir) if _is_plain(run_dir / name)]
            size = sum((run_dir / name).stat().st_size for name in names)
            if names:
                found[run_dir.resolve()] = Removable(run_dir=run_dir, files=tuple(names), size=size)
    return tuple(found[path] for path in sorted(found))


def remove(entry: Removable) -> None:
    """Remove the files of a run directory, the manifest last, and the directory if nothing else is in it.

    Raises:
        StoreError: a run is using the directory, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    with writing(entry.run_dir):
        lock = FileLock(entry.run_dir / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"{entry.run_dir} is in use", why="a run holds its lock", fix="Wait for its end"
            ) from error
        try:
            for name in entry.files:
                (entry.run_dir / name).unlink(missing_ok=True)
            (entry.run_dir / _LOCK).unlink(missing_ok=True)
        finally:
            lock.release()
        with contextlib.suppress(OSError):  # other files are in it: they stay
            entry.run_dir.rmdir()


def _manifests(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):  # links to folders are not followed
        folders.sort()
        if "manifest.json" in files:
            yield Path(place) / "manifest.json"


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def recorded_files(root: Path) -> tuple[str, ...]:
    """Return the names of the files that a run directory's manifest lists, of the journal, and of the manifest.

    It is empty if the manifest is damaged, or was written by another version.
    """
    manifest = read_manifest(root, silent)
    names = [file for entry in manifest["stages"].values() for file in entry["files"]]
    names += [name for name in manifest["rendered"] if Path(name).name == name and name not in ("", ".", "..")]
    caches = [path.name for path in own(root)]
    return (*dict.fromkeys([*names, JOURNAL, *caches]), "manifest.json") if names else ()
