"""trtopt: turn a trained network into a TensorRT engine that is safe to deploy."""

__version__ = "0.1.0"
