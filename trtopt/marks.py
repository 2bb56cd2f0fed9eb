"""Ranges for NVIDIA Nsight Systems: each stage, and each batch size of a benchmark. Without the package nvtx, nothing.

    nsys profile -t cuda,nvtx trtopt convert ...

Touches: NVTX, which does nothing unless a profiler is attached.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

DOMAIN = "trtopt"
"""NVTX's domain of the ranges, by which a profiler can select them."""


def marked(name: str) -> AbstractContextManager[object]:
    """Return a context manager that marks its block as a range of that name."""
    try:
        import nvtx
    except ImportError:
        return contextlib.nullcontext()
    annotation: AbstractContextManager[object] = nvtx.annotate(name, domain=DOMAIN)
    return annotation
