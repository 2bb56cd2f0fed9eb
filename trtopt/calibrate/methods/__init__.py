"""Calibration methods: `--method NAME` is the module of that name.

A module has one function, `amax(histogram) -> float`. It returns the largest magnitude that the scale must represent,
positive and finite, from the histogram alone.
"""
