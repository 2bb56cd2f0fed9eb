"""Tests of the report as JSON: strict, valid under its published schema, and unchanged when read back."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from typing import Any

import jsonschema
import pytest
from report.reports import ALL, PASSED
from report.rich import PARTS
from support import ROOT

from trtopt.codec import decode
from trtopt.compare.catalog import METRICS
from trtopt.report import render
from trtopt.types import REPORT_SCHEMA, Report

SCHEMA = json.loads((ROOT / "docs/report.schema.json").read_text(encoding="utf-8"))
REPORTS = {**ALL, **PARTS}
every_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS.keys())


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
    ("field", "value"), [("verdict", "maybe"), ("schema_version", REPORT_SCHEMA + 1), ("stages", None), ("surprise", 1)]
)
def test_the_schema_refuses_another_report(field: str, value: object) -> None:
    data = {**_strict(render("json", PASSED)), field: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(data)


def _classes(kind: Any) -> set[type]:
    """Return the dataclasses in a type annotation, and those in their fields."""
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


def test_the_schema_names_the_metrics_and_takes_those_of_users() -> None:
    values = SCHEMA["$defs"]["OutputDrift"]["properties"]["values"]
    assert list(values["properties"]) == list(METRICS)
    assert values["additionalProperties"] == {"$ref": "#/$defs/number"}


def test_the_schema_has_the_version_that_is_written() -> None:
    assert SCHEMA["properties"]["schema_version"] == {"const": REPORT_SCHEMA}


def _objects(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the places in a report that are objects with fixed fields (not maps, which the codec writes alike)."""
    if isinstance(node, list):
        return [found for index, each in enumerate(node[:1]) for found in _objects(each, (*path, index))]
    if not isinstance(node, dict):
        return []
    maps = ("values", "counts", "figures", "names", "readings", "bounds", "parts", "ms", "environment", "audit")
    here = [] if path and path[-1] in maps else [path]
    return here + [found for name, each in node.items() for found in _objects(each, (*path, name))]


def test_the_schema_refuses_a_surprise_and_an_absence_wherever_they_are() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    seen = 0
    for report in PARTS.values():
        data = _strict(render("json", report))
        for path in _objects(data):
            for change in ("surprise", "absence"):
                changed = copy.deepcopy(data)
                node = changed
                for step in path:
                    node = node[step]
                if change == "surprise":
                    node["surprise"] = 1
                else:
                    del node[next(iter(node))]
                assert not validator.is_valid(changed), (path, change)
                seen += 1
    assert seen > 50
