"""Report as JSON, as in `report.json`. Its schema is `docs/report.schema.json`.

Touches: nothing.
"""

from __future__ import annotations

import json

from trtopt.codec import encode
from trtopt.types import Report


def render(report: Report) -> str:
    """Return strict, indented JSON; infinities and NaN are strings (see `trtopt.codec`)."""
    return json.dumps(encode(report), indent=1, allow_nan=False) + "\n"
