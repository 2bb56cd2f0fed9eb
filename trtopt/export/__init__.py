"""Any source to FP32 ONNX, made ready for the stages that follow."""
