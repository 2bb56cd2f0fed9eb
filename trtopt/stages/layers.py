"""The stage that finds where drift comes from: `compare --layers`.

Touches: the run directory, through the store; reads the samples.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from trtopt.codec import encode
from trtopt.data.dataset import Dataset
from trtopt.errors import TrtoptError
from trtopt.events import Warned
from trtopt.stages.context import Context, versions
from trtopt.store import read_result
from trtopt.types import Layers, OnnxModel, TypedModel


def layers(
    context: Context,
    baseline: OnnxModel,
    candidate: OnnxModel,
    typed: TypedModel | None,
    dataset: Dataset,
    name: str = "layers",
) -> Layers:
    """Drift of the candidate layer by layer over a few of the samples; `name` is the stage's, if there are several.

    A run directory (`typed` is its result) is held against the FP32 graph that the typed one was made from, when it is
    still there; any other candidate against the baseline, whose tensors go by the same names.

    Raises:
        DataError: a sample cannot be loaded or run.
        ModelError: a graph cannot be run, or the two cannot be held against each other.
    """
    from trtopt.compare.layers import Subject, look

    subject = Subject(
        reference=(_source(candidate.path.parent) if typed else None) or baseline,
        typed=candidate,
        decisions=typed.decisions if typed else (),
        device=context.device,
    )

    def make(folder: Path) -> Layers:
        return look(subject, dataset, emit=context.emit, workspace=folder)

    decisions = json.dumps(encode(subject.decisions))
    key = {
        "reference": subject.reference.digest,
        "typed": subject.typed.digest,
        "decisions": hashlib.sha256(decisions.encode()).hexdigest(),
        "data": dataset.digest,
        "device": subject.device,
        **versions("onnxruntime", "onnxruntime-gpu", "onnx-ir"),
    }
    return context.store.stage(name, key, Layers, make, layers_line)


def explained(
    context: Context, baseline: OnnxModel, candidate: OnnxModel, typed: TypedModel | None, dataset: Dataset
) -> Layers | None:
    """`layers` for a comparison that failed: nobody asked, so what keeps it from working is no more than a remark, and
    never takes the place of the verdict."""
    try:
        return layers(context, baseline, candidate, typed, dataset)
    except TrtoptError as error:
        context.emit(Warned(f"where the drift comes from is not known: {error}"))
        return None


def _source(folder: Path) -> OnnxModel | None:
    """The graph that the typed one of a run directory was made from: equalized, or else as prepared."""
    for stage in ("equalize", "prepare"):
        model = read_result(folder, stage, OnnxModel)
        # An equalized graph may be left from an earlier run.
        if model is not None and read_result(folder, "precision", TypedModel, model=model.digest) is not None:
            return model
    return None


def layers_line(layers: Layers) -> str:
    """One line: how many layers, and where the drift jumps."""
    return f"{len(layers.layers)} layers over {layers.samples} samples, " + (
        f"the drift jumps at {layers.jump}" if layers.jump else "no jump"
    )
