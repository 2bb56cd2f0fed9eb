"""Tree of the errors that trtopt raises. Each says what happened, why, and what to do next, and has an exit code.

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
(`trtopt.verdict` decides). Ctrl-C exits 130, and SIGTERM 143.

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
EXIT_TERMINATED = 143


class TrtoptError(Exception):
    """Base class of all errors that trtopt raises on purpose.

    `what` states what happened, `why` gives the reason, and `fix` tells the user what to do next. `str()` joins the
    three into one line.
    """

    exit_code: ClassVar[int] = EXIT_ERROR
    shown = False
    """True once a report on stdout contains the error."""

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        line = self.what + (f": {self.why}" if self.why else "") + (f". {self.fix}" if self.fix else "")
        return " ".join(line.split())


class UsageError(TrtoptError):
    """Invalid flag or configuration value."""


class ModelError(TrtoptError):
    """Model file that is missing, corrupt, or unusable as it is."""


class DataError(TrtoptError):
    """Samples that are missing, unreadable, or do not fit the model."""


class TableError(TrtoptError):
    """Calibration table that is unreadable or belongs to another model."""


class CalibrationError(TrtoptError):
    """Failure to derive usable scales from the observed values."""


class BuildError(TrtoptError):
    """Network that TensorRT rejects."""


class AuditError(BuildError):
    """Engine whose precision differs from the one requested."""


class StoreError(TrtoptError):
    """Run directory that cannot be read or written."""


class InterruptedSweepError(TrtoptError):
    """Sweep that Ctrl-C ended early; the timings measured so far are kept."""

    exit_code = EXIT_INTERRUPTED


class MissingDependencyError(TrtoptError):
    """Package that is not installed."""

    exit_code = EXIT_UNABLE


class EnvironmentUnableError(TrtoptError):
    """Step that this machine cannot run, for example without a GPU or TensorRT."""

    exit_code = EXIT_UNABLE


class OutOfMemoryError(EnvironmentUnableError):
    """Exhausted GPU or host memory. Callers may retry with half the batch, and report that they did."""
