"""The backends `tensorrt` and `onnxruntime` of a server on a machine without a GPU: the graph, in trtopt's own runner.

A server finds this file as `<backends>/tensorrt/model.py`, so that it loads a `tensorrt_plan` configuration unchanged.
The folder of a version must hold the graph as `model.onnx`.
"""

import sys
from pathlib import Path

sys.path[:0] = PACKAGES  # written above: the backend ignores PYTHONPATH
# numpy cannot tell that the backend has already taken an array over, and would print a traceback for each of them.
sys.unraisablehook = lambda _: None

import json

import numpy as np
import triton_python_backend_utils as backend

from trtopt.engine.onnxruntime import open_runner


class TritonPythonModel:
    """An instance of a model."""

    def initialize(self, args):
        """Load the graph."""
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        self.outputs = [entry["name"] for entry in config["output"]]
        self.runner = open_runner(Path(args["model_repository"]) / args["model_version"] / "model.onnx")

    def execute(self, requests):
        """Run the requests that the server has joined as one batch, and return a response for each."""
        feeds = [{tensor.name(): np.from_dlpack(tensor) for tensor in request.inputs()} for request in requests]
        if not self.batched:
            return [self.response(self.runner.run(feed)) for feed in feeds]
        results = self.runner.run({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
        ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
        parts = {name: np.split(results[name], ends) for name in self.outputs}
        return [self.response({name: part[i] for name, part in parts.items()}) for i in range(len(feeds))]

    def response(self, results):
        """Return the response with these outputs."""
        arrays = ((name, np.array(results[name], order="C")) for name in self.outputs)
        return backend.InferenceResponse([backend.Tensor.from_dlpack(name, array) for name, array in arrays])
