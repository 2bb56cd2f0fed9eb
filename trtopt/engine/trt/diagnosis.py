"""Conversion of TensorRT's error messages into errors that name the ONNX node and propose a fix.

TensorRT keeps the first logger that it receives until the process ends, so there is one logger per TensorRT package. It
collects messages and prints nothing.

Touches: nothing on disk.
"""

from __future__ import annotations

import functools
import importlib
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from trtopt.errors import BuildError
from trtopt.types import EQUALIZED, Decision, Rejection

# Parts of messages to ignore. The first appears on every machine without a driver, the second is an internal message of
# TensorRT-RTX, the parser reports the content of the third better in its own errors, and the fourth follows from other
# errors of TensorRT 8.5.
_NOISE = ("cudaError 35", "Thread context has not been set", "ModelImporter.cpp", "Assertion engine != nullptr failed")

# Parts of messages to remove: positions in TensorRT's source, error numbers, and assertions.
_PLACES = re.compile(r"\s*In \S+ at /?\S+:\d+|\[\w+\.cpp::\w+::\d+\]\s*|\[\w+\.(?:cpp|h):\d+: \w+\]\s*")
_PREFIXES = re.compile(r"^(?:\d+: )?(?:I\w+::\w+: )?Error Code \d+: [\w ]+\((.*)\)\s*$", re.DOTALL)
_ASSERTIONS = re.compile(r"^Assertion (?:failed: |.*? failed\. (?=\S))")
_OPTIMIZING = re.compile(r"Running: \w+ on ")
_OPTIMIZED = re.compile(r"After concat removal: (\d+) layers")
_TIMING = "=============== Computing costs for"
_PARSING = re.compile(r"Parsing node: (.*) \[(\w+)\]")
_SHOWN = 3
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)(?: \| .*? \(\w+\))*\]", re.DOTALL)
"""Name of a node, which may contain any character; then, for a node of a subgraph, the graphs and nodes around it."""

# Pattern of a message, and the fix for it. The first match counts.
_FIXES = (
    ("Plugin not found", "Export the network without this operator, for which TensorRT has no plugin"),
    ("no optimization profile", "Give the smallest, usual and largest shape of every dynamic input with --shape"),
    ("no runners|any implementation", "TensorRT parses this operator but cannot run it: remove it from the network"),
    ("workspace|maxScratchSize", "Raise --workspace, or leave it out"),
    ("must (?:have|be of) (?:the )?same (?:input )?type", "The model mixes types at this node: see trtopt inspect"),
    ("zero point|unsupported input type of|must have type FP8", "Convert the FP32 model, not an already quantized one"),
    ("exceeds the maximum value", "Change the operator's parameter before the export"),
    ("out of memory|OutOfMemory", "Free memory, or lower --workspace and the largest --shape"),
)
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_MEMORY = "workspace|maxScratchSize|[mM]emory"
ELSEWHERE = ", or use --backend onnxruntime"
"""Part of a fix, for a model that onnxruntime can load."""

_FIX_OF_NODE = "Replace this operator before the export" + ELSEWHERE
_FIX_OF_MODEL = "Search NVIDIA's documentation for this message" + ELSEWHERE


@functools.cache
def logger(name: str) -> Any:
    """Return this process's logger for the TensorRT package `name`.

    Its attribute `errors` collects error messages, and `parsed` is the name and operator of the last node that the
    parser came to. Its function `at` is called with each such node, as in "Range node /positions", and with "" at the
    end. `timing` is called before TensorRT times the kernels of a layer, with the numbers of layers before it and in
    all. `during` is the message before the first error.
    """
    module = importlib.import_module(name)

    class Collector(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.during = self._last = ""
            self.parsed = ("", "")
            self.at: Callable[[str], None] = lambda _: None
            self.timing: Callable[[int, int], None] = lambda *_: None
            self._timed = self._layers = 0

        def log(self, severity: Any, message: str) -> None:
            if match := _PARSING.match(message):
                self.parsed = (match[1], match[2])
                self.at(f"{match[2]} node {match[1]}")
            if match := _OPTIMIZED.match(message):
                self._timed, self._layers = 0, int(match[1])
            elif message.startswith(_TIMING):
                self.timing(min(self._timed, self._layers), self._layers)
                self._timed += 1
            serious = severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR)
            if serious and not any(noise in message for noise in _NOISE):
                self.during = self.during if self.errors else self._last
                self.errors.append(message)
            self._last = message

    return Collector()


def rejections(parser: Any, parsed: tuple[str, str] = ("", "")) -> tuple[Rejection, ...]:
    """Return the errors of an `OnnxParser` in node order. A node without a name is named by its index, as in `#3`.

    `parsed` is the name and operator of the last parsed node: some errors only tell the function that parsed it.
    """
    rejected_nodes = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # Before TensorRT 10, an error has only the index of the node.
        node_name = error.node_name() if hasattr(error, "node_name") else ""
        name = node_name or (f"#{error.node()}" if error.node() >= 0 else "")
        message = clean(error.desc().removeprefix("Invalid Node - ").removeprefix(node_name))
        # The message of a failed check is just "false"; the name of the function tells what it checked.
        message = f"{error.func()}: {message}" if message in ("false", "") else message
        op = error.node_operator() if hasattr(error, "node_operator") else ""
        if not name and error.func() == f"import{parsed[1]}":
            name, op = parsed
        code = str(error.code()).rpartition(".")[2]
        rejected_nodes.append(Rejection(node=name, op=op, code=code, message=message))
    return tuple(rejected_nodes)


def clean(message: str) -> str:
    """Return a message of TensorRT without source positions, error numbers and the consequences of a missing driver.

    The period at the end is removed, as an error adds its own.
    """
    lines = []
    for line in message.splitlines():
        text = _PLACES.sub("", line).strip()
        match = _PREFIXES.match(text)
        text = (match[1] if match else text).strip()
        if text and not any(noise in line for noise in _NOISE):
            lines.append(re.sub(r"(?<!\.)\.$", "", _ASSERTIONS.sub("", text)))
    return "; ".join(lines)


def rejected(rejections: Sequence[Rejection], lowered: Collection[str] = ()) -> BuildError:
    """Return the error for a model with nodes that the parser rejects. `lowered` are its nodes that are not in FP32."""
    shown = "; ".join(map(_sentence, rejections[:_SHOWN]))
    more = f"; and {len(rejections) - _SHOWN} more" if len(rejections) > _SHOWN else ""
    return BuildError("TensorRT cannot parse the model", why=shown + more, fix=_fix(shown, rejections[0].node, lowered))


def _sentence(rejection: Rejection) -> str:
    where = f"{rejection.op} node {rejection.node}" if rejection.node else "the model"
    return f"{where}: {rejection.message} [{rejection.code}]"


def build_error(
    messages: Iterable[str],
    layers: Mapping[str, str],
    ops: Mapping[str, str],
    decisions: Iterable[Decision] = (),
    during: str = "",
) -> BuildError:
    """Return the error for a network that was parsed but cannot be built.

    Args:
        messages: TensorRT's error messages.
        layers: name of each TensorRT layer -> name of the ONNX node that it comes from.
        ops: name of each ONNX node -> its operator.
        decisions: the precision of each ONNX node.
        during: TensorRT's last message before the first error, which may tell the layer that it optimizes.
    """
    texts = list(dict.fromkeys(filter(None, map(clean, messages))))
    text = "; ".join(texts[:_SHOWN]) or "it gives no reason"
    node = _culprit(text, layers) or (_culprit(during, layers) if _OPTIMIZING.match(during) else "")
    lowered = {each.node: each for each in decisions if each.precision != "fp32"}
    where = f" at {ops.get(node, '')} node {node}" if node else ""
    fix = _fix(text, node, lowered)
    keep = _operators(lowered.values())
    if fix == _FIX_OF_MODEL and keep:
        fix = f"TensorRT does not tell the node. Try without 8 bits for some operators: {keep}{ELSEWHERE}"
    return BuildError(f"TensorRT cannot build the network{where}", why=text, fix=fix)


def _operators(decisions: Iterable[Decision]) -> str:
    """Return the `--keep` flags for the quantized operators but those that save the most time."""
    ops = {each.op for each in decisions if each.precision in ("int8", "fp8")}
    return " ".join(f"--keep {op}" for op in sorted(ops - _PRODUCTS))


def onnx_node(layer: Any, names: Collection[str] = ()) -> str:
    """Return the name of the ONNX node that a parsed layer comes from, or "" for a layer that the parser added.

    Before TensorRT 8.6, layers have no metadata. The parser names the first layer of a node like the node, and appends
    a number for the next ones; `names` are the nodes to recognize.
    """
    metadata = getattr(layer, "metadata", None)
    if metadata is not None:
        match = _ONNX_LAYER.fullmatch(metadata)
        return match[1] if match else ""
    if layer.name in names:
        return str(layer.name)
    base = re.sub(r"_\d+$", "", layer.name)
    return base if base in names else ""


def _culprit(text: str, layers: Mapping[str, str]) -> str:
    """Return the node whose layer name occurs in the text as a whole word, or ""; the longest name counts."""
    mentioned = []
    for layer in layers:
        # The plain search comes first: it is much faster, and a network has thousands of layers.
        if layer in text and re.search(rf"(?<![\w/]){re.escape(layer)}(?![\w/])", text):
            mentioned.append(layer)
    return layers[max(mentioned, key=len)] if mentioned else ""


def _fix(text: str, node: str, lowered: Collection[str]) -> str:
    default = _FIX_OF_NODE if node else _FIX_OF_MODEL
    if node.endswith(f"{EQUALIZED}/Mul") and not re.search(_MEMORY, text):
        return f"Convert with --no-equalization, so that no Mul is inserted{ELSEWHERE}"
    if node in lowered and not re.search(_MEMORY, text):
        return f"Keep the node in FP32 with --keep {shlex.quote(node)}=fp32{ELSEWHERE}"
    return next((fix for pattern, fix in _FIXES if re.search(pattern, text)), default)
