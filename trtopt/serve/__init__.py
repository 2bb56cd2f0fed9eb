"""Model repositories of NVIDIA's Triton Inference Server, and the servers that load them."""
