"""Flags that have no effect beside others. Typing one is an error: it would be dropped without a word.

Settings of a file or of the environment also serve other runs, so only flags that were typed are refused.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trtopt.cli.settings import is_typed
from trtopt.errors import UsageError

Values = Mapping[str, Any]
"""The value of each parameter of the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Flags of `commands` that have no effect `when` the values say so, and why, and what to do."""

    commands: tuple[str, ...]
    flags: tuple[str, ...]
    when: Callable[[Values], bool]
    why: str
    fix: str = "Leave it out"


def _has_no_scales(values: Values) -> bool:
    from trtopt.errors import TrtoptError
    from trtopt.precision import precision

    try:
        return not precision(values["precision"]).FORMAT.scaled
    except TrtoptError:  # the command refuses an unknown precision
        return False


def _builds_nothing(values: Values) -> bool:
    from trtopt.engine import compiler
    from trtopt.errors import TrtoptError

    try:
        return compiler(values["backend"]) is None
    except TrtoptError:  # the command refuses an unknown backend
        return False


_BUILDER = ("tensorrt", "workspace", "optimization_level", "version_compatible", "hardware_compatible", "timing_cache")
_IMAGES = ("recipe", "skip_bad", "samples")

IDLE = (
    Idle(
        commands=("convert", "inspect"),
        flags=("rest",),
        when=_has_no_scales,
        why="only int8 and fp8 have a fallback precision",
        fix="Leave it out, or choose --precision int8",
    ),
    Idle(
        commands=("convert",),
        flags=("method", "calib_table", "no_equalization", "no_bias_correction", "no_guard", "if_faster"),
        when=_has_no_scales,
        why="only int8 and fp8 are calibrated",
        fix="Leave it out, or choose --precision int8",
    ),
    Idle(
        commands=("convert",),
        flags=("method",),
        when=lambda values: values["calib_table"] is not None,
        why="the scales are read from --calib-table",
    ),
    Idle(
        commands=("convert",),
        flags=(*_BUILDER, "tactic_sources"),
        when=_builds_nothing,
        why="--backend onnxruntime builds no engine",
        fix="Leave out one of them",
    ),
    Idle(
        commands=("tune",),
        flags=("workspace", "tactic_sources"),
        when=_builds_nothing,
        why="--backend onnxruntime builds no engine",
        fix="Leave out one of them",
    ),
    Idle(
        commands=("convert",),
        flags=_IMAGES,
        when=lambda values: not (values["data"] or values["calib"]),
        why="there are no samples to read",
        fix="Add --data DATA or --calib DATA",
    ),
    Idle(
        commands=("export", "bench"),
        flags=_IMAGES,
        when=lambda values: not values["data"],
        why="there are no samples to read",
        fix="Add --data DATA",
    ),
    Idle(
        commands=("bench",),
        flags=("tf32", "cuda_graphs"),
        when=lambda values: values["device"] == "cpu",
        why="it applies to a GPU, not to --device cpu",
    ),
    Idle(
        commands=("bench",),
        flags=("seconds", "ray"),
        when=lambda values: values["max_batch"],
        why="it applies to a sweep, not to --max-batch",
    ),
    Idle(
        commands=("calibrate", "sensitivity", "compare", "predict"),
        flags=("shard",),
        when=lambda values: values["ray"],
        why="--ray divides the data itself",
        fix="Leave out one of them",
    ),
    Idle(
        commands=("bench", "calibrate", "sensitivity", "compare", "predict"),
        flags=("ray_cores",),
        when=lambda values: not values["ray"],
        why="there are no workers",
        fix="Add --ray auto",
    ),
    Idle(
        commands=("calibrate", "sensitivity", "compare"),
        flags=("shard", "ray"),
        when=lambda values: values["dry_run"],
        why="--dry-run runs nothing",
        fix="Leave out one of them",
    ),
    Idle(
        commands=("bench",),
        flags=("batch", "max_batch", "memory_limit", "device", "tf32", "cuda_graphs", "ray", "out"),
        when=lambda values: values["server"] is not None,
        why="--server measures a server that runs already",
    ),
    Idle(
        commands=("watch",),
        flags=("listen",),
        when=lambda values: values["triton"] is not None,
        why="Prometheus can read the server's own metrics",
    ),
    Idle(
        commands=("watch",),
        flags=("run",),
        when=lambda values: values["triton"] is not None,
        why="it is about the memory of this machine's GPUs",
    ),
    Idle(
        commands=("watch",),
        flags=("alert", "model"),
        when=lambda values: values["triton"] is None,
        why="it applies to a server",
        fix="Add --triton URL",
    ),
    Idle(
        commands=("bench",),
        flags=("rate", "timeout", "poisson"),
        when=lambda values: values["server"] is None,
        why="it applies to a server",
        fix="Add --server URL",
    ),
    Idle(
        commands=("convert", "tune", "sensitivity", "calibrate", "compare", "export"),
        flags=("force",),
        when=lambda values: values["dry_run"],
        why="--dry-run runs nothing",
        fix="Leave out one of them",
    ),
    Idle(
        commands=("convert", "tune", "sensitivity", "calibrate", "compare", "export", "bench", "package", "fleet"),
        flags=("quiet",),
        when=lambda values: values["verbose"],
        why="it contradicts --verbose",
        fix="Leave out one of them",
    ),
)


def refuse(context: Any) -> None:
    """Refuse the first flag that was typed and has no effect.

    Raises:
        UsageError: there is one.
    """
    for entry in IDLE:
        if context.info_name not in entry.commands:
            continue
        typed = [name for name in entry.flags if is_typed(context, name)]
        if typed and entry.when(context.params):
            raise UsageError(f"--{typed[0].replace('_', '-')} has no effect", why=entry.why, fix=entry.fix)
