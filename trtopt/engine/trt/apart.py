"""TensorRT in a process of its own: its parser can crash, and must not take trtopt with it.

TensorRT 8.5.3.1, for example, ends its process with a segmentation fault at a Range over a dynamic size. The child
says which node the parser is at, so that a crash is an error that names it.

Touches: starts a process (`trtopt.child`); the child does what `builder` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trtopt.child import DiedError, Say, Terms, call
from trtopt.engine import BuildPlan
from trtopt.engine.trt.locate import TensorRT, find
from trtopt.errors import BuildError
from trtopt.events import Emit
from trtopt.types import Engine, ShapeRange, Support, TypedModel
from trtopt.writing import cannot_write

_STOP_SECONDS = 30.0
_WRITE_SECONDS = 2.0
"""Time to finish or remove a file; a builder that cannot be cancelled takes longer than anybody would wait."""
_KEEP = "Keep nodes in higher precision with --keep, the products of attention first"
_R = TypeVar("_R")
_A = TypeVar("_A")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A model to parse, and the TensorRT package to do it with."""

    tensorrt: str
    model: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """An engine to build, with the arguments of `builder.build`."""

    tensorrt: str
    typed: TypedModel
    profile: tuple[ShapeRange, ...]
    plan: BuildPlan
    out: Path


def check(trt: TensorRT, model: Path, emit: Emit) -> Support:
    """Return the nodes that TensorRT rejects, as `builder.check`.

    Raises:
        TrtoptError: as `builder.check`.
        BuildError: TensorRT crashed.
    """
    return _call(trt, _check, Check(tensorrt=trt.name, model=model.resolve()), emit)


def build(
    trt: TensorRT, typed: TypedModel, profile: tuple[ShapeRange, ...], plan: BuildPlan, out: Path, *, emit: Emit
) -> Engine:
    """Build an engine, as `builder.build`.

    Raises:
        TrtoptError: as `builder.build`.
        BuildError: TensorRT crashed.
        KeyboardInterrupt: Ctrl-C cancelled the build, and nothing was written.
    """
    return _call(trt, _build, Build(tensorrt=trt.name, typed=typed, profile=profile, plan=plan, out=out), emit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """An engine that trtexec built, with the arguments of `adopted.adopt`."""

    tensorrt: str
    typed: TypedModel
    profile: tuple[ShapeRange, ...]
    path: Path


def adopt(trt: TensorRT, request: Adopt, emit: Emit) -> Engine:
    """Return the description of an engine that trtexec built, as `adopted.adopt`.

    Raises:
        TrtoptError: as `adopted.adopt`.
        BuildError: TensorRT crashed.
    """
    return _call(trt, _adopt, request, emit, loads=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """A model to calibrate, an .npz with its samples (`0 input`, `1 input`, ...), and the file for the cache."""

    tensorrt: str
    model: Path
    samples: Path
    plan: BuildPlan
    out: Path


def native(trt: TensorRT, request: Native, emit: Emit) -> None:
    """Write the calibration cache of TensorRT's own calibrator, as `native.calibrate`.

    Raises:
        TrtoptError: as `native.calibrate`.
        BuildError: TensorRT crashed.
    """
    _call(trt, _native, request, emit)


def _native(request: Native, say: Say) -> Support:
    import numpy as np

    from trtopt.engine.trt.native import calibrate

    trt = _found(request.tensorrt, say)
    feeds: dict[int, dict[str, np.ndarray]] = {}
    with np.load(request.samples, allow_pickle=False) as archive:
        for key in archive.files:
            number, _, name = key.partition(" ")
            feeds.setdefault(int(number), {})[name] = archive[key]
    cache = calibrate(trt, request.model, [feeds[i] for i in sorted(feeds)], request.plan)
    request.out.write_bytes(cache)
    return Support(by=trt.name, rejections=())


def _call(trt: TensorRT, function: Callable[[_R, Say], _A], request: _R, emit: Emit, *, loads: bool = False) -> _A:
    try:
        # After an interrupt, the builder stops at its next step, if it can be cancelled.
        grace = _STOP_SECONDS if trt.can.progress else _WRITE_SECONDS
        return call(function, request, Terms(emit=emit, grace=grace))
    except DiedError as died:
        if loads:
            why = "; ".join(filter(None, [died.cause, died.last_line]))
            raise BuildError(f"{trt.title} crashed while it loaded the engine", why=why, fix="Build it again") from died
        where = f"at {died.at}" if died.at else "while it built the engine"
        cause = f"{died.cause}: most likely it ran out of memory" if died.out_of_memory else died.cause
        # The FP8 builder of TensorRT-RTX 1.7 crashes on the attention of DeBERTa, for fixed sizes, too.
        remedy = "Fix the sizes of dynamic inputs with --shape" if died.at else _KEEP
        advice = f"{remedy}, or use a later TensorRT"
        raise BuildError(
            f"{trt.title} crashed {where}",
            why="; ".join(filter(None, [cause, "" if died.raised else died.last_line])),
            fix=f"{advice}. {died.advice}" if died.advice else advice,
        ) from died


def _check(request: Check, say: Say) -> Support:
    from trtopt.engine.trt import builder

    trt = _found(request.tensorrt, say)
    return Support(by=trt.name, rejections=builder.check(trt, request.model))


def _build(request: Build, say: Say) -> Engine:
    from trtopt.engine.trt import builder

    trt = _found(request.tensorrt, say)
    try:
        return builder.build(trt, request.typed, request.profile, request.plan, request.out, emit=say)
    except OSError as error:
        raise cannot_write(request.out.parent, error) from error


def _adopt(request: Adopt, say: Say) -> Engine:
    from trtopt.engine.trt.adopted import adopt

    return adopt(_found(request.tensorrt, say), request.typed, request.profile, request.path, emit=say)


def _found(package: str, say: Say) -> TensorRT:
    """Return the TensorRT package, whose logger tells the parent which node it is at."""
    from trtopt.engine.trt.diagnosis import logger

    trt = find(package)
    logger(trt.module.__name__).at = say
    return trt
