"""`manifest.json` of a run directory: what each stage was made from, what it wrote, and what came out.

Touches: reads the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtopt import __version__
from trtopt.errors import UsageError
from trtopt.events import Emit, Warned, silent

SCHEMA_VERSION = 1


def read_manifest(root: Path, emit: Emit) -> dict[str, Any]:
    """Return the manifest of a run directory: an empty one, with a warning, if it is damaged or of another version."""
    empty: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "trtopt": __version__, "stages": {}, "rendered": {}}
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema_version"] == SCHEMA_VERSION and all(map(_is_entry, manifest["stages"].values())):
            return {**empty, **manifest, "trtopt": __version__, "rendered": dict(manifest.get("rendered", {}))}
        emit(Warned(f"{path} was written by another version of trtopt: every stage runs again"))
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        emit(Warned(f"{path} is damaged: every stage runs again"))
    return empty


def check_own(root: Path) -> None:
    """Check that trtopt wrote the reports in a folder, which a run would replace.

    Raises:
        UsageError: there is a report, but no manifest.
    """
    foreign = [name for name in ("report.json", "report.html") if (root / name).exists()]
    if foreign and not (root / "manifest.json").exists():
        raise UsageError(
            f"{root} contains a {foreign[0]} that trtopt did not write",
            why="it has no manifest.json beside it, and would be replaced",
            fix="Choose another folder with -o",
        )


def read_inputs(root: Path, stage: str) -> dict[str, Any]:
    """Return the inputs of a stage of an earlier run; empty if there is none. The lock is not taken."""
    entry = read_manifest(root, silent)["stages"].get(stage)
    return dict(entry["inputs"]) if entry else {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file's content, in hex."""
    with path.open("rb") as stream:
        sha = hashlib.sha256()
        while chunk := stream.read(1 << 22):
            sha.update(chunk)
    return sha.hexdigest()


def _is_entry(entry: Any) -> bool:
    """Return True for a complete manifest entry whose files all lie directly in the run directory.

    Raises:
        ValueError: the entry is incomplete or lists a file elsewhere.
        KeyError, TypeError: the entry lacks a field or is not an object.
    """
    if not isinstance(entry["key"], str) or not isinstance(entry["inputs"], dict) or "result" not in entry:
        raise ValueError("a stage's entry is damaged")
    # `discard` deletes these files: a forged manifest must not reach files outside the run directory.
    if any(Path(file).name != file or file in ("", ".", "..") for file in entry["files"]):
        raise ValueError("a stage's file is outside the directory")
    return True


def relocate(value: Any, source: Path, target: Path) -> Any:
    """Return a copy of a dataclass in which every path inside `source` points to the same place inside `target`.

    `Path()` as `source` matches all relative paths.
    """
    if isinstance(value, Path):
        inside = not value.is_absolute() if source == Path() else value.is_relative_to(source)
        return target / os.path.relpath(value, source) if inside else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: relocate(item, source, target) for name, item in fields.items()})
    if isinstance(value, tuple):
        return tuple(relocate(item, source, target) for item in value)
    if isinstance(value, Mapping):
        return {key: relocate(item, source, target) for key, item in value.items()}
    return value
