"""Running a TensorRT engine: memory, streams, CUDA graphs."""
