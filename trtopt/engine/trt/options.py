"""Options of TensorRT's builder: validation, the builder configuration, and the timing cache.

Touches: reads and writes the timing cache.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtopt.engine import BuildPlan
from trtopt.engine.trt.locate import TensorRT
from trtopt.engine.trt.platforms import Platform
from trtopt.engine.trt.versions import RTX, RTX_DEVICES, Abilities
from trtopt.errors import UsageError
from trtopt.events import Emit, Warned
from trtopt.times import is_own

_LEVELS = range(6)
_TACTIC_SOURCES = ("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
"""The tactic sources of TensorRT 8.5 to 10 (`TacticSource` in NVIDIA's API reference)."""


def check_options(trt: TensorRT, options: BuildPlan) -> None:
    """Raise a UsageError for an option that has an invalid value or that this TensorRT does not support."""
    unsupported = []
    # TensorRT-RTX 1.7 ignores --timing-cache and --hardware-compatible, and fails late on --version-compatible.
    if trt.name == RTX:
        if options.timing_cache is not None:
            unsupported.append(("--timing-cache", "it ignores the timing cache"))
        if options.version_compatible:
            unsupported.append(("--version-compatible", "it has no lean runtime to include in the engine"))
        if options.hardware_compatible:
            unsupported.append(("--hardware-compatible", f"its engines are always {RTX_DEVICES}"))
    unsupported += _refused(trt.can, options)
    if options.tactic_sources:
        check_tactic_sources(trt, options.tactic_sources)
    for flag, why in unsupported:
        raise UsageError(f"{trt.title} cannot use {flag}", why=why, fix=f"Omit {flag}")


def check_target_options(target: Platform, options: BuildPlan) -> None:
    """Raise a UsageError for an option with an invalid value, or that the TensorRT of a platform does not support."""
    for flag, why in _refused(target.can, options):
        raise UsageError(f"{target.title} ({target.name}) cannot use {flag}", why=why, fix=f"Omit {flag}")
    if options.tactic_sources:
        _mask(target.title, dict.fromkeys(_TACTIC_SOURCES, 0), 0, options.tactic_sources)


def _refused(can: Abilities, options: BuildPlan) -> list[tuple[str, str]]:
    """Return the options with invalid values, and those that a TensorRT with these abilities lacks, with reasons."""
    unsupported = []
    if options.optimization_level is not None and options.optimization_level not in _LEVELS:
        unsupported.append(("--optimization-level", f"{options.optimization_level} is not between 0 and {_LEVELS[-1]}"))
    if options.workspace_bytes is not None and options.workspace_bytes <= 0:
        unsupported.append(("--workspace", f"{options.workspace_bytes} bytes are too few"))
    if not can.builder_options:
        given = {
            "--optimization-level": options.optimization_level is not None,
            "--version-compatible": options.version_compatible,
            "--hardware-compatible": options.hardware_compatible,
        }
        unsupported += [(flag, "it came with TensorRT 8.6") for flag, asked in given.items() if asked]
    return unsupported


def configure(trt: TensorRT, builder: Any, options: BuildPlan) -> Any:
    """Return the configuration of the builder for these options, without precision flags."""
    module, config = trt.module, builder.create_builder_config()
    # TF32 rounds the factors of FP32 products to 10 bits of mantissa. What was decided as FP32 is computed in FP32.
    if hasattr(module.BuilderFlag, "TF32"):
        config.clear_flag(module.BuilderFlag.TF32)
    # With any lower verbosity, the engine inspector does not report the types of layers, which the audits need.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    # Without it, TensorRT 8.5 did not end within 6 minutes on a small transformer in FP16. It is the default of 8.6.
    if trt.can.preview_dynamic:
        config.set_preview_feature(module.PreviewFeature.FASTER_DYNAMIC_SHAPES_0805, True)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(module.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:  # Ampere and later: the only level that covers several generations
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.tactic_sources:
        config.set_tactic_sources(_tactic_sources(trt, config.get_tactic_sources(), options.tactic_sources))
    if options.timing_cache is not None:
        cache = config.create_timing_cache(_read_timing_cache(options.timing_cache))
        # False: do not ignore that a cache is from another version or GPU.
        if cache is None or not config.set_timing_cache(cache, False):
            if not is_own(options.timing_cache):
                raise UsageError(
                    f"{options.timing_cache} is not a timing cache of {trt.title} on this GPU", fix="Name another file"
                )
            config.set_timing_cache(config.create_timing_cache(b""), False)
    return config


def check_tactic_sources(trt: TensorRT, text: str) -> None:
    """Raise UsageError for tactic sources that this TensorRT does not have."""
    if not hasattr(trt.module, "TacticSource"):
        raise UsageError(f"{trt.title} cannot use --tactic-sources", why="it has none", fix="Omit --tactic-sources")
    _tactic_sources(trt, 0, text)


def _tactic_sources(trt: TensorRT, default: int, text: str) -> int:
    """Return the bit mask of the tactic sources: `default` with the changes in `text`."""
    known = {name.upper(): int(value) for name, value in trt.module.TacticSource.__members__.items()}
    return _mask(trt.title, known, default, text)


def _mask(title: str, known: Mapping[str, int], default: int, text: str) -> int:
    """Return the bit mask `default` with the changes in `text`, given the bits of the known tactic sources."""
    mask = default
    for part in text.split(","):
        sign, name = part.strip()[:1], part.strip()[1:].upper()
        if sign not in ("+", "-") or name not in known:
            raise UsageError(
                f"--tactic-sources {text}: {part.strip() or 'an empty part'} is not one of them",
                fix=f"Write it like -{next(iter(known))}: {title} has {', '.join(known)}",
            )
        bit = 1 << known[name]
        mask = mask | bit if sign == "+" else mask & ~bit
    return mask


def _read_timing_cache(path: Path) -> bytes:
    """Return the content of a timing cache; empty if it does not exist yet."""
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"the timing cache {path} cannot be read", why=error.strerror or str(error)) from error


def save_timing_cache(path: Path, config: Any, emit: Emit) -> None:
    """Write the timing cache after a build, with a warning if that fails."""
    try:
        write(path, memoryview(config.get_timing_cache().serialize()))
    except OSError as error:  # only a warning: the engine is complete, and the cache only makes later builds faster
        emit(Warned(f"the timing cache {path} cannot be written: {error.strerror or error}"))


def write(path: Path, data: memoryview) -> None:
    """Write a file under a temporary name and rename it, so that it is never incomplete."""
    temporary = path.with_name(f".tmp-{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
