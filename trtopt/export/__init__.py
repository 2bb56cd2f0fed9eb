"""Export of any supported source to FP32 ONNX, and preparation of the graph for the stages that follow."""
