"""Drift of a candidate compared with the FP32 baseline, and gates."""
