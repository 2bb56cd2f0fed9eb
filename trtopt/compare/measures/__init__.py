"""Errors of an output, accumulated batch by batch, that the kinds of outputs share."""
