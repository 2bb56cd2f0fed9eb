"""The error tree. Every error says what happened, why, and what to do next; each class owns its exit code.

    TrtoptError                      2
    ├── UsageError                   2   a flag or a configuration value is wrong
    ├── ModelError                   2   the model file is missing, corrupt, or cannot be used as it is
    ├── DataError                    2   samples are missing, unreadable, or do not fit the model
    ├── TableError                   2   a calibration table is unreadable or belongs to another model
    ├── CalibrationError             2   no usable scale can be derived from what was observed
    ├── BuildError                   2   TensorRT refused the network
    │   └── AuditError               2   the engine is not in the precision that was asked for
    ├── StoreError                   2   the run directory cannot be read or written
    ├── InterruptedSweepError      130   Ctrl-C ended a sweep; what had been measured was kept
    ├── MissingDependencyError       3   a package is not installed; says which extra to install
    └── EnvironmentUnableError       3   this machine cannot do it (no GPU, no TensorRT)
        └── OutOfMemoryError         3   the memory of the GPU, or of the machine, is exhausted

Verdicts are results, not errors: a failed gate exits 1, and an inconclusive one that the user asked for exits 4
(`trtopt.verdict` decides). Ctrl-C exits 130.

Touches: nothing.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_PASS = 0
EXIT_GATE_FAILED = 1
EXIT_ERROR = 2
EXIT_UNABLE = 3
EXIT_INCONCLUSIVE = 4
EXIT_INTERRUPTED = 130


class TrtoptError(Exception):
    """Base of all errors that trtopt raises on purpose.

    `what` happened, `why` it happened, and `fix`, what to do next; together they print as one line.
    """

    exit_code: ClassVar[int] = EXIT_ERROR

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        line = self.what + (f": {self.why}" if self.why else "") + (f". {self.fix}" if self.fix else "")
        return " ".join(line.split())


class UsageError(TrtoptError):
    """A flag or a configuration value is wrong."""


class ModelError(TrtoptError):
    """The model file is missing, corrupt, or cannot be used as it is."""


class DataError(TrtoptError):
    """Samples are missing, unreadable, or do not fit the model."""


class TableError(TrtoptError):
    """A calibration table is unreadable or belongs to another model."""


class CalibrationError(TrtoptError):
    """No usable scale can be derived from what was observed."""


class BuildError(TrtoptError):
    """TensorRT refused the network."""


class AuditError(BuildError):
    """The engine is not in the precision that was asked for."""


class StoreError(TrtoptError):
    """The run directory cannot be read or written."""


class InterruptedSweepError(TrtoptError):
    """Ctrl-C ended a sweep; what had been measured was kept."""

    exit_code = EXIT_INTERRUPTED


class MissingDependencyError(TrtoptError):
    """A package is not installed."""

    exit_code = EXIT_UNABLE


class EnvironmentUnableError(TrtoptError):
    """This machine cannot do it."""

    exit_code = EXIT_UNABLE


class OutOfMemoryError(EnvironmentUnableError):
    """The memory of the GPU, or of the machine, is exhausted: callers that can, halve the batch and say so."""
