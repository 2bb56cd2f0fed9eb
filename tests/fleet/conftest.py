"""A file of a fleet, and a plan of two models."""

from __future__ import annotations

from pathlib import Path

import pytest

STATED = """
process = "600MB"

[[model]]
name = "detector"
rate = 200
latency-limit = "50ms"
weights = "120MB"
context = "80MB"
activations = "20MB"
times = {1 = "4ms", 8 = "12ms", 32 = "40ms"}

[[model]]
name = "encoder"
rate = 400
priority = 2
weights = "400MB"
context = "150MB"
activations = "30MB"
times = {1 = "3ms", 8 = "8ms", 32 = "25ms"}
"""


@pytest.fixture
def stated(tmp_path: Path) -> Path:
    """Write a file of two models that are stated, not measured."""
    path = tmp_path / "models.toml"
    path.write_text(STATED)
    return path
