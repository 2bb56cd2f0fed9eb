"""Several models on one or more GPUs: which instances fit, what latency to expect, and the files that run them."""
