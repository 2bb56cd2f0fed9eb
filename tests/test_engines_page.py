"""The table of docs/engines.md is that of the measurements."""

from __future__ import annotations

import json

from engines_page import FILES, PAGE, ROOT, page, table


def test_the_page_has_the_table_of_the_measurements() -> None:
    assert page(PAGE.read_text()) == PAGE.read_text()


def test_every_engine_is_a_line() -> None:
    lines = table().splitlines()
    measured = [json.loads((ROOT / f"benchmarks/engines/{file}.json").read_text())["rows"] for file in FILES]
    assert len(lines) == 2 + sum(map(len, measured))
    assert {path.stem for path in (ROOT / "benchmarks/engines").glob("*.json")} == FILES.keys()
    assert len({line.count("|") for line in lines}) == 1
