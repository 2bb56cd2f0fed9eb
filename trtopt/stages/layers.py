"""The stage that locates drift, layer by layer: `compare --layers`.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.errors import TrtoptError
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.store import read_result
from trtopt.types import Layers, OnnxModel, TypedModel
from trtopt.wording import counted


def layers(
    run: Run,
    baseline: OnnxModel,
    candidate: OnnxModel,
    typed: TypedModel | None,
    dataset: Dataset,
    name: str = "layers",
) -> Layers:
    """Return the drift of the candidate at each layer, over a few of the samples.

    The candidate of a run directory is compared with the FP32 graph that it was made from, if that graph still exists.
    Any other candidate is compared with the baseline; tensors are matched by name.

    Args:
        run: the run.
        baseline: the FP32 model.
        candidate: the graph whose drift is measured.
        typed: the result of the candidate's run directory; None if it has none.
        dataset: the samples; a few of them are used.
        name: the name of the stage, if there are several.

    Raises:
        DataError: a sample cannot be loaded or run.
        ModelError: a graph cannot be run, or the two graphs cannot be compared.
    """
    reference = (_source(candidate.path.parent) if typed else None) or baseline
    decisions = typed.decisions if typed else ()

    def make(folder: Path) -> Layers:
        from trtopt.compare.layers import look
        from trtopt.compare.views import Subject

        subject = Subject(reference=reference, typed=candidate, decisions=decisions, device=run.device)
        return look(subject, dataset, emit=run.emit, workspace=folder)

    key = {
        "reference": reference.digest,
        "typed": candidate.digest,
        "decisions": hashlib.sha256(json.dumps(encode(decisions)).encode()).hexdigest(),
        "data": dataset.digest,
        "device": run.place,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir"),
    }
    return run.store.stage(name, key, Layers, make, layers_line)


def explained(
    run: Run, baseline: OnnxModel, candidate: OnnxModel, typed: TypedModel | None, dataset: Dataset
) -> Layers | None:
    """Return `layers` for a comparison that failed, or None if it raises an error.

    The user did not ask for it, so an error becomes a warning and does not replace the verdict.
    """
    try:
        return layers(run, baseline, candidate, typed, dataset)
    except TrtoptError as error:
        # Without the error's own next step, which is for a user who asked for the layers.
        run.warn(f"the source of the drift is not known: {type(error)(error.what, why=error.why)}")
        return None


def _source(folder: Path) -> OnnxModel | None:
    """Return the graph that the typed graph of a run directory was made from: equalized, or else prepared."""
    for stage in ("equalize", "prepare"):
        model = read_result(folder, stage, OnnxModel)
        # An equalized graph may be left over from an earlier run.
        if model is not None and read_result(folder, "precision", TypedModel, model=model.digest) is not None:
            return model
    return None


def layers_line(layers: Layers) -> str:
    """Return the summary line: the number of layers, and the first divergent one."""
    divergent = f"first divergent layer: {layers.jump}" if layers.jump else "no divergent layer"
    return f"{counted(len(layers.layers), 'layer')} over {counted(layers.samples, 'sample')}, {divergent}"
