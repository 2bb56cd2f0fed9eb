"""Flags of NVIDIA's trtexec, answered with the command of trtopt that does the same.

Touches: reads the first bytes of a calibration cache.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from trtopt.errors import UsageError

_PRECISIONS = ("fp16", "bf16", "int8", "fp8")
_SHAPES = ("minShapes", "optShapes", "maxShapes")
_CACHE = b"TRT-"
"""First bytes of a calibration cache that TensorRT wrote."""


def _precision(given: dict[str, str], typed: Collection[str] = ()) -> list[str]:
    """Return the lowest of the precisions: trtexec may choose any of them for each layer.

    A flag of ours that was `typed` is not repeated.
    """
    if {"-p", "--precision"} & {*typed}:
        return []
    named = [name for name in reversed(_PRECISIONS) if name in given]
    lowest = "int8" if "best" in given or "int8" in given else named[0] if named else ""
    if not lowest:
        return []
    needs_data = lowest in ("int8", "fp8") and "calib" not in given and "--calib" not in typed
    return ["--precision", lowest, *(["--calib", "data/calib"] if needs_data else [])]


def _shapes(given: dict[str, str]) -> list[str]:
    """Return `--shape` flags: trtexec separates inputs by commas, and a name from its shape by the last colon."""
    by_input: dict[str, dict[str, str]] = {}
    for flag in (*_SHAPES, "shapes"):
        for part in given.get(flag, "").split(","):
            name, _, shape = part.strip().rpartition(":")
            if name:
                by_input.setdefault(name.strip("'\""), {})[flag] = shape
    words = []
    for name, shapes in by_input.items():
        fixed = shapes.get("shapes") or next(shapes[flag] for flag in ("optShapes", *_SHAPES) if flag in shapes)
        sizes = [shapes.get(flag, fixed) for flag in _SHAPES]
        words += ["--shape", f"{name}={fixed if len(set(sizes)) == 1 else ':'.join(sizes)}"]
    return words


def _kept(given: dict[str, str]) -> list[str]:
    """Return a `--keep` flag for each layer that is not quantized; trtexec's names of layers are those of nodes."""
    words = []
    for part in given["layerPrecisions"].split(","):
        layer, _, precision = part.strip().rpartition(":")
        if precision in ("fp32", "fp16"):
            words += ["--keep", f"{layer}=fp32" if precision == "fp32" else layer]
    return words


def _workspace(given: dict[str, str]) -> list[str]:
    """Return the limit of the builder's memory; without a unit it is in MiB."""
    text = given.get("workspace") or given.get("memPoolSize", "").partition("workspace:")[2].partition(",")[0]
    number, unit = re.fullmatch(r"([0-9.]*)\s*([A-Za-z]*)", text).groups() if text else ("", "")  # type: ignore[union-attr]
    units = {"": "MiB", "B": "B", "K": "KiB", "KIB": "KiB", "M": "MiB", "MIB": "MiB", "G": "GiB", "GIB": "GiB"}
    return ["--workspace", f"{number}{units.get(unit.upper(), 'MiB')}"] if number else []


def _valued(flag: str, ours: str) -> Callable[[dict[str, str]], list[str]]:
    return lambda given: [ours, given[flag]] if given[flag] else [ours]


# What `trtopt convert` takes in place of each flag. An empty list: it needs nothing for it.
_CONVERT: dict[str, Callable[[dict[str, str]], list[str]]] = {
    "fp16": _precision,
    "bf16": _precision,
    "int8": _precision,
    "fp8": _precision,
    "best": _precision,
    "noTF32": lambda _: [],
    "stronglyTyped": lambda _: [],
    "minShapes": _shapes,
    "optShapes": _shapes,
    "maxShapes": _shapes,
    "shapes": _shapes,
    "explicitBatch": lambda _: [],
    "layerPrecisions": _kept,
    "precisionConstraints": lambda _: [],
    "calib": _valued("calib", "--calib-table"),
    "saveEngine": lambda given: ["-o", str(Path(given["saveEngine"]).with_suffix("")) or "run"],
    "memPoolSize": _workspace,
    "workspace": _workspace,
    "builderOptimizationLevel": _valued("builderOptimizationLevel", "--optimization-level"),
    "versionCompatible": lambda _: ["--version-compatible"],
    "hardwareCompatibilityLevel": lambda _: ["--hardware-compatible"],
    "timingCacheFile": _valued("timingCacheFile", "--timing-cache"),
    "tacticSources": _valued("tacticSources", "--tactic-sources"),
    "skipInference": lambda _: [],
    "buildOnly": lambda _: [],
    "onnx": lambda _: [],
}
# The same for `trtopt bench`, if there is an engine to load.
_BENCH: dict[str, Callable[[dict[str, str]], list[str]]] = {
    "loadEngine": lambda _: [],
    "shapes": _shapes,
    "useCudaGraph": lambda _: [],
    "duration": _valued("duration", "--seconds"),
    "iterations": lambda _: [],
    "warmUp": lambda _: [],
    "avgRuns": lambda _: [],
}


def refuse(arguments: Sequence[str]) -> None:
    """Refuse a command line with flags of trtexec.

    Raises:
        UsageError: there is one; the message has the command line of trtopt that does the same.
    """
    given, rest = _split(arguments)
    if not given:
        return
    command, table = ("bench", _BENCH) if "loadEngine" in given else ("convert", _CONVERT)
    others = rest[1:] if rest[:1] == [command] else rest
    model = [given.get("loadEngine") or given.get("onnx", "")]
    words = [command, *(model if model[0] else [] if others else ["model.onnx"]), *others]
    typed = {"-p" if word == "-p" else word.partition("=")[0] for word in others}
    for translate in dict.fromkeys(table[name] for name in given if name in table):
        words += translate(given, typed) if translate is _precision else translate(given)
    words += ["--no-compare"] if command == "convert" and not {"--data", "--calib", "--no-compare"} & {*words} else []
    listed = ", ".join(f"--{name}" for name in given)
    raise UsageError(
        f"{listed}: {'a flag' if len(given) == 1 else 'flags'} of trtexec",
        fix=f"Write: trtopt {shlex.join(words)}",
    )


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the flags of trtexec with their values, and the other words."""
    given: dict[str, str] = {}
    rest = []
    words = iter(arguments)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if word == "--calib":  # trtopt's flag, with a value of its own
            value = next(words, "")
            word = f"--calib={value}"
        known = word.startswith("--") and (name in _CONVERT or name in _BENCH)
        if name == "workspace" and known:  # ours has a unit
            known = value.isdigit()
        if known and (name != "calib" or _is_cache(value)):
            given[name] = value
        else:
            rest += word.split("=", 1) if name == "calib" and known else [word]
    return given, rest


def _is_cache(path: str) -> bool:
    """Return whether a file is a calibration cache of TensorRT."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(len(_CACHE)) == _CACHE
    except (OSError, ValueError):  # not a file: the command says what is wrong
        return False
