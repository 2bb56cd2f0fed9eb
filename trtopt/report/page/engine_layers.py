"""The table of an engine's layers in report.html.

Touches: nothing.
"""

from __future__ import annotations

from trtopt.types import Engine

HEAD = ("layer", "type", "precision", "kernel", "nodes", "not fused")


def rows(engine: Engine) -> list[tuple[str, ...]]:
    """Return one row per layer, in the order of execution: those that did not fuse are marked with what they are."""
    return [
        (layer.name, layer.type, layer.precision, layer.tactic, ", ".join(layer.nodes), layer.apart)
        for layer in engine.layers
    ]
