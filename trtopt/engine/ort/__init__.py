"""Parts of the backend `onnxruntime`."""
