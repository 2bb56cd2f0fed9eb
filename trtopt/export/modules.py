"""PyTorch modules, from a factory, a TorchScript file or a torch.export archive.

Touches: reads the source, and runs its code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trtopt.errors import ModelError
from trtopt.export import factory
from trtopt.export.request import Request
from trtopt.export.text import brief
from trtopt.requires import require


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that was loaded and can be called.

    `inputs` are the names of its parameters, in order; None if it accepts any name. `module` is the module itself, or
    the exported program of an archive.
    """

    call: Callable[[Mapping[str, Any]], Any]
    inputs: tuple[str, ...] | None
    module: Any
    notes: tuple[str, ...] = ()


def open_module(request: Request) -> Opened:
    """Load the source of a request.

    Raises:
        ModelError: it cannot be loaded.
    """
    source = request.source
    if source.kind == "factory":
        return _open_factory(request)
    return _open_script(source.text) if source.kind == "torchscript" else _open_program(source.text)


def _open_factory(request: Request) -> Opened:
    module = factory.build(request.source.text, request.weights)
    parameters = inspect.signature(module.forward).parameters.values()
    inputs = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    has_kwargs = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    notes = [f"the code of {request.source.text} was run"]
    if module.training:
        notes.append("the factory returned the module in training mode: it was switched to eval()")
    module.eval()
    return Opened(lambda feed: module(**feed), None if has_kwargs else tuple(inputs), module, tuple(notes))


def _open_script(text: str) -> Opened:
    torch = require("torch")
    try:
        module = torch.jit.load(text, map_location="cpu")
        inputs = tuple(argument.name for argument in module.forward.schema.arguments[1:])  # the first is `self`
    except Exception as error:
        raise ModelError(f"{text} cannot be loaded as TorchScript", why=brief(error), fix="Export it again") from error
    notes = ("the module was saved in training mode: it was switched to eval()",) if module.training else ()
    module.eval()
    return Opened(lambda feed: module(*(feed[name] for name in inputs if name in feed)), inputs, module, notes)


def _open_program(text: str) -> Opened:
    torch = require("torch")
    try:
        program = torch.export.load(text)
        inputs = tuple(program.graph_signature.user_inputs)
        module = program.module()
    except Exception as error:
        raise ModelError(
            f"{text} cannot be loaded as a torch.export archive", why=brief(error), fix="Save it again"
        ) from error
    if constants := [name for name in inputs if not isinstance(name, str)]:
        raise ModelError(f"{text} takes constants as inputs", why=f"{constants}", fix="Export it with tensors only")

    def call(feed: Mapping[str, Any]) -> Any:
        # The signature lists flat inputs; the module takes them in the structure that it was exported with.
        flat = [feed[name] for name in inputs]
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
        return module(*args, **kwargs)

    return Opened(call, inputs, program)
