"""The stage `widen`: a model in FP16, BF16, FP64 or mixed types becomes the FP32 model that all others work on.

It is omitted for a model that is in FP32.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from pathlib import Path

from trtopt.requires import versions
from trtopt.run import Run
from trtopt.types import OnnxModel


def widen(run: Run, source: OnnxModel) -> OnnxModel:
    """Return the model in FP32 (`widened.onnx`), which is the baseline; the model itself if it is in FP32.

    Raises:
        ModelError: the model is invalid.
    """
    from trtopt.graph.file import describe
    from trtopt.graph.widen import in_fp32, is_in_fp32

    if is_in_fp32(source.path):
        return source

    def make(folder: Path) -> OnnxModel:
        path = folder / "widened.onnx"
        note = in_fp32(source.path, path)
        return describe(path, (note,))

    key = {"source": source.digest, **versions("onnx", "onnx-ir")}
    return run.store.stage("widen", key, OnnxModel, make, lambda model: "; ".join(model.notes))
