"""Numbers of things in messages."""

from __future__ import annotations

import pytest

from trtopt.wording import counted


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples"), (1000, "1000 samples")]
)
def test_one_thing_has_no_plural(count: int, said: str) -> None:
    assert counted(count, "sample") == said
