"""Export of PyTorch models to ONNX: torch.export archives, TorchScript, and modules built by a factory.

A module is exported with torch.export. Dynamic dimensions become symbols; one that the module turns out to fix is an
error. TorchScript, which torch.export does not support, is traced by the older exporter. The opset depends on torch's
version, and is read back from the file.

Touches: runs the source's code, and so runs in a child process (`trtopt.export.child`); writes `source.onnx`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtopt.errors import DataError, ModelError, UsageError
from trtopt.export.modules import Opened, open_module
from trtopt.export.names import name_dims
from trtopt.export.request import Example, Exported, Request, example_sizes
from trtopt.export.text import brief
from trtopt.requires import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "source.onnx"
_TRACED_OPSET = 17  # the newest that the older exporter supports in every torch from 2.6 on
# The position of the argument `train` or `training` of an ATen operator that behaves differently in training mode.
_TRAINING_ARGUMENT = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "native_dropout": 2, "batch_norm": 5}


def name() -> str:
    """Return `PyTorch` and its version."""
    return f"PyTorch {require('torch').__version__}"


def export(request: Request, folder: Path) -> Exported:
    """Export the source to `folder/source.onnx`.

    Raises:
        ModelError: the source cannot be loaded or exported, or it fixes a dimension that was requested as dynamic.
        UsageError: no input is described, or one that the module does not have.
        MissingDependencyError: torch or onnxscript is not installed.
    """
    torch = require("torch")
    require("onnxscript")
    path = folder / FILE
    source = open_module(request)
    with torch.no_grad():
        if request.source.kind == "torchscript":
            _export_traced(source, _named_examples(source, request), path)
        else:
            program = source.module
            if request.source.kind == "factory":
                program = _export_to_program(source, _named_examples(source, request), request)
            _check_not_training(program, request)
            _export_program(program, request, path)
    return Exported(path=path, framework=name(), notes=source.notes)


def run(request: Request, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> list[list[NDArray[np.generic]]]:
    """Run the source in PyTorch and return its outputs for each feed, in the order of the exported model's outputs.

    Raises:
        DataError: the source fails on a feed.
        ModelError: the source cannot be loaded.
    """
    torch = require("torch")
    source = open_module(request)
    results = []
    for feed in feeds:
        try:
            with torch.no_grad():
                # Copy the arrays: a tensor shares their memory, which may be read-only, and the module may write to it.
                result = source.call({name: torch.from_numpy(array.copy()) for name, array in feed.items()})
        except Exception as error:  # the user's code may raise anything
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise DataError(f"{request.source.text} cannot be run on {shapes}", why=brief(error)) from error
        results.append([tensor.detach().numpy() for _, tensor in _outputs(result)])
    return results


def _named_examples(source: Opened, request: Request) -> tuple[Example, ...]:
    """Return the request's examples in the order of the module's inputs; an unnamed one is the first input.

    Raises:
        UsageError: no input is described, or one that the module does not have.
    """
    names = source.inputs
    accepted = f"its inputs are {', '.join(names)}" if names is not None else "it accepts any name"
    first = names[0] if names else "input"
    if not request.examples:
        raise UsageError(
            f"the inputs of {request.source.text} have no shapes",
            why=f"a module does not record them, and {accepted}",
            fix=f"Add --shape {first}=1x3x224x224 (and --dtype {first}=int64 for integers), or --data with arrays",
        )
    described = {example.name or first: example for example in request.examples}
    if names is None:
        return tuple(_renamed(name, example) for name, example in described.items())
    if unknown := [name for name in described if name not in names]:
        raise UsageError(
            f"{request.source.text} has no input {', '.join(unknown)}", fix=f"Its inputs are {', '.join(names)}"
        )
    return tuple(_renamed(name, described[name]) for name in names if name in described)


def _renamed(name: str, example: Example) -> Example:
    return Example(name=name, dtype=example.dtype, shape=example.shape)


def _tensors(examples: Sequence[Example]) -> dict[str, Any]:
    """Return a tensor of ones for each example, by name."""
    torch = require("torch")
    sizes = example_sizes(examples)
    dtypes = {example.name: getattr(torch, example.dtype) for example in examples}
    # Ones are valid token ids and masks as well, which random numbers are not. The values do not reach the graph.
    return {name: torch.ones(sizes[name], dtype=dtype) for name, dtype in dtypes.items()}


def _export_to_program(source: Opened, examples: Sequence[Example], request: Request) -> Any:
    """Export a module with torch.export and return the `ExportedProgram`.

    Raises:
        ModelError: the export fails, or fixes a dimension that was requested as dynamic.
    """
    torch = require("torch")
    auto = torch.export.Dim.AUTO
    dynamic = {example.name: dict.fromkeys(example.dynamic(), auto) or None for example in examples}
    try:
        # Strict mode analyses the bytecode with Dynamo, which rejects more modules and adds nothing that ONNX keeps.
        program = torch.export.export(source.module, (), _tensors(examples), dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise ModelError(
            f"torch.export cannot export {request.source.text}",
            why=brief(error),
            fix="Check --shape and --dtype, and that forward takes tensors and branches on no values",
        ) from error
    # Dim.AUTO lets torch fix a dimension without an error: look for those that are not symbols any more.
    shapes = {node.name: tuple(node.meta["val"].shape) for node in program.graph.nodes if node.op == "placeholder"}
    for example, name in zip(examples, program.graph_signature.user_inputs, strict=True):
        for axis in example.dynamic():
            size = shapes[name][axis]
            if str(size).isdigit():  # an int, or a symbol with a single possible value
                raise ModelError(
                    f"dimension {axis} of input {example.name} cannot be dynamic: the export fixed it at {size}",
                    why=f"{request.source.text} computes with {size} as a constant there",
                    fix=f"Take sizes from the input in forward (x.shape[{axis}]), or fix the dimension with --shape",
                )
    return program


def _check_not_training(program: Any, request: Request) -> None:
    """Raise ModelError if the program contains dropout or batch normalization in training mode."""
    for node in program.graph.nodes:
        operator = getattr(node.target, "_opname", "") if node.op == "call_function" else ""
        position = _TRAINING_ARGUMENT.get(operator)
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise ModelError(
                f"{request.source.text} was exported in training mode",
                why=f"its {operator} ({node.name}) is active",
                fix="Call module.eval() before torch.export.export",
            )


def _export_program(program: Any, request: Request, path: Path) -> None:
    """Write an `ExportedProgram` as ONNX, with outputs named as `_leaves` does."""
    torch = require("torch")
    try:
        onnx_program = _to_onnx(program)
        # The module's result with the position of each leaf in its place. Leaves that are None are not ONNX outputs.
        structure = torch.utils._pytree.tree_unflatten(
            list(range(program.call_spec.out_spec.num_leaves)), program.call_spec.out_spec
        )
        outputs = program.graph_signature.user_outputs
        names = [name for name, position in _leaves(structure) if outputs[position] is not None]
        for value, name in zip(onnx_program.model.graph.outputs, names, strict=True):
            value.name = name
        onnx_program.save(str(path))
    except Exception as error:
        raise ModelError(
            f"torch.onnx cannot export {request.source.text}",
            why=brief(error.__cause__ or error),
            fix="Replace the operation that it names, or give an ONNX file",
        ) from error
    name_dims(path)


def _to_onnx(program: Any) -> Any:
    """Return the `ONNXProgram` of an exported program.

    The exporter gives a buffer and a value of its own the same name if the module's author chose that, such as `index`
    in a Swin transformer. Its optimization then fails, so names are made unique before.
    """
    from onnx_ir.passes.common import NameFixPass

    onnx_program = require("torch").onnx.export(program, dynamo=True, verbose=False, optimize=False)
    NameFixPass()(onnx_program.model)
    onnx_program.optimize()
    return onnx_program


def _export_traced(source: Opened, examples: Sequence[Example], path: Path) -> None:
    """Write a TorchScript module as ONNX with the older exporter."""
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


def _outputs(result: Any) -> list[tuple[str, Any]]:
    """Return the (name, tensor) pairs of a module's result."""
    torch = require("torch")
    return [(name, value) for name, value in _leaves(result) if torch.is_tensor(value)]


def _leaves(result: Any) -> list[tuple[str, Any]]:
    """Return the (name, value) pairs of a module's result, which may nest dicts, tuples and dataclasses.

    The name joins the keys on the way to the value (`pooled`, `hidden_0`). Without a key other than positions it is
    `output_<position>`, or `output` if there is one value only.
    """
    pytree = require("torch").utils._pytree
    leaves = pytree.tree_flatten_with_path(result)[0]
    named = []
    for position, (path, value) in enumerate(leaves):
        # torch has a class of key for each container: `key` of a dict, `name` of an object, `idx` of a sequence.
        keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        if all(key.isdigit() for key in keys):
            name = "output" if len(leaves) == 1 else f"output_{position}"
        else:
            name = "_".join(keys)
        named.append((name, value))
    return named
