"""Rewrites of an ONNX graph that the precisions share."""
