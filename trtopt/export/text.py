"""What a framework's exceptions say, cut down to a line.

Touches: nothing.
"""

from __future__ import annotations

_MOST = 300


def brief(error: BaseException) -> str:
    """`ValueError: the first lines of its text`."""
    text = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {text[:_MOST]}{'...' if len(text) > _MOST else ''}" if text else type(error).__name__
    )
