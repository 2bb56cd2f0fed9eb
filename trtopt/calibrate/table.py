"""Calibration tables, and their two file formats: trtopt's JSON and TensorRT's calibration cache.

A cache is a text file. It has a header, `TRT-<version>-<algorithm>`, and one line `name: hex` per tensor, where hex is
the big-endian bit pattern of the float32 scale (amax / 127) without leading zeros. TensorRT writes `0` for a tensor
whose values were all zero or that had no values. Such a line does not hold a scale and is ignored.

Touches: the files that it is asked to read and write.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trtopt.calibrate import method
from trtopt.calibrate.histogram import Histogram
from trtopt.data.dataset import Dataset
from trtopt.errors import CalibrationError, TableError
from trtopt.formats import INT8, Format
from trtopt.types import CalibrationTable, OnnxModel

LEVELS = INT8.max
SCHEMA = "trtopt.calibration"
SCHEMA_VERSION = 2
CACHE_VERSION = 101200
"""TensorRT version in the header of a cache: 10.12.0, the oldest that trtopt targets. TensorRT requires one."""
CACHED = INT8.name
"""Precision that TensorRT's calibration caches are for."""

_SMALLEST = float(np.finfo(np.float32).tiny)
_HEADER = re.compile(r"TRT-\w+-\w+")
_HEX = re.compile(r"[0-9a-fA-F]{1,8}")
_NAMED = 5
"""Number of missing tensors to name in an error message."""

_Value = TypeVar("_Value")


def make_table(
    method_name: str,
    histograms: Mapping[str, Histogram],
    *,
    model: OnnxModel,
    dataset: Dataset,
    format: Format = INT8,
) -> CalibrationTable:
    """Build a table with one scale per histogram: float32(amax / 127), at least the smallest normal float32.

    Args:
        method_name: the calibration method, not `AUTO`.
        histograms: the values of each tensor over all samples, without NaN and masks (see `Histogram.unmasked`).
        model: the model that was calibrated.
        dataset: the samples that it was calibrated with.
        format: the number type whose error the method minimizes. The scales are amax / 127 for each of them.

    Raises:
        UsageError: the method is unknown.
        CalibrationError: a tensor had no values, or was NaN.
    """
    amax = method(method_name)
    scales: dict[str, float] = {}
    for name, histogram in histograms.items():
        histogram.check(name, "at least one sample")
        if not histogram.total:
            raise CalibrationError(
                f"tensor {name!r} was empty for every sample",
                why="a scale cannot be derived without values",
                fix="Give samples that reach this part of the model",
            )
        scales[name] = to_scale(amax(histogram, format))
    return CalibrationTable(
        method=method_name,
        scales=scales,
        ranges={name: histogram.amax for name, histogram in histograms.items()},
        samples=dataset.samples,
        model_digest=model.digest,
        data_digest=dataset.digest,
    )


def to_scale(amax: float) -> float:
    """Return the float32 scale of a symmetric 8-bit type for magnitudes up to `amax`: positive and finite."""
    return max(float(np.float32(amax / LEVELS)), _SMALLEST)


def check_table(table: CalibrationTable, model: OnnxModel, needed_tensors: Iterable[str]) -> None:
    """Raise unless the table may be used for this model.

    A table that does not record its model, such as a TensorRT cache, is checked by tensor names only.

    Raises:
        TableError: the table was made for another model, or lacks a tensor of `needed_tensors`.
    """
    if table.model_digest and table.model_digest != model.digest:
        raise TableError(
            f"the calibration table was made for another model than {model.path.name}",
            why=f"digest {table.model_digest[:12]} is not {model.digest[:12]}",
            fix="Calibrate this model; a table needs the same --rest and the same dynamic dimensions",
        )
    missing = [name for name in dict.fromkeys(needed_tensors) if name not in table.scales]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise TableError(
            f"the calibration table lacks {len(missing)} of the scales that {model.path.name} needs",
            why=", ".join(repr(name) for name in missing[:_NAMED]) + more,
            fix="Calibrate this model; tensor names change when a model is exported again",
        )


def write_json(
    table: CalibrationTable, path: Path, histograms: Mapping[str, Histogram] | None = None, format: Format = INT8
) -> None:
    """Write the table as JSON, with statistics of the tensors in `histograms`.

    The statistics of a tensor are:

    - `threshold`: the largest magnitude that is represented (127 scales);
    - `clipped`: the share of values more than half a step of the type above it, whose error exceeds a rounding error;
    - `zeros`: the share of zeros;
    - `values`: the number of values.
    """
    tensors: dict[str, dict[str, float | int | str]] = {}
    for name, scale in table.scales.items():
        tensors[name] = {"scale": scale}
        if name in table.ranges:
            tensors[name]["amax"] = table.ranges[name]
        if histograms and name in histograms:
            tensors[name].update(_statistics(scale, histograms[name], format))
    document = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "precision": table.precision,
        "method": table.method,
        "tried": dict(table.tried),
        "samples": table.samples,
        "model_digest": table.model_digest,
        "data_digest": table.data_digest,
        "tensors": tensors,
        "fingerprints": list(table.fingerprints),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_bytes(text.encode() + b"\n")


def _statistics(scale: float, histogram: Histogram, format: Format) -> dict[str, float | int | str]:
    return {
        "threshold": LEVELS * scale,
        "clipped": histogram.share_above(scale * LEVELS / format.max * format.clips_from),
        "zeros": histogram.zeros / max(histogram.total, 1),
        "values": histogram.total,
    }


def write_cache(table: CalibrationTable, path: Path, *, version: int = CACHE_VERSION) -> None:
    """Write the scales as a TensorRT calibration cache.

    Args:
        table: the scales.
        path: the file to write.
        version: TensorRT's version number for the header (8601 for 8.6.1, 101200 for 10.12.0).

    Raises:
        TableError: a tensor's name contains a line break, which the format cannot represent.
    """
    lines = [f"TRT-{version}-EntropyCalibration2"]
    for name, scale in table.scales.items():
        if "\n" in name:
            raise TableError(
                f"tensor {name!r} cannot be written to a TensorRT calibration cache",
                why="its name contains a line break",
            )
        lines.append(f"{name}: {struct.pack('>f', scale).hex()}")
    path.write_bytes("\n".join([*lines, ""]).encode())


def read_table(path: Path) -> CalibrationTable:
    """Read a table from trtopt's JSON or from a TensorRT calibration cache.

    The `method` of a table from a cache is the header of the cache.

    Raises:
        TableError: the file cannot be read, is in neither format, is damaged, or holds a scale that is not positive and
            finite.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise TableError(f"calibration table {path} cannot be read", why=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not a calibration table", why="it is not a text file") from error
    if text.startswith("TRT-"):
        return _from_cache(path, text)
    if text.lstrip().startswith("{"):
        return _from_json(path, text)
    raise TableError(
        f"{path} is not a calibration table",
        why="it is neither trtopt's JSON nor a TensorRT calibration cache, which starts with TRT-",
    )


def _from_cache(path: Path, text: str) -> CalibrationTable:
    header, *lines = (line.removesuffix("\r") for line in text.split("\n"))
    if not _HEADER.fullmatch(header):
        raise TableError(f"{path} is not a TensorRT calibration cache", why=f"its first line is {header[:60]!r}")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        # Names may contain ": " themselves, so the last one separates.
        name, separator, digits = line.rpartition(": ")
        if not separator or not name or not _HEX.fullmatch(digits):
            raise _damaged(path, f"line {number} must be 'name: hexadecimal scale', not {line[:60]!r}")
        if name in scales:
            raise _damaged(path, f"line {number} is a second scale of {name!r}")
        scale = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]
        if scale != 0:
            scales[name] = _positive(path, f"the scale of {name!r}", scale)
    return CalibrationTable(method=header, scales=scales)


def _from_json(path: Path, text: str) -> CalibrationTable:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its JSON is invalid ({error})") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise TableError(f"{path} is not a calibration table", why=f"its schema is not {SCHEMA}")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise TableError(
            f"calibration table {path} has another schema version",
            why=f"schema_version is {document.get('schema_version')!r}, this trtopt reads {SCHEMA_VERSION}",
            fix="Calibrate again, or use the version of trtopt that wrote it",
        )
    tensors: dict[str, object] = _field(path, document, "tensors", dict)
    scales: dict[str, float] = {}
    ranges: dict[str, float] = {}
    for name, entry in tensors.items():
        if not isinstance(entry, dict):
            raise _damaged(path, f"the entry of {name!r} is not an object")
        scales[name] = _positive(path, f"the scale of {name!r}", entry.get("scale"))
        if "amax" in entry:
            ranges[name] = _magnitude(path, f"the amax of {name!r}", entry["amax"])
    tried: dict[str, object] = _field(path, document, "tried", dict)
    fingerprints: list[object] = _field(path, document, "fingerprints", list)
    return CalibrationTable(
        method=_field(path, document, "method", str),
        scales=scales,
        precision=_field(path, document, "precision", str),
        ranges=ranges,
        tried={name: _decibels(path, name, value) for name, value in tried.items()},
        samples=_field(path, document, "samples", int),
        model_digest=_field(path, document, "model_digest", str),
        data_digest=_field(path, document, "data_digest", str),
        fingerprints=tuple(str(fingerprint) for fingerprint in fingerprints),
    )


def _field(path: Path, document: Mapping[str, Any], key: str, expected: type[_Value]) -> _Value:
    """Return the value of a key. Raise TableError unless it has the expected type."""
    value = document.get(key)
    if not isinstance(value, expected):
        raise _damaged(path, f"{key} is missing or of the wrong type")
    return value


def _magnitude(path: Path, what: str, value: object) -> float:
    """Return a value as float32. Raise TableError unless it is finite there and not negative."""
    # NaN fails the comparison as well.
    if not isinstance(value, int | float) or not 0 <= value <= float(np.finfo(np.float32).max):
        raise _damaged(path, f"{what} is {value!r}; it must be finite and not negative")
    return float(np.float32(value))


def _decibels(path: Path, method: str, value: object) -> float:
    if not isinstance(value, int | float):
        raise _damaged(path, f"tried: the SQNR of {method} is {value!r}, not a number")
    return float(value)


def _positive(path: Path, what: str, value: object) -> float:
    """Return a value as float32. Raise TableError unless it is finite there and positive."""
    number = _magnitude(path, what, value)
    if not number:
        raise _damaged(path, f"{what} is {value!r}; it must be positive")
    return number


def _damaged(path: Path, why: str) -> TableError:
    return TableError(f"calibration table {path} is damaged", why=why, fix="Calibrate again")
