"""Numbers of things in messages.

Touches: nothing.
"""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a number of things, as in "1 sample" and "2 samples"; the plural adds an s."""
    return f"{count} {noun}{'s' * (count != 1)}"
