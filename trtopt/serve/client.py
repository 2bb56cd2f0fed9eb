"""A client of a Triton server: what it serves, and requests.

Touches: the network.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from trtopt.data.dataset import Array
from trtopt.errors import EnvironmentUnableError, ModelError, TrtoptError, UsageError
from trtopt.requires import require
from trtopt.types import TensorSpec
from trtopt.wording import counted

_NAMES = {
    "BOOL": "bool",
    "BYTES": "string",
    "BF16": "bfloat16",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    **{f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
}
_TYPES = {name: triton for triton, name in _NAMES.items()}


class RequestError(TrtoptError):
    """Request that the server refused, or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Inputs and outputs of a served model, with their batch axis, and the largest batch (0: it has no batch axis)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Options of a request: a priority (1 is the most urgent), a timeout in seconds, and how many best classes."""

    priority: int = 0
    timeout: float = math.inf
    classes: int = 0


_PLAIN = Extras()


def address(url: str) -> str:
    """Return HOST:PORT of `grpc://HOST:PORT`.

    Raises:
        UsageError: the URL is of another form.
    """
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        valid = parts.scheme == "grpc" and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:
        valid = None
    if not valid:
        raise UsageError(
            f"--server {url} is not the gRPC address of a Triton server",
            fix="Write --server grpc://HOST:8001; 8000 is the port for HTTP",
        )
    return parts.netloc


class Client:
    """Connection to a server. Several threads may use it at the same time."""

    def __init__(self, url: str) -> None:
        self._module: Any = require("tritonclient.grpc")
        self._error: Any = require("tritonclient.utils").InferenceServerException
        self._url = url
        self._client = self._module.InferenceServerClient(address(url))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        """Return whether the server answers and is ready."""
        try:
            return bool(self._client.is_server_ready())
        except self._error:
            return False

    def models(self) -> dict[str, str]:
        """Return the models of the repository, each with why it is not loaded (empty: it is ready).

        Raises:
            EnvironmentUnableError: the server does not answer.
        """
        try:
            index = self._client.get_model_repository_index(client_timeout=10).models
        except self._error as error:
            raise EnvironmentUnableError(
                f"no Triton server answers at {self._url}",
                why=_line(error),
                fix="Check the address; the gRPC port is 8001 by default",
            ) from error
        return {each.name: "" if each.state == "READY" else _line(each.reason or "it is not loaded") for each in index}

    def chosen(self, name: str) -> str:
        """Return the model to use: `name`, or the only one of the server if it is empty.

        Raises:
            UsageError: the server has no such model that is ready, or several and no name is given.
            EnvironmentUnableError: the server does not answer.
        """
        models = self.models()
        ready = [model for model, why in models.items() if not why]
        if name in ready or (not name and len(ready) == 1):
            return name or ready[0]
        if name in models:
            raise UsageError(f"model {name} of {self._url} is not loaded", why=models[name])
        raise UsageError(
            f"{self._url} has no model {name}" if name else f"{self._url} serves {counted(len(ready), 'model')}",
            fix=f"Name one of {', '.join(ready) or 'those that it loads: none'}",
        )

    def signature(self, name: str) -> Signature:
        """Return what a model takes and answers.

        Raises:
            EnvironmentUnableError: the server does not answer.
        """
        try:
            metadata = self._client.get_model_metadata(name)
            config = self._client.get_model_config(name).config
        except self._error as error:
            raise EnvironmentUnableError(f"model {name} of {self._url} does not answer", why=_line(error)) from error
        return Signature(
            inputs=tuple(map(_spec, metadata.inputs)),
            outputs=tuple(map(_spec, metadata.outputs)),
            max_batch=int(config.max_batch_size),
        )

    def infer(self, name: str, feed: Mapping[str, Array], extras: Extras = _PLAIN) -> dict[str, Array]:
        """Send a request, and return its outputs.

        Raises:
            RequestError: the server refused it, or did not answer in time.
        """
        inputs = []
        for key, array in feed.items():
            dtype = "BYTES" if array.dtype.kind in "OSU" else _TYPES.get(array.dtype.name, array.dtype.name)
            tensor = self._module.InferInput(key, list(array.shape), dtype)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        outputs = None
        if extras.classes:
            names = [spec.name for spec in self.signature(name).outputs]
            outputs = [self._module.InferRequestedOutput(key, class_count=extras.classes) for key in names]
        timeout = extras.timeout if math.isfinite(extras.timeout) else None
        try:
            answer = self._client.infer(name, inputs, outputs=outputs, priority=extras.priority, client_timeout=timeout)
        except self._error as error:
            raise RequestError(_line(error)) from error
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    def counts(self, name: str) -> tuple[int, int]:
        """Return how many samples a model has answered, and in how many runs."""
        with contextlib.suppress(self._error):
            (stats,) = self._client.get_inference_statistics(name).model_stats
            return int(stats.inference_count), int(stats.execution_count)
        return 0, 0


def _spec(tensor: Any) -> TensorSpec:
    if tensor.datatype not in _NAMES:
        raise ModelError(f"{tensor.name} is {tensor.datatype}", why="trtopt does not know this type of tensor")
    shape = tuple("?" if dim < 0 else int(dim) for dim in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=_NAMES[tensor.datatype], shape=shape)


def _line(error: object) -> str:
    """Return the message of the server in one line."""
    return " ".join(str(error).split())[:300]


def zeros(specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Return a request of zeros, with 1 for each dynamic size."""
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape], spec.dtype) for spec in specs
    }
