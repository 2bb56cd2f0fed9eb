"""Drift of a candidate against the FP32 baseline, and the gate."""
