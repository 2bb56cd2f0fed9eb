"""Plug-in folders: every module of the folder is a plug-in, named on the command line by its file name.

Precisions, calibration methods, kinds of outputs and report formats are such folders. A new plug-in is one file;
nothing else names it. What the plug-ins of a folder share is in folders of their own.

Touches: lists the folder; imports a plug-in when it is used.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from trtopt.errors import UsageError


def names(package: str) -> tuple[str, ...]:
    """Return the names of the plug-ins of a package, sorted."""
    folder = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(folder) if not module.ispkg))


def check(package: str, name: str, what: str, also: tuple[str, ...] = ()) -> None:
    """Check that a plug-in exists; `also` are names that are valid, too.

    Raises:
        UsageError: there is none of that name; the message suggests the closest one. `what` names the sort of plug-in.
    """
    known = (*names(package), *also)
    if name not in known:
        closest = difflib.get_close_matches(name.lower(), known, 1)
        raise UsageError(
            f"unknown {what} {name!r}",
            fix=f"Did you mean {closest[0]}?" if closest else f"Choose one of {', '.join(known)}",
        )


def load(package: str, name: str, what: str) -> ModuleType:
    """Import and return a plug-in.

    Raises:
        UsageError: as `check`.
    """
    check(package, name, what)
    return importlib.import_module(f"{package}.{name}")
