"""The report as JSON: strict, as published in its schema, and read back as it was."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import jsonschema
import pytest
from report.reports import ALL, PASSED
from support import ROOT

from trtopt.codec import decode
from trtopt.compare.metrics import METRICS
from trtopt.report import render
from trtopt.types import Report

SCHEMA = json.loads((ROOT / "docs/report.schema.json").read_text(encoding="utf-8"))
every_report = pytest.mark.parametrize("report", ALL.values(), ids=ALL.keys())


def _strict(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@every_report
def test_json_is_strict_fits_the_published_schema_and_reads_back(report: Report) -> None:
    data = _strict(render("json", report))
    jsonschema.Draft202012Validator(SCHEMA).validate(data)
    assert repr(decode(Report, data)) == repr(report)  # repr: NaN is not equal to itself


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("field", "value"), [("verdict", "maybe"), ("schema_version", 2), ("stages", None), ("surprise", 1)]
)
def test_the_schema_refuses_another_report(field: str, value: object) -> None:
    data = {**_strict(render("json", PASSED)), field: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(data)


def _classes(kind: Any) -> set[type]:
    """The dataclasses in a type annotation, and those in their fields."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind).values()
        return {typing.cast(type, kind)}.union(*(_classes(hint) for hint in hints))
    return set().union(*(_classes(arg) for arg in typing.get_args(kind) if not isinstance(arg, str)))


def test_the_schema_names_the_fields_of_the_types() -> None:
    classes = _classes(Report)
    assert {kind.__name__ for kind in classes} - {"Report"} == {name for name in SCHEMA["$defs"] if name[0].isupper()}
    for kind in classes:
        node = SCHEMA if kind is Report else SCHEMA["$defs"][kind.__name__]
        names = [field.name for field in dataclasses.fields(kind)]
        assert list(node["properties"]) == names
        assert node["required"] == names
        assert node["additionalProperties"] is False


def test_the_schema_names_the_metrics() -> None:
    names = SCHEMA["$defs"]["OutputDrift"]["properties"]["values"]["propertyNames"]["enum"]
    assert names == list(METRICS)
