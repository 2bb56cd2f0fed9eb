"""The user's own metric, `package.module:function(reference, candidate, labels) -> dict`.

It is called once for each run of the models, with the outputs of both by name and the labels of the samples (None where
there are none); the numbers that it returns are averaged over the samples, and are the metrics of an output that has
the function's name.

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
from trtopt.compare.kinds.outputs import Array, Outputs
from trtopt.data.python import current_folder_importable, is_function
from trtopt.errors import UsageError
from trtopt.types import OutputDrift

_UNWRITABLE = frozenset(":=<>,")
"""What a name must not hold for `--gate` to be able to name it."""


class OwnMetric:
    """Averages what one function says of every batch."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.name = source.rpartition(":")[2]
        self._function = load(source)
        self._sums: dict[str, float] = {}
        self._samples = 0

    def add(self, batch: Outputs) -> None:
        """Call the function for one batch.

        Raises:
            UsageError: it fails, or does not return a dict of numbers, with the same names each time.
        """
        count = len(batch.indices)
        labels = None if batch.labels is None else np.array(batch.labels, np.int64)
        try:
            with current_folder_importable():
                made = self._function(_locked(batch.reference), _locked(batch.candidate), labels)
        except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
            raise UsageError(f"--metric {self.source} failed", why=_said(error)) from error
        numbers = self._numbers(made)
        if self._samples and numbers.keys() != self._sums.keys():
            raise UsageError(
                f"--metric {self.source} does not return the same names each time",
                why=f"{', '.join(numbers)} after {', '.join(self._sums)}",
                fix="Return every number for every batch",
            )
        for name, number in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + count * number
        self._samples += count

    def drift(self) -> OutputDrift:
        """Return the means over all samples."""
        values = {name: total / self._samples for name, total in self._sums.items()}
        return OutputDrift(output=self.name, kind="own", values=values)

    def _numbers(self, made: Any) -> dict[str, float]:
        if not isinstance(made, Mapping) or not made:
            raise UsageError(
                f"--metric {self.source} returned {'an empty dict' if made == {} else type(made).__name__}",
                why="it must return a dict of numbers by name",
            )
        found = {}
        for name, value in made.items():
            self._check_name(name)
            found[name] = _number(value)
            if found[name] is None:
                raise UsageError(
                    f"--metric {self.source} returned {name}, which is no number", why=f"it is {type(value).__name__}"
                )
        return {name: number for name, number in found.items() if number is not None}

    def _check_name(self, name: Any) -> None:
        why = ""
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or _UNWRITABLE & set(name):
            why = "a name is text without : = < > and commas, so that --gate can name it"
        elif name in METRICS:
            why = f"trtopt has a metric {name}"
        if why:
            raise UsageError(
                f"--metric {self.source} returned the name {name!r}", why=why, fix="Return it under another name"
            )


def opened(sources: Sequence[str]) -> list[OwnMetric]:
    """Import every function.

    Raises:
        UsageError: one cannot be imported or is no function, or two have the same name.
    """
    found = [OwnMetric(source) for source in sources]
    for i, metric in enumerate(found):
        for other in found[:i]:
            if other.name == metric.name:
                raise UsageError(
                    f"--metric {other.source} and --metric {metric.source} have the same name",
                    why=f"the report would show both as {metric.name}",
                    fix="Rename one of the functions",
                )
    return found


def load(source: str) -> Callable[..., Any]:
    """Import the function.

    Raises:
        UsageError: it is not written `package.module:function`, cannot be imported, or is no function.
    """
    if not is_function(source):
        raise UsageError(f"--metric {source!r} names no function", fix="Write package.module:function")
    module, _, name = source.partition(":")
    try:
        with current_folder_importable():
            found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run
        raise UsageError(
            f"--metric {source} cannot be imported",
            why=_said(error),
            fix="Run in the folder that holds the module, or install it",
        ) from error
    if not callable(found):
        raise UsageError(f"--metric {source} is no function", why=f"it is {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def digest(source: str) -> str:
    """The SHA-256 of the code that a stored comparison depends on: the file that holds the function, and the modules
    below the current folder that it imports at its top. What it reads or imports while it runs is not in it.

    Raises:
        UsageError: see `load`.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(load(source)))
    except TypeError:  # it is built in, or an object that is called
        file = None
    sha = hashlib.sha256(source.encode())
    for path in sorted({*_modules_here(), *([file] if file else [])}):
        sha.update(Path(path).read_bytes())
    return sha.hexdigest()


def _modules_here() -> list[str]:
    """The files of all modules of the user's own, as far as one can tell: below the current folder, not installed."""
    here = f"{Path.cwd()}{os.sep}"
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return [
        file
        for name, file in files.items()
        if isinstance(file, str) and file.startswith(here) and Path(file).is_file()
        if "site-packages" not in file and name.partition(".")[0] != "trtopt"
    ]


def _locked(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays as a function may read, and not change them: they are measured after it."""
    locked = {}
    for name, array in outputs.items():
        locked[name] = array.view()
        locked[name].flags.writeable = False
    return locked


def _number(value: Any) -> float | None:
    """A Python or numpy number, or an array of one, as a float; NaN and Inf are numbers, and fail their gates."""
    array = np.asarray(value)
    return float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
