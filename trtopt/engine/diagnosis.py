"""What TensorRT says when it refuses a network, turned into errors that name the ONNX node and what to do about it.

Touches: nothing on disk. TensorRT keeps the first logger that it is given for the life of the process, so there is one
for each TensorRT package; it collects, and prints nothing.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trtopt.errors import BuildError
from trtopt.types import Rejection

_NOISE = ("cudaError 35", "Thread context has not been set", "ModelImporter.cpp")
"""Said on every machine without a driver; said by RTX about itself; said again, better, by the parser's own errors."""

_PLACES = re.compile(r"\s*In \S+ at /?\S+:\d+|\[\w+\.cpp::\w+::\d+\]\s*|\[\w+\.(?:cpp|h):\d+: \w+\]\s*")
_PREFIXES = re.compile(r"^(?:I\w+::\w+: )?Error Code \d+: [\w ]+\((.*)\)\s*$", re.DOTALL)
_ASSERTIONS = re.compile(r"^Assertion (?:failed: |.*? failed\. (?=\S))")
_SHOWN = 3
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)(?: \| .*? \(\w+\))*\]", re.DOTALL)
"""The node's name, which may hold anything; then, for a node of a body, the graphs and nodes around it."""

_FIXES = (
    ("Plugin not found", "TensorRT has no plugin for this operator: export the network without it"),
    ("no optimization profile", "Give the smallest, usual and largest shape of every dynamic input with --shape"),
    ("no runners|any implementation", "TensorRT parses this operator but cannot run it: take it out of the network"),
    ("workspace|maxScratchSize", "Raise --workspace, or leave it out"),
    ("must (?:have|be of) (?:the )?same (?:input )?type", "The model mixes types at this node: see trtopt inspect"),
    ("zero point|unsupported input type of|must have type FP8", "Convert the FP32 model, not one quantized already"),
    ("exceeds the maximum value", "Change the operator's parameter before the export"),
    ("out of memory|OutOfMemory", "Free memory, or lower --workspace and the largest --shape"),
)
_FIX_OF_NODE = "Replace this operator before the export, or use --backend onnxruntime"
_FIX_OF_MODEL = "Look the text up in NVIDIA's documentation, or use --backend onnxruntime"


@functools.cache
def logger(name: str) -> Any:
    """The one logger of this process for the package `name`; `.errors` collects messages of errors."""
    module = importlib.import_module(name)

    class Collector(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            serious = severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR)
            if serious and not any(noise in message for noise in _NOISE):
                self.errors.append(message)

    return Collector()


def rejections(parser: Any) -> tuple[Rejection, ...]:
    """The errors of an `OnnxParser`, in the order of the nodes; a node without a name is called by its place, `#3`."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name = error.node_name() or (f"#{error.node()}" if error.node() >= 0 else "")
        message = clean(error.desc().removeprefix("Invalid Node - ").removeprefix(error.node_name()))
        # A failed check says no more than "false": the function's name is what it checked.
        message = f"{error.func()}: {message}" if message in ("false", "") else message
        code = str(error.code()).rpartition(".")[2]
        found.append(Rejection(node=name, op=error.node_operator(), code=code, message=message))
    return tuple(found)


def clean(message: str) -> str:
    """TensorRT's text without positions in its source, error numbers and the noise of a missing driver."""
    lines = []
    for line in message.splitlines():
        text = _PLACES.sub("", line).strip()
        match = _PREFIXES.match(text)
        text = (match[1] if match else text).strip()
        if text and not any(noise in line for noise in _NOISE):
            lines.append(_ASSERTIONS.sub("", text))
    return "; ".join(lines)


def rejected(found: Sequence[Rejection]) -> BuildError:
    """The error for a model in which the parser refuses these nodes."""
    shown = "; ".join(map(_sentence, found[:_SHOWN]))
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return BuildError("TensorRT cannot parse the model", why=shown + more, fix=_fix(shown, found[0].node))


def _sentence(rejection: Rejection) -> str:
    where = f"{rejection.op} node {rejection.node}" if rejection.node else "the model"
    return f"{where}: {rejection.message} [{rejection.code}]"


def build_error(messages: Iterable[str], layers: Mapping[str, str], ops: Mapping[str, str]) -> BuildError:
    """The error for a network that was parsed and cannot be built.

    `layers` maps the name of a TensorRT layer to that of the ONNX node it comes from, `ops` that node to its operator.
    """
    texts = list(dict.fromkeys(filter(None, map(clean, messages))))
    text = "; ".join(texts[:_SHOWN]) or "it gives no reason"
    node = _culprit(text, layers)
    where = f" at {ops.get(node, '')} node {node}" if node else ""
    return BuildError(f"TensorRT cannot build the network{where}", why=text, fix=_fix(text, node))


def onnx_node(layer: Any) -> str:
    """Name of the ONNX node that a parsed layer comes from; empty for a layer that the parser added on its own."""
    match = _ONNX_LAYER.fullmatch(layer.metadata)
    return match[1] if match else ""


def _culprit(text: str, layers: Mapping[str, str]) -> str:
    """The node of the longest layer name that stands in the text as a word of its own."""
    named = [layer for layer in layers if layer in text and re.search(rf"(?<![\w/]){re.escape(layer)}(?![\w/])", text)]
    return layers[max(named, key=len)] if named else ""


def _fix(text: str, node: str) -> str:
    default = _FIX_OF_NODE if node else _FIX_OF_MODEL
    return next((fix for pattern, fix in _FIXES if re.search(pattern, text)), default)
