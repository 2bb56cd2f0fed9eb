"""Text of a framework's exceptions, cut to one line.

Touches: nothing.
"""

from __future__ import annotations

_MAX_CHARS = 300


def brief(error: BaseException) -> str:
    """Return the error as one line, `ValueError: its text`, with the text cut to 300 characters."""
    kind = type(error).__name__
    text = " ".join(str(error).split())
    if not text:
        return kind
    ellipsis = "..." if len(text) > _MAX_CHARS else ""
    return f"{kind}: {text[:_MAX_CHARS]}{ellipsis}"
