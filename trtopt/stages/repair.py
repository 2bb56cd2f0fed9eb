"""The stage `repair`: a model that is quantized already gets the Q/DQ nodes that TensorRT supports.

It is omitted for a model that is not quantized.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from pathlib import Path

from trtopt.requires import versions
from trtopt.run import Run
from trtopt.types import OnnxModel


def is_quantized(model: OnnxModel) -> bool:
    """Return whether a model contains Q/DQ nodes or integer operators."""
    from trtopt.graph.file import load_proto
    from trtopt.graph.quantized import is_quantized

    return is_quantized(load_proto(model.path).graph)


def repair(run: Run, source: OnnxModel) -> OnnxModel:
    """Return the model with repaired Q/DQ nodes (`repaired.onnx`).

    Raises:
        ModelError: a node cannot be repaired; the message names it.
    """

    def make(folder: Path) -> OnnxModel:
        from trtopt.graph.file import describe, load_ir, load_proto
        from trtopt.graph.prepare import infer_shapes, save
        from trtopt.graph.quantized import repair
        from trtopt.graph.validity import check

        check(source.path, load_proto(source.path))
        model = load_ir(source.path)
        infer_shapes(model)
        note = repair(model, source.path)
        path = folder / "repaired.onnx"
        save(model, path)
        return describe(path, (f"quantized already: {note or 'nothing to repair'}",))

    key = {"source": source.digest, **versions("onnx", "onnx-ir")}
    return run.store.stage("repair", key, OnnxModel, make, lambda model: "; ".join(model.notes))
