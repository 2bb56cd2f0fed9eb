"""ONNX graphs: reading and writing files, queries, taps, simulation of 16-bit types, preparation."""
