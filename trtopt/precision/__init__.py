"""ONNX (and a table) to typed ONNX: `--precision NAME` is the module of that name."""
