"""Search for the batch that a network is fixed to, although its inputs say otherwise.

Exporters write the example's batch into a Reshape or an Expand.

Touches: reads the model and a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtopt.data.dataset import Array, Dataset
from trtopt.errors import ModelError, TrtoptError
from trtopt.types import OnnxModel, ShapeRange

_TRIED = 8


def fixed_batch(model: OnnxModel, ranges: Sequence[ShapeRange], dataset: Dataset) -> ModelError | None:
    """Return the error for a network that runs with one batch only, which is not the usual one; None for any other."""
    from trtopt.engine.onnxruntime import open_runner

    usual = {entry.name: entry.opt[0] for entry in ranges if entry.min[:1] != entry.max[:1]}
    dynamic = [spec.name for spec in model.inputs if spec.name in usual and isinstance(spec.shape[0], str)]
    if not dynamic or not len(dataset):
        return None
    try:
        sample, run = dataset.load(0), open_runner(model.path).run
    except TrtoptError:  # it fails for another reason
        return None

    def fed(batch: int) -> dict[str, Array]:
        return {name: np.repeat(array[:1], batch, 0) if name in dynamic else array for name, array in sample.items()}

    def failure(batch: int) -> str:
        try:
            run(fed(batch))
        except TrtoptError as error:
            return error.why or str(error)
        return ""

    most = max(usual[name] for name in dynamic)
    why = failure(most)
    if not why:
        return None
    for batch in _constant_sizes(model)[:_TRIED]:
        if batch != most and not failure(batch):
            shapes = {name: "x".join(map(str, fed(batch)[name].shape)) for name in dynamic}
            flags = " ".join(f"--shape {name}={shape}" for name, shape in shapes.items())
            return ModelError(
                f"{model.path} runs only with a batch of {batch}",
                why=f"the batch of the export is part of it; with {most}: {why}",
                fix=f"Export it with a dynamic batch, or add {flags}",
            )
    return None


def _constant_sizes(model: OnnxModel) -> list[int]:
    """Return 1, and the first sizes of the constant shapes in the graph, ascending."""
    from trtopt.graph.file import load_ir
    from trtopt.graph.query import constant

    sizes = {1}
    for node in load_ir(model.path).graph:
        if node.op_type in ("Reshape", "Expand") and len(node.inputs) > 1:
            shape = constant(node.inputs[1])
            source = node.inputs[1].producer() if node.inputs[1] is not None else None
            if shape is None and source is not None and source.op_type == "Constant" and "value" in source.attributes:
                shape = source.attributes["value"].as_tensor().numpy()
            if shape is not None and shape.size and shape.flat[0] > 0:
                sizes.add(int(shape.flat[0]))
    return sorted(sizes)
