"""Backends that turn typed ONNX graphs into engines, and engines into outputs: `--backend NAME` is the module NAME."""
