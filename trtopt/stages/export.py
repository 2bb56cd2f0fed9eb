"""The first two stages: export a source to ONNX, and check that the export computes the same outputs.

Both are omitted for an ONNX source: no framework is imported, and none needs to be installed.

Touches: the run directory, through the store; a child process runs the framework.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.codec import encode
from trtopt.errors import ModelError, UsageError
from trtopt.export.request import Example, Request
from trtopt.export.source import Source, digest
from trtopt.manifest import file_digest
from trtopt.plan import DataPlan, ExportPlan
from trtopt.requires import versions
from trtopt.run import Run
from trtopt.shapes import DEFAULT_BATCH, AskedShape, free_shape, profile
from trtopt.stages.samples import open_data
from trtopt.types import Comparison, OnnxModel, ShapeRange, TensorSpec

if TYPE_CHECKING:
    from trtopt.compare.parity import Feeds

_PACKAGES = {
    "pytorch": ("torch", "onnxscript", "onnx"),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "keras", "tf2onnx", "onnx"),
}
_SHAPELESS = ("factory", "torchscript")
"""Kinds of sources that do not record their input shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The options of an export.

    Attributes:
        plan: the export options.
        shapes: the `--shape` flags.
        data: the samples for example inputs and for the check; None without samples.
    """

    plan: ExportPlan
    shapes: tuple[AskedShape, ...]
    data: DataPlan | None


def ready(source: Source, plan: ExportPlan) -> OnnxModel | None:
    """Return the model if the source is ONNX, or None if it must be exported.

    Raises:
        ModelError: the ONNX file cannot be read.
        UsageError: an option does not apply to this kind of source.
    """
    from trtopt.graph.file import describe

    for flag, value, kinds, described in (
        ("--weights", plan.weights, ("factory",), "package.module:factory"),
        ("--dtype", plan.dtypes, _SHAPELESS, "factory and TorchScript"),
        ("--signature", plan.signature, ("saved_model",), "SavedModel"),
    ):
        if value and source.kind not in kinds:
            raise UsageError(
                f"{flag} applies only to {described} sources", why=f"the source is {source.text}", fix=f"Remove {flag}"
            )
    return None if source.framework else describe(Path(source.text))


def bring(run: Run, source: Source, wanted: Wanted) -> tuple[OnnxModel, Comparison]:
    """Export a source to ONNX (`source.onnx`), and compare its outputs with those of the framework.

    Raises:
        ModelError: the source cannot be exported, or the outputs differ too much and `allow_drift` is not set.
        UsageError: the description of the inputs is invalid.
    """
    plan = wanted.plan
    examples = _examples(wanted) if source.kind in _SHAPELESS else ()
    request = Request(source=source, examples=examples, weights=plan.weights, signature=plan.signature)
    model = _export(run, request, plan.timeout)
    # The first note is the summary line of the stage.
    for note in model.notes[1:]:
        run.note(note)
    comparison = _parity(run, request, model, wanted)
    drift = "; ".join(f"{gate.output}: {gate.reason}" for gate in comparison.gates if not gate.passed)
    if drift and not plan.allow_drift:
        raise ModelError(
            f"the export of {source.text} drifted from {comparison.baseline_ran}'s outputs",
            why=drift,
            fix="Export it in another way, or accept the drift with --allow-export-drift",
        )
    if drift:
        run.warn(f"export drift accepted because of --allow-export-drift: {drift}")
    return model, comparison


def _export(run: Run, request: Request, timeout: float) -> OnnxModel:
    source = request.source

    def make(folder: Path) -> OnnxModel:
        from trtopt.export import child
        from trtopt.graph.file import describe

        exported = child.export(request, folder, timeout)
        model = describe(exported.path)
        return replace(model, notes=(f"opset {model.opset}, exported by {exported.framework}", *exported.notes))

    key = _key(request) | {
        # The code of a factory may depend on anything, so it runs every time.
        # Later stages are cached by the digest of the resulting ONNX model.
        "asked": uuid.uuid4().hex if source.kind == "factory" else "",
    }
    return run.store.stage("export", key, OnnxModel, make, lambda model: model.notes[0])


def _parity(run: Run, request: Request, model: OnnxModel, wanted: Wanted) -> Comparison:
    from trtopt.compare import parity
    from trtopt.graph.unread import unread

    # The user's samples if there are any, otherwise random inputs.
    feeds: Feeds
    if wanted.data is not None:
        feeds = parity.from_data(open_data(wanted.data, model))
    else:
        ranges, _ = profile(model.inputs, wanted.shapes, unread=lambda: unread(model.path))
        feeds = parity.random(model.inputs, ranges)
        run.note(f"the export is checked on {feeds.source}; give --data to check it on your own")

    def make(folder: Path) -> Comparison:
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export import child

        inputs = feeds.draw()
        framework, outputs = child.run(request, inputs, folder, wanted.plan.timeout)
        reference = parity.Reference(name=request.source.text, ran=framework, outputs=outputs)
        return parity.check(reference, open_runner(model.path), inputs, feeds.source)

    key = _key(request) | {"model": model.digest, "feeds": feeds.digest, **versions("onnxruntime", "onnxruntime-gpu")}
    return run.store.stage("parity", key, Comparison, make, parity.line)


def _key(request: Request) -> dict[str, object]:
    """Return everything that the export depends on."""
    weights = request.weights
    return {
        "source": digest(request.source),
        "request": encode(request),
        "weights": file_digest(weights) if weights and weights.is_file() else "",
        **versions(*_PACKAGES[request.source.framework]),
    }


def _examples(wanted: Wanted) -> tuple[Example, ...]:
    """Return example inputs for a source that does not record its input shapes.

    They are described by the `--shape` and `--dtype` flags. Without `--shape`, they are described by the first sample,
    with a dynamic batch.
    """
    shapes = [free_shape(asked) for asked in wanted.shapes]
    for name, count in Counter(shape.name for shape in shapes).items():
        if count > 1:
            raise UsageError(f"--shape is given twice for input {name}", fix="Keep one of the two")
    dtypes = wanted.plan.dtypes
    if wanted.data is not None and not shapes:
        low, best, high = DEFAULT_BATCH
        examples = []
        for name, dtype, sizes in _headers(wanted.data):
            shape = ShapeRange(name=name, min=(low, *sizes), opt=(best, *sizes), max=(high, *sizes))
            examples.append(Example(name=name, dtype=dtypes.get(name, dtype), shape=shape))
        return tuple(examples)
    if unknown := set(dtypes) - {shape.name for shape in shapes}:
        name = min(unknown)
        raise UsageError(f"--dtype {name} has no shape", fix=f"Add --shape {name}=...")
    return tuple(Example(name=shape.name, dtype=dtypes.get(shape.name, "float32"), shape=shape) for shape in shapes)


def _headers(plan: DataPlan) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the name, dtype and shape of each array of the first sample, as far as known without the model.

    The shape has no batch axis. An array without a name, such as an image, is the module's first input.
    """
    from trtopt.data import images, python
    from trtopt.data.arrays import find, read_file, read_folder
    from trtopt.data.given import Given, read_given
    from trtopt.data.recipe import FILE_NAME, load_recipe

    # The readers need a model's inputs: one without a name and with any four dimensions.
    unnamed = (TensorSpec(name="", dtype="float32", shape=("?",) * 4),)
    if isinstance(plan.source, Given):
        samples = read_given(plan.source, unnamed)
        return [(name, header.dtype, header.shape) for name, header in samples.peek(0).items() if name != "label"]
    path = Path(plan.source)
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        samples = read_file(path, unnamed)
    elif python.is_function(plan.source) and not path.exists():
        samples = python.read_function(plan.source, ())
    elif path.is_dir() and (files := find(path)):
        samples = read_folder(path, files, unnamed, skip_bad=plan.skip_bad)
    elif path.is_dir() and (plan.recipe or (path / FILE_NAME).is_file()):
        samples = images.read_images(path, images.find(path), load_recipe(plan.recipe or path / FILE_NAME), unnamed)
    else:
        return []
    if not samples.ids:
        return []
    return [(name, header.dtype, header.shape) for name, header in samples.peek(0).items()]
