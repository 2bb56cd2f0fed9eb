"""Observed activations to one scale per tensor: `--method NAME` is the module of that name."""
