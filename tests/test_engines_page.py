"""The table of docs/engines.md is that of the measurements."""

from __future__ import annotations

from engines_page import PAGE, page, table


def test_the_page_has_the_table_of_the_measurements() -> None:
    assert page(PAGE.read_text()) == PAGE.read_text()


def test_every_engine_is_a_line() -> None:
    lines = table().splitlines()
    assert sum("TensorRT's own INT8" in line for line in lines) == 7
    assert len({line.count("|") for line in lines}) == 1
