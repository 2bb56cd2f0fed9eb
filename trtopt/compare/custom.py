"""Custom metrics: a function `package.module:function(reference, candidate, labels) -> dict` of the user.

The function is called once per batch, with the outputs of both models by name and the labels of the samples (int64
array, or None without labels). It returns numbers by name. They are averaged over all samples and reported as the
metrics of an output with the function's name.

Touches: imports and runs the user's code, with the current folder importable.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtopt.compare.catalog import METRICS
from trtopt.compare.measures.outputs import Array, Outputs
from trtopt.data.python import current_folder_importable, is_function
from trtopt.errors import UsageError
from trtopt.types import OutputDrift

_UNWRITABLE = frozenset(":=<>,")
"""Characters that a metric's name must not contain, because they are part of the syntax of `--gate`."""


class OwnMetric:
    """Average of one function's numbers over all samples."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.name = source.rpartition(":")[2]
        self._function = load(source)
        self._sums: dict[str, float] = {}
        self._samples = 0

    def add(self, batch: Outputs) -> None:
        """Call the function for one batch.

        Raises:
            UsageError: the function fails, or does not return a dict of numbers with the same names every time.
        """
        count = len(batch.indices)
        labels = None if batch.labels is None else np.array(batch.labels, np.int64)
        try:
            with current_folder_importable():
                returned = self._function(_locked(batch.reference), _locked(batch.candidate), labels)
        except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
            raise UsageError(f"--metric {self.source} failed", why=_said(error)) from error
        numbers = self._numbers(returned)
        if self._samples and numbers.keys() != self._sums.keys():
            raise UsageError(
                f"--metric {self.source} does not return the same names every time",
                why=f"{', '.join(numbers)} after {', '.join(self._sums)}",
                fix="Return every number for every batch",
            )
        for name, number in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + count * number
        self._samples += count

    def drift(self) -> OutputDrift:
        """Return the means over all samples as the metrics of an output."""
        values = {name: total / self._samples for name, total in self._sums.items()}
        return OutputDrift(output=self.name, kind="own", values=values)

    def _numbers(self, returned: Any) -> dict[str, float]:
        """Return the function's result as a dict of floats."""
        if not isinstance(returned, Mapping) or not returned:
            raise UsageError(
                f"--metric {self.source} returned {'an empty dict' if returned == {} else type(returned).__name__}",
                why="it must return a dict of numbers by name",
            )
        numbers = {}
        for name, value in returned.items():
            self._check_name(name)
            number = _number(value)
            if number is None:
                raise UsageError(
                    f"--metric {self.source} returned {name}, which is not a number",
                    why=f"it is {type(value).__name__}",
                )
            numbers[name] = number
        return numbers

    def _check_name(self, name: Any) -> None:
        """Raise UsageError for a name that `--gate` cannot refer to, or that is a metric of trtopt."""
        why = ""
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or _UNWRITABLE & set(name):
            why = "--gate needs a name, as text without : = < > and commas"
        elif name in METRICS:
            why = f"{name} is a metric of trtopt"
        if why:
            raise UsageError(
                f"--metric {self.source} returned the name {name!r}", why=why, fix="Return it under another name"
            )


def opened(sources: Sequence[str]) -> list[OwnMetric]:
    """Return a metric per function.

    Raises:
        UsageError: a function cannot be imported or called, or two have the same name.
    """
    metrics = [OwnMetric(source) for source in sources]
    for i, metric in enumerate(metrics):
        for other in metrics[:i]:
            if other.name == metric.name:
                raise UsageError(
                    f"--metric {other.source} and --metric {metric.source} have the same name",
                    why=f"the report would show both as {metric.name}",
                    fix="Rename one of the functions",
                )
    return metrics


def load(source: str) -> Callable[..., Any]:
    """Import and return the function.

    Raises:
        UsageError: `source` is not written as `package.module:function`, cannot be imported, or cannot be called.
    """
    if not is_function(source):
        raise UsageError(f"--metric {source!r} is not the name of a function", fix="Write package.module:function")
    module, _, name = source.partition(":")
    try:
        with current_folder_importable():
            imported = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
        raise UsageError(
            f"--metric {source} cannot be imported",
            why=_said(error),
            fix="Run in the folder that contains the module, or install it",
        ) from error
    if not callable(imported):
        raise UsageError(f"--metric {source} is not a function", why=f"it is {type(imported).__name__}")
    function: Callable[..., Any] = imported
    return function


def digest(source: str) -> str:
    """Return the SHA-256 of the code that a stored comparison depends on.

    That is the function's file, and all modules below the current folder that are imported with it. Files and modules
    that the function reads only when it is called are not included.

    Raises:
        UsageError: as `load`.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(load(source)))
    except TypeError:  # a built-in function, or a callable object
        file = None
    sha = hashlib.sha256(source.encode())
    for path in sorted({*_modules_here(), *([file] if file else [])}):
        sha.update(Path(path).read_bytes())
    return sha.hexdigest()


def _modules_here() -> list[str]:
    """Return the files of the imported modules that are the user's: below the current folder and not installed."""
    here = f"{Path.cwd()}{os.sep}"
    own = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.startswith(here) or not Path(file).is_file():
            continue
        installed = "site-packages" in file
        if not installed and name.partition(".")[0] != "trtopt":
            own.append(file)
    return own


def _locked(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return read-only views of the arrays: other metrics use them after the function."""
    locked = {}
    for name, array in outputs.items():
        locked[name] = array.view()
        locked[name].flags.writeable = False
    return locked


def _number(value: Any) -> float | None:
    """Return a Python or numpy number, or an array of one element, as a float; None for anything else.

    NaN and Inf are numbers here; they fail every gate.
    """
    array = np.asarray(value)
    return float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
