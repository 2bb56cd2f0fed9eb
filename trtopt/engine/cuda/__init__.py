"""CUDA behind one interface, for cuda-python and pycuda."""
