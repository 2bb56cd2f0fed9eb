"""PyTorch to ONNX: a torch.export archive, TorchScript, or a module that a factory makes.

A module is exported by torch.export (dimensions that may change become symbols, those that the program fixes are an
error); TorchScript, which torch.export does not take, by the older exporter. Both write what torch's version can: the
opset is read back from the file.

Touches: runs the source's code, and so runs in a child process (`trtopt.export.child`); writes `source.onnx`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.errors import DataError, ModelError, UsageError
from trtopt.export import factory
from trtopt.export.names import name_dims
from trtopt.export.request import Example, Exported, Request, example_sizes
from trtopt.export.text import brief
from trtopt.requires import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "source.onnx"
_TRACED_OPSET = 17  # the newest that the older exporter writes in every torch from 2.6 on, and enough for INT8
# Where an ATen operator says that it behaves as in training: the place of the argument.
_TRAINING = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "native_dropout": 2, "batch_norm": 5}


@dataclass(frozen=True, slots=True)
class _Opened:
    """A source that can be called: `inputs` are the names of its parameters, in order (None: any name is taken)."""

    call: Callable[[Mapping[str, Any]], Any]
    inputs: tuple[str, ...] | None
    module: Any
    notes: tuple[str, ...] = ()


def name() -> str:
    """Return `PyTorch` and its version."""
    return f"PyTorch {require('torch').__version__}"


def export(request: Request, folder: Path) -> Exported:
    """Write `folder/source.onnx`.

    Raises:
        ModelError: the source cannot be loaded or exported, or fixes a dimension that was asked for as dynamic.
        UsageError: an input is described that the module does not have, or none is described.
        MissingDependencyError: torch is not installed.
    """
    torch = require("torch")
    require("onnxscript")
    path = folder / FILE
    source = _open(request)
    with torch.no_grad():
        if request.source.kind == "torchscript":
            _export_traced(source, _described(source, request), path)
        else:
            program = source.module
            if request.source.kind == "factory":
                program = _program(source, _described(source, request), request)
            _refuse_training(program, request)
            _export_program(program, request, path)
    return Exported(path=path, framework=name(), notes=source.notes)


def run(request: Request, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> list[list[NDArray[np.generic]]]:
    """Return the outputs of the source itself for each feed, in the order of the exported model's.

    Raises:
        DataError: it fails on a feed; otherwise as `export`.
    """
    torch = require("torch")
    source = _open(request)
    results = []
    for feed in feeds:
        try:
            with torch.no_grad():
                # Copies: torch may write to a tensor, and what was read from a file may be read-only.
                made = source.call({name: torch.from_numpy(array.copy()) for name, array in feed.items()})
        except Exception as error:  # the user's code may raise anything
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise DataError(f"{request.source.text} cannot be run on {shapes}", why=brief(error)) from error
        results.append([tensor.detach().numpy() for _, tensor in _outputs(made)])
    return results


def _open(request: Request) -> _Opened:
    source = request.source
    if source.kind == "factory":
        return _open_factory(request)
    return _open_script(source.text) if source.kind == "torchscript" else _open_program(source.text)


def _open_factory(request: Request) -> _Opened:
    module = factory.build(request.source.text, request.weights)
    parameters = inspect.signature(module.forward).parameters.values()
    named = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    open_ended = any(each.kind == each.VAR_KEYWORD for each in parameters)
    notes = [f"the code of {request.source.text} was run"]
    if module.training:
        notes.append("the factory returned the module in training mode: it was put into eval()")
    module.eval()
    return _Opened(lambda feed: module(**feed), None if open_ended else tuple(named), module, tuple(notes))


def _open_script(text: str) -> _Opened:
    torch = require("torch")
    try:
        module = torch.jit.load(text, map_location="cpu")
        inputs = tuple(argument.name for argument in module.forward.schema.arguments[1:])
    except Exception as error:
        raise ModelError(f"{text} cannot be loaded as TorchScript", why=brief(error), fix="Export it again") from error
    notes = ("the module was saved in training mode: it was put into eval()",) if module.training else ()
    module.eval()
    return _Opened(lambda feed: module(*(feed[name] for name in inputs if name in feed)), inputs, module, notes)


def _open_program(text: str) -> _Opened:
    torch = require("torch")
    try:
        program = torch.export.load(text)
        inputs = tuple(program.graph_signature.user_inputs)
        module = program.module()
    except Exception as error:
        raise ModelError(
            f"{text} cannot be loaded as a torch.export archive", why=brief(error), fix="Save it again"
        ) from error
    if wrong := [name for name in inputs if not isinstance(name, str)]:
        raise ModelError(f"{text} takes constants as inputs", why=f"{wrong}", fix="Export it with tensors only")

    def call(feed: Mapping[str, Any]) -> Any:
        flat = [feed[name] for name in inputs]
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
        return module(*args, **kwargs)

    return _Opened(call, inputs, program)


def _described(source: _Opened, request: Request) -> tuple[Example, ...]:
    """The examples, the unnamed one under the module's first name, in the module's order."""
    names = source.inputs
    takes = f"its inputs are {', '.join(names)}" if names is not None else "it takes any"
    if not request.examples:
        name = names[0] if names else "input"
        raise UsageError(
            f"the inputs of {request.source.text} have no shapes",
            why=f"a module does not carry them, and {takes}",
            fix=f"Add --shape {name}=1x3x224x224 (and --dtype {name}=int64 for whole numbers), or --data",
        )
    first = names[0] if names else "input"
    given = {example.name or first: example for example in request.examples}
    if names is None:
        return tuple(_renamed(name, example) for name, example in given.items())
    if unknown := [name for name in given if name not in names]:
        raise UsageError(f"{request.source.text} has no input {', '.join(unknown)}", fix=takes.capitalize())
    return tuple(_renamed(name, given[name]) for name in names if name in given)


def _renamed(name: str, example: Example) -> Example:
    return Example(name=name, dtype=example.dtype, shape=example.shape)


def _tensors(examples: Sequence[Example]) -> dict[str, Any]:
    torch = require("torch")
    sizes = example_sizes(examples)
    kinds = {example.name: getattr(torch, example.dtype) for example in examples}
    # Ones, not noise: they are valid ids and masks too, and no value of an example reaches the exported graph.
    return {name: torch.ones(sizes[name], dtype=kind) for name, kind in kinds.items()}


def _program(source: _Opened, examples: Sequence[Example], request: Request) -> Any:
    torch = require("torch")
    auto = torch.export.Dim.AUTO
    dynamic = {each.name: dict.fromkeys(each.dynamic(), auto) or None for each in examples}
    try:
        # Not strict: Dynamo's own analysis of bytecode refuses more modules, and adds nothing that ONNX can hold.
        program = torch.export.export(source.module, (), _tensors(examples), dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise ModelError(
            f"torch.export cannot export {request.source.text}",
            why=brief(error),
            fix="Check --shape and --dtype, and that forward takes tensors and branches on no values",
        ) from error
    shapes = {node.name: tuple(node.meta["val"].shape) for node in program.graph.nodes if node.op == "placeholder"}
    for example, name in zip(examples, program.graph_signature.user_inputs, strict=True):
        for axis in example.dynamic():
            size = shapes[name][axis]
            if str(size).isdigit():  # an int, or a symbol that turned out to have but one value
                raise ModelError(
                    f"dimension {axis} of input {example.name} cannot be dynamic: the export fixed it at {size}",
                    why=f"{request.source.text} computes with {size} as a constant there",
                    fix=f"Take sizes from the input in forward (x.shape[{axis}]), or fix the dimension with --shape",
                )
    return program


def _refuse_training(program: Any, request: Request) -> None:
    for node in program.graph.nodes:
        operator = getattr(node.target, "_opname", "") if node.op == "call_function" else ""
        place = _TRAINING.get(operator)
        if place is not None and len(node.args) > place and node.args[place] is True:
            raise ModelError(
                f"{request.source.text} was exported in training mode",
                why=f"its {operator} ({node.name}) is active",
                fix="Call module.eval() before torch.export.export",
            )


def _export_program(program: Any, request: Request, path: Path) -> None:
    torch = require("torch")
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        structure = torch.utils._pytree.tree_unflatten(
            list(range(program.call_spec.out_spec.num_leaves)), program.call_spec.out_spec
        )
        kept = program.graph_signature.user_outputs
        names = [name for name, place in _leaves(structure) if kept[place] is not None]
        for value, name in zip(made.model.graph.outputs, names, strict=True):
            value.name = name
        made.save(str(path))
    except Exception as error:
        raise ModelError(
            f"torch.onnx cannot export {request.source.text}",
            why=brief(error.__cause__ or error),
            fix="Replace the operation that it names, or give an ONNX file",
        ) from error
    name_dims(path)


def _export_traced(source: _Opened, examples: Sequence[Example], path: Path) -> None:
    torch = require("torch")
    tensors = tuple(_tensors(examples).values())
    try:
        with torch.no_grad():
            names = [name for name, _ in _outputs(source.module(*tensors))]
        torch.onnx.export(
            source.module,
            tensors,
            str(path),
            dynamo=False,
            input_names=[example.name for example in examples],
            output_names=names,
            dynamic_axes={
                example.name: {axis: f"{example.name}_dim{axis}" for axis in example.dynamic()} for example in examples
            },
            opset_version=_TRACED_OPSET,
        )
    except Exception as error:
        raise ModelError(
            "torch.onnx cannot export this TorchScript module",
            why=brief(error),
            fix="Check --shape and --dtype, or export the module with torch.export and give the .pt2",
        ) from error
    name_dims(path)


def _outputs(made: Any) -> list[tuple[str, Any]]:
    torch = require("torch")
    return [(name, value) for name, value in _leaves(made) if torch.is_tensor(value)]


def _leaves(made: Any) -> list[tuple[str, Any]]:
    """Every leaf of a module's result with a name: its key in a dict, its place in a tuple."""
    pytree = require("torch").utils._pytree
    leaves = pytree.tree_flatten_with_path(made)[0]
    named = []
    for place, (keys, value) in enumerate(leaves):
        parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in keys]
        only = "output" if len(leaves) == 1 else f"output_{place}"
        named.append((only if all(part.isdigit() for part in parts) else "_".join(parts), value))
    return named
