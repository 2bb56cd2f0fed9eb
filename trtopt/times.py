"""The timing caches of TensorRT that trtopt keeps in run directories, one for each GPU and version.

They are no files of a stage: every engine that a run builds adds to them.

Touches: the timing caches of a run directory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtopt.writing import writing

_NAME = re.compile(r"timing-[0-9a-f]{12}\.cache")


def cache_name(key: Mapping[str, Any]) -> str:
    """Return the name of the timing cache for the TensorRT and the GPU in `key`."""
    return f"timing-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]}.cache"


def is_own(path: Path) -> bool:
    """Return whether a timing cache is one of trtopt's, and not one that a user named."""
    return _NAME.fullmatch(path.name) is not None


def own(root: Path) -> list[Path]:
    """Return the timing caches of trtopt in a run directory."""
    return sorted(path for path in root.glob("timing-*.cache") if is_own(path))


def forget(root: Path) -> None:
    """Delete the timing caches of trtopt in a run directory.

    Raises:
        StoreError: the directory cannot be written.
    """
    with writing(root):
        for path in own(root):
            path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a timing cache of a run directory.

    Raises:
        StoreError: the directory cannot be written.
    """
    with writing(path.parent):
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_bytes(data)
        temporary.replace(path)
