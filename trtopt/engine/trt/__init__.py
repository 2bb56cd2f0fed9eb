"""TensorRT: finding the package, auditing an engine, explaining refusals, progress of a build."""
