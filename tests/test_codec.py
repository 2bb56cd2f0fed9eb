"""Round trips of stored values through strict JSON; anything malformed is a ValueError, never a guess."""

import dataclasses
import inspect
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtopt import types
from trtopt.codec import decode, encode
from trtopt.types import (
    CalibrationTable,
    Comparison,
    Decision,
    Engine,
    GateResult,
    Observation,
    Report,
    TensorSpec,
    TypedModel,
)

QUICK = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
KEPT = sorted((kind for _, kind in inspect.getmembers(types, dataclasses.is_dataclass)), key=lambda kind: kind.__name__)
TEXTS = st.text(max_size=8)
PATHS = st.builds(Path, st.text("abcé ./", max_size=8))


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of an annotation in `trtopt.types`; containers are small enough for reports."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values(hint) for name, hint in hints.items()})
    if origin is tuple:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(TEXTS, values(args[1]), max_size=3)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is not None or isinstance(kind, UnionType):
        return st.one_of([values(arg) for arg in args])
    return {
        int: st.integers(),
        float: st.floats(),
        str: TEXTS,
        bool: st.booleans(),
        Path: PATHS,
        type(None): st.none(),
    }[kind]


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal and of the same types; NaN equals itself, and -0 differs from 0."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float):
        return isinstance(b, float) and (repr(a) == repr(b))
    return type(a) is type(b) and bool(a == b)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(encode(value), allow_nan=False))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Target type of the tests on malformed data."""

    ranges: Mapping[str, float]
    samples: int


SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
ONNX = types.OnnxModel(path=Path("m.onnx"), digest="d", opset=19, inputs=(SPEC,), outputs=(SPEC,))
TYPED = TypedModel(
    onnx=ONNX, precision="int8", rest="fp16", decisions=(Decision(node="n", op="Conv", precision="int8", reason="r"),)
)


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_every_kept_value_comes_back_as_it_was(kind: type) -> None:
    @QUICK
    @given(values(kind))
    def round_trip(value: Any) -> None:
        assert same(decode(kind, through_json(value)), value)

    round_trip()


def test_the_round_trip_covers_every_dataclass_of_the_pipeline() -> None:
    assert {Report, CalibrationTable, Comparison, Engine, Observation, TypedModel} <= set(KEPT)
    assert len(KEPT) >= 15


@pytest.mark.parametrize(("value", "text"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_what_json_cannot_write_becomes_a_word(value: float, text: str) -> None:
    assert encode({"a": value}) == {"a": text}


def test_an_integer_is_decoded_as_a_float_where_a_float_is_expected() -> None:
    ranges = decode(Measured, {"ranges": {"a": 3}, "samples": 1}).ranges
    assert ranges == {"a": 3.0}
    assert isinstance(ranges["a"], float)


def test_fields_with_a_default_may_be_absent() -> None:
    assert decode(CalibrationTable, {"method": "mse", "scales": {}}) == CalibrationTable(method="mse", scales={})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", Decision, 1j])
def test_a_value_without_a_json_form_is_rejected(value: object) -> None:
    with pytest.raises(TypeError, match="cannot encode"):
        encode([value])


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (TensorSpec, [], r"TensorSpec is \[\], not an object"),
        (TensorSpec, None, "TensorSpec is None, not an object"),
        (TensorSpec, {"name": "x"}, "TensorSpec lacks dtype, shape"),
        (TensorSpec, {"name": "x", "dtype": "f", "shape": [], "z": 1, "y": 1}, "unknown fields: y, z"),
        (TensorSpec, {"name": 1, "dtype": "f", "shape": []}, r"TensorSpec\.name is 1, not str"),
        (TensorSpec, {"name": "x", "dtype": "f", "shape": "ab"}, r"TensorSpec\.shape is 'ab', not tuple"),
        (TensorSpec, {"name": "x", "dtype": "f", "shape": [1, 2.5]}, r"shape\[1\] is 2\.5, not int or str"),
        (TensorSpec, {"name": "x", "dtype": "f", "shape": [True]}, r"shape\[0\] is True, not int or str"),
        (Measured, {"ranges": {"a": "much"}, "samples": 1}, r"ranges\.a is 'much', not a number"),
        (Measured, {"ranges": {"a": True}, "samples": 1}, r"ranges\.a is True, not float"),
        (Measured, {"ranges": {"a": None}, "samples": 1}, r"ranges\.a is None, not float"),
        (Measured, {"ranges": {"a": 10**400}, "samples": 1}, r"ranges\.a is an integer too large"),
        (Measured, {"ranges": [], "samples": 1}, r"Measured\.ranges is \[\], not"),
        (Measured, {"ranges": {}, "samples": True}, r"samples is True, not int"),
        (Measured, {"ranges": {}, "samples": 1.0}, r"samples is 1\.0, not int"),
    ],
)
def test_malformed_data_is_rejected_where_it_is_wrong(kind: type, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(kind, data)


def test_an_unknown_verdict_is_rejected() -> None:
    gate = GateResult(output="y", metric="top1", value=1.0, limit=1.0, verdict="pass", reason="r")
    comparison = Comparison(
        baseline="a", candidate="b", baseline_ran="", candidate_ran="", data="", samples=1, labelled=False,
        outputs=(), gates=(gate,), verdict="pass",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"Comparison\.verdict is 'maybe'"):
        decode(Comparison, {**encode(comparison), "verdict": "maybe"})


def test_an_error_inside_an_optional_value_is_reported() -> None:
    report = Report(
        schema_version=1, command="convert", verdict="unchecked", model="m", precision="int8", run_dir=Path("o"),
        stages=(), typed=TYPED, engine=None, comparison=None, warnings=(), environment={},
    )  # fmt: skip
    data = through_json(report)
    data["typed"]["decisions"][0]["op"] = None
    with pytest.raises(ValueError, match=r"Report\.typed\.decisions\[0\]\.op is None, not str"):
        decode(Report, data)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(st.sampled_from(KEPT), ANY_JSON)
def test_any_json_is_read_or_rejected(kind: type, data: Any) -> None:
    try:
        decode(kind, data)
    except ValueError:
        return
    raise AssertionError(f"{data!r} is not a {kind.__name__}")


@QUICK
@given(st.data())
def test_one_damaged_field_is_read_or_rejected(data: st.DataObject) -> None:
    damaged = through_json(TYPED)
    place: Any = damaged
    while isinstance(place, dict | list) and place:
        parent, keys = place, list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        place = parent[key]
    parent[key] = data.draw(ANY_JSON)
    try:
        found = decode(TypedModel, damaged)
    except ValueError:
        return
    assert same(decode(TypedModel, through_json(found)), found)
