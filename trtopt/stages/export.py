"""The two stages before all others: export a source to ONNX, and prove that the export did not drift.

For an ONNX source there is nothing to do, and no framework is imported or even looked for.

Touches: the run directory, through the store; a child process runs the framework.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtopt.codec import encode
from trtopt.config import DataPlan, ExportPlan
from trtopt.errors import ModelError, UsageError
from trtopt.events import Warned
from trtopt.export.request import DTYPES, Example, Request
from trtopt.export.source import Source, digest
from trtopt.shapes import DEFAULT_BATCH, free_shape, profile
from trtopt.stages.context import Context, versions
from trtopt.stages.samples import open_data
from trtopt.store import file_digest
from trtopt.types import Comparison, OnnxModel, ShapeRange, TensorSpec

if TYPE_CHECKING:
    from trtopt.compare.parity import Feeds

_PACKAGES = {
    "pytorch": ("torch", "onnxscript", "onnx"),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "keras", "tf2onnx", "onnx"),
}
_SHAPELESS = ("factory", "torchscript")
"""Sources that do not say which shapes they take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How to export: the plan, `--shape` flags, and the data that examples and the check are taken from, if any."""

    plan: ExportPlan
    shapes: tuple[str, ...]
    data: DataPlan | None


def ready(given: Source, plan: ExportPlan) -> OnnxModel | None:
    """Return the model when the source is ONNX already; None when there is something to export.

    Raises:
        ModelError: it cannot be read.
        UsageError: an option is given that this source does not have.
    """
    from trtopt.export.onnx import describe

    for flag, value, kinds, what in (
        ("--weights", plan.weights, ("factory",), "package.module:factory"),
        ("--dtype", plan.dtypes, _SHAPELESS, "a factory or TorchScript"),
        ("--signature", plan.signature, ("saved_model",), "a SavedModel"),
    ):
        if value and given.kind not in kinds:
            raise UsageError(f"{flag} is for {what}", why=f"{given.text} is none", fix="Leave it out")
    return None if given.framework else describe(Path(given.text))


def bring(context: Context, given: Source, wanted: Wanted) -> tuple[OnnxModel, Comparison]:
    """Source -> ONNX (`source.onnx`), and how far its outputs are from the framework's.

    Raises:
        ModelError: the source cannot be exported, or the export drifted.
        UsageError: the inputs are described wrongly.
    """
    plan = wanted.plan
    examples = _examples(wanted) if given.kind in _SHAPELESS else ()
    request = Request(source=given, examples=examples, weights=plan.weights, signature=plan.signature)
    model = _export(context, request, plan.timeout)
    for note in model.notes[1:]:
        context.emit(Warned(note))
    comparison = _parity(context, request, model, wanted)
    failed = "; ".join(f"{gate.output}: {gate.reason}" for gate in comparison.gates if not gate.passed)
    if failed and not plan.allow_drift:
        raise ModelError(
            f"the export of {given.text} drifted from {comparison.baseline_ran}'s own outputs",
            why=failed,
            fix="Export it in another way, or go on with --allow-export-drift",
        )
    if failed:
        context.emit(Warned(f"the export drifted, which --allow-export-drift lets pass: {failed}"))
    return model, comparison


def _export(context: Context, request: Request, timeout: float) -> OnnxModel:
    source = request.source

    def make(folder: Path) -> OnnxModel:
        from trtopt.export import child
        from trtopt.export.onnx import describe

        made = child.export(request, folder, timeout)
        model = describe(made.path)
        return replace(model, notes=(f"{made.framework} wrote opset {model.opset}", *made.notes))

    key = _key(request) | {
        # Code may read anything, so a factory is asked each time; what follows is cached by the digest of its ONNX.
        "asked": uuid.uuid4().hex if source.kind == "factory" else "",
    }
    return context.store.stage("export", key, OnnxModel, make, lambda model: model.notes[0])


def _parity(context: Context, request: Request, model: OnnxModel, wanted: Wanted) -> Comparison:
    from trtopt.compare import parity

    feeds: Feeds
    if wanted.data is not None:
        feeds = parity.from_data(open_data(wanted.data, model))
    else:
        ranges, _ = profile(model.inputs, wanted.shapes)
        feeds = parity.random(model.inputs, ranges)
        context.emit(Warned(f"the export is checked on {feeds.source}: give --data to check it on yours"))

    def make(folder: Path) -> Comparison:
        from trtopt.engine.onnxruntime import open_runner
        from trtopt.export import child

        drawn = feeds.draw()
        framework, outputs = child.run(request, drawn, folder, wanted.plan.timeout)
        framework_side = parity.Reference(name=request.source.text, ran=framework, outputs=outputs)
        return parity.check(framework_side, open_runner(model.path), drawn, feeds.source)

    key = _key(request) | {"model": model.digest, "feeds": feeds.digest, **versions("onnxruntime", "onnxruntime-gpu")}
    return context.store.stage("parity", key, Comparison, make, parity.line)


def _key(request: Request) -> dict[str, object]:
    weights = request.weights
    return {
        "source": digest(request.source),
        "request": encode(request),
        "weights": file_digest(weights) if weights and weights.is_file() else "",
        **versions(*_PACKAGES[request.source.framework]),
    }


def _examples(wanted: Wanted) -> tuple[Example, ...]:
    """What the user says of the inputs: flags, or else the headers of the first sample with a batch that may change."""
    named = [_dtype(flag) for flag in wanted.plan.dtypes]
    shapes = [free_shape(flag) for flag in wanted.shapes]
    _check_once("--dtype", [name for name, _ in named])
    _check_once("--shape", [shape.name for shape in shapes])
    types = dict(named)
    if wanted.data is not None and not shapes:
        low, best, high = DEFAULT_BATCH
        return tuple(
            Example(
                name=name,
                dtype=types.get(name, dtype),
                shape=ShapeRange(name=name, min=(low, *shape), opt=(best, *shape), max=(high, *shape)),
            )
            for name, dtype, shape in _headers(wanted.data)
        )
    if unknown := set(types) - {shape.name for shape in shapes}:
        name = min(unknown)
        raise UsageError(f"--dtype {name} has no shape", fix=f"Add --shape {name}=...")
    return tuple(Example(name=shape.name, dtype=types.get(shape.name, "float32"), shape=shape) for shape in shapes)


def _check_once(flag: str, names: Sequence[str]) -> None:
    """Refuse a flag that says two things of one input."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"{flag} is given twice for input {name}", fix="Keep one of the two")


def _dtype(flag: str) -> tuple[str, str]:
    name, _, dtype = flag.rpartition("=")
    if not name or dtype not in DTYPES:
        raise UsageError(f"--dtype {flag} does not parse", fix=f"Write NAME=DTYPE, with one of {', '.join(DTYPES)}")
    return name, dtype


def _headers(plan: DataPlan) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each array of the first sample, as far as they are known without the model.

    A picture has no name: it is the module's first input.
    """
    from trtopt.data import images, python
    from trtopt.data.arrays import find, read_file, read_folder
    from trtopt.data.recipe import FILE_NAME, load_recipe

    path, unnamed = Path(plan.source), (TensorSpec(name="", dtype="float32", shape=("?",) * 4),)
    if path.is_file() and path.suffix.lower() in (".npy", ".npz"):
        samples = read_file(path, unnamed)
    elif python.is_function(plan.source) and not path.exists():
        samples = python.read_function(plan.source, ())
    elif path.is_dir() and (files := find(path)):
        samples = read_folder(path, files, unnamed, skip_bad=plan.skip_bad)
    elif path.is_dir() and (plan.recipe or (path / FILE_NAME).is_file()):
        samples = images.read_pictures(images.find(path), load_recipe(plan.recipe or path / FILE_NAME), unnamed)
    else:
        return []
    if not samples.ids:
        return []
    return [(name, header.dtype, header.shape) for name, header in samples.peek(0).items()]
