from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtopt.calibrate import method_names
from trtopt.calibrate.histogram import Histogram
from trtopt.calibrate.table import check_table, make_table, read_table, to_scale, write_cache, write_json
from trtopt.data.dataset import Dataset
from trtopt.errors import CalibrationError, TableError, UsageError
from trtopt.types import CalibrationTable, OnnxModel

MODEL = OnnxModel(path=Path("net.onnx"), digest="a" * 64, opset=17, inputs=(), outputs=())
DATA = Dataset(source="data", digest="b" * 64, ids=("0", "1"), load=lambda i: {}, batched=True)

SCALES = st.floats(2.0**-126, 2.0**120, width=32)
NAMES = st.text(min_size=1, max_size=12).filter(lambda name: "\n" not in name) | st.sampled_from(
    ["a: b", "(Unnamed Layer* 4) [Fully Connected]_output", "/model.0/conv/Conv_output_0", ": ", "x: 3f800000", "\r"]
)
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tables(draw: st.DrawFn) -> CalibrationTable:
    scales = draw(st.dictionaries(NAMES, SCALES, max_size=6))
    return CalibrationTable(
        method=draw(st.sampled_from(method_names())),
        scales=scales,
        precision=draw(st.sampled_from(["int8", "fp8"])),
        ranges={name: draw(SCALES) for name in scales},
        tried=draw(st.dictionaries(st.sampled_from(method_names()), st.floats(-300, 300))),
        samples=draw(st.integers(0, 10**6)),
        model_digest=draw(st.sampled_from(["", "c" * 64])),
        data_digest="d" * 64,
        fingerprints=draw(st.sampled_from([(), ("00ff", "11ee")])),
    )


def histogram(*values: float) -> Histogram:
    histogram = Histogram()
    histogram.add(np.array(values, np.float32))
    return histogram


def table(**scales: float) -> CalibrationTable:
    return CalibrationTable(method="entropy", scales=scales)


@QUICK
@given(tables())
def test_json_round_trips_bit_for_bit(tmp_path: Path, original: CalibrationTable) -> None:
    write_json(original, tmp_path / "t.json")
    assert read_table(tmp_path / "t.json") == original


@QUICK
@given(tables())
def test_a_cache_round_trips_the_scales_bit_for_bit(tmp_path: Path, original: CalibrationTable) -> None:
    write_cache(original, tmp_path / "t.cache")
    read = read_table(tmp_path / "t.cache")
    assert read.scales == original.scales
    assert list(read.scales) == list(original.scales)


def test_a_cache_is_written_as_tensorrt_writes_it(tmp_path: Path) -> None:
    write_cache(table(data=float(np.float32(0.0078740157)), out=2.0), tmp_path / "t", version=8601)
    assert (tmp_path / "t").read_text() == "TRT-8601-EntropyCalibration2\ndata: 3c010204\nout: 40000000\n"


def test_a_cache_written_by_tensorrt_is_read(tmp_path: Path) -> None:
    # Lines as TensorRT 8 writes them: unnamed layers with a number, and `0` for a tensor of zeros.
    text = (
        "TRT-8401-EntropyCalibration2\r\ninput: 3caa54fc\r\n(Unnamed Layer* 64) [Shuffle]_output: 0\r\n371: 3CAA54FC\n"
    )
    (tmp_path / "c").write_bytes(text.encode())
    read = read_table(tmp_path / "c")
    assert read.method == "TRT-8401-EntropyCalibration2"
    assert read.scales == {"input": 0.02079247683286667, "371": 0.02079247683286667}


def test_a_name_with_a_line_break_cannot_go_into_a_cache(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="line break"):
        write_cache(CalibrationTable(method="mse", scales={"a\nb": 1.0}), tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "neither"),
        (b"\x89PNG\r\n\xff", "not a text file"),
        (b"hello", "neither"),
        (b"TRT-8401\nx: 3f800000\n", "first line"),
        (b"TRT-8401-EntropyCalibration2\nx 3f800000\n", "line 2"),
        (b"TRT-8401-EntropyCalibration2\nx: 3f80000g\n", "line 2"),
        (b"TRT-8401-EntropyCalibration2\nx: 3f8000000\n", "line 2"),
        (b"TRT-8401-EntropyCalibration2\ny: 1\nx: \n", "line 3"),
        (b"TRT-8401-EntropyCalibration2\nx: bf800000\n", "-1.0"),
        (b"TRT-8401-EntropyCalibration2\nx: 7fc00000\n", "nan"),
        (b"TRT-8401-EntropyCalibration2\nx: 7f800000\n", "inf"),
        (b"TRT-8401-EntropyCalibration2\nx: 3f800000\nx: 3f800001\n", "a second scale of 'x'"),
        (b"{", "JSON is invalid"),
        (b'{"a":' * 100_000, "JSON is invalid"),
        (b"{}", "schema is not"),
        (b'{"schema": "trtopt.calibration"}', "schema_version is None"),
        (b'{"schema": "trtopt.calibration", "schema_version": 99}', "schema_version is 99"),
        (b'{"schema": "trtopt.calibration", "schema_version": 2}', "tensors is missing"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_in_one_line(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "t").write_bytes(text)
    with pytest.raises(TableError, match=why) as caught:
        read_table(tmp_path / "t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", ["0", "-1", "NaN", "Infinity", "1e39", "1e-60", '"1"', "null", "[]", "1e999"])
def test_a_json_scale_that_is_not_positive_and_finite_is_refused(tmp_path: Path, scale: str) -> None:
    write_json(table(x=0.5), tmp_path / "t")
    (tmp_path / "t").write_text((tmp_path / "t").read_text().replace("0.5", scale))
    with pytest.raises(TableError, match="the scale of 'x'"):
        read_table(tmp_path / "t")


@pytest.mark.parametrize(
    "key", ["tensors", "precision", "method", "tried", "samples", "model_digest", "data_digest", "fingerprints"]
)
@pytest.mark.parametrize("value", [None, 1.5])
def test_a_json_field_of_the_wrong_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    write_json(table(x=0.5), tmp_path / "t")
    document = json.loads((tmp_path / "t").read_text())
    document[key] = value
    (tmp_path / "t").write_text(json.dumps(document))
    with pytest.raises(TableError, match=f"{key} is missing or of the wrong type"):
        read_table(tmp_path / "t")


@pytest.mark.parametrize(("value", "read"), [("20", 20.0), ("-3.5", -3.5), ('"20"', None)])
def test_an_sqnr_must_be_a_number_but_may_be_an_integer(tmp_path: Path, value: str, read: float | None) -> None:
    write_json(replace(table(x=0.5), tried={"mse": 12.25}), tmp_path / "t")
    (tmp_path / "t").write_text((tmp_path / "t").read_text().replace("12.25", value))
    if read is None:
        with pytest.raises(TableError, match="the SQNR of mse is '20'"):
            read_table(tmp_path / "t")
    else:
        assert read_table(tmp_path / "t").tried == {"mse": read}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.json")


def test_scales_are_amax_over_127_in_float32() -> None:
    original = make_table("minmax", {"a": histogram(-3.3, 1), "z": histogram(0)}, model=MODEL, dataset=DATA)
    assert original.scales == {"a": float(np.float32(np.float32(3.3) / 127)), "z": float(np.float32(1 / 127))}
    assert original.ranges == {"a": float(np.float32(3.3)), "z": 0.0}
    assert (original.samples, original.model_digest, original.data_digest) == (2, "a" * 64, "b" * 64)


def test_a_scale_is_never_denormal() -> None:
    assert to_scale(1e-38) == float(np.finfo(np.float32).tiny)


def test_a_tensor_without_values_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="'boxes' was empty"):
        make_table("minmax", {"boxes": histogram()}, model=MODEL, dataset=DATA)


def test_nan_never_reaches_a_table() -> None:
    with pytest.raises(CalibrationError, match="'a' is NaN"):
        make_table("minmax", {"a": histogram(float("nan"))}, model=MODEL, dataset=DATA)


def test_an_unknown_method_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="Did you mean minmax"):
        make_table("min_max", {}, model=MODEL, dataset=DATA)


def test_json_holds_the_statistics_of_each_tensor(tmp_path: Path) -> None:
    histograms = {"a": histogram(0, 0, 1, 2, -4)}
    original = replace(table(a=to_scale(3.0)), ranges={"a": 4.0})
    write_json(original, tmp_path / "t", histograms)
    entry = json.loads((tmp_path / "t").read_text())["tensors"]["a"]
    assert entry["amax"] == 4.0
    assert entry["threshold"] == pytest.approx(3.0)
    assert entry["clipped"] == pytest.approx(0.2)
    assert entry["zeros"] == pytest.approx(0.4)
    assert entry["values"] == 5
    assert read_table(tmp_path / "t") == original


def test_a_table_of_another_model_is_refused() -> None:
    with pytest.raises(TableError, match=r"another model than net\.onnx"):
        check_table(replace(table(a=1.0), model_digest="f" * 64), MODEL, ["a"])


def test_missing_tensors_are_counted_and_named() -> None:
    with pytest.raises(TableError, match=r"lacks 7 of the scales.*'t0'.*'t4' and 2 more"):
        check_table(table(a=1.0), MODEL, ["a", *(f"t{i}" for i in range(7))])


def test_a_table_with_all_needed_tensors_passes() -> None:
    check_table(replace(table(a=1.0, b=2.0), model_digest=MODEL.digest), MODEL, ["b"])
    check_table(table(a=1.0), MODEL, ["a"])
