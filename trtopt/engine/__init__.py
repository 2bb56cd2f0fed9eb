"""Typed ONNX to an engine, and an engine to outputs: `--backend NAME` is the module of that name."""
