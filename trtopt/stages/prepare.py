"""The stage `prepare`: FP32 ONNX as given, simplified, at a sufficient opset.

Touches: the run directory, through the store.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from trtopt.requires import versions
from trtopt.run import Run
from trtopt.types import OnnxModel, ShapeRange


def prepare(
    run: Run, source: OnnxModel, ranges: Sequence[ShapeRange], min_opset: int, lacks: Collection[str] = ()
) -> OnnxModel:
    """Return the simplified FP32 model at a sufficient opset (`fp32.onnx`).

    Args:
        run: the run.
        source: the FP32 model as exported or given.
        ranges: the shape ranges of its dynamic inputs.
        min_opset: the lowest opset that can express the requested precision.
        lacks: operators that the parser of the TensorRT lacks.
    """

    def make(folder: Path) -> OnnxModel:
        from trtopt.graph.prepare import prepare

        return prepare(source.path, folder, min_opset=min_opset, profile=ranges, lacks=lacks)

    key = {
        "source": source.digest,
        "profile": [asdict(entry) for entry in ranges],
        "opset": min_opset,
        "lacks": sorted(lacks),
        **versions("onnx", "onnx-ir", "onnxscript", "onnxslim"),
    }
    return run.store.stage("prepare", key, OnnxModel, make, lambda model: "; ".join(model.notes))
