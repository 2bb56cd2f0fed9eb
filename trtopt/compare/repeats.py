"""Whether FP32 gives the same outputs twice: drift from a model that draws random numbers says nothing.

Touches: reads the model file; the runner runs the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trtopt.compare.measures.outputs import Array, is_float
from trtopt.compare.pair import Runner
from trtopt.data.dataset import Dataset, batches
from trtopt.errors import ModelError
from trtopt.graph.randomness import random_nodes

_ROUNDING = 1e-6
"""Share of the signal energy that two runs may differ by: a GPU adds in another order each time."""

_SHOWN = 3


def check_repeats(runner: Runner, dataset: Dataset, path: Path) -> None:
    """Run the first sample twice, and refuse a model whose outputs differ.

    Raises:
        ModelError: they do; the nodes that draw random numbers are named, where there are any.
        DataError: the sample cannot be loaded or run.
    """
    if not len(dataset):
        return
    feed = next(batches(dataset, workers=1, among=range(1))).feed
    first = {name: np.array(array) for name, array in runner.run(feed).items()}
    differing = [name for name, array in runner.run(feed).items() if not _alike(first[name], array)]
    if not differing:
        return
    nodes = random_nodes(path)
    more = f", and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    drawn = (
        f"it draws random numbers in {', '.join(nodes[:_SHOWN])}{more}" if nodes else "two runs of one sample differ"
    )
    raise ModelError(
        f"{path}: output {', '.join(differing)} does not repeat, so its drift cannot be measured",
        why=drawn,
        fix="Export it after model.eval(), with the noise as an input; --no-compare builds without a verdict",
    )


def _alike(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    if not is_float(one):
        return bool((one == other).all())
    x, y = one.astype(np.float64), other.astype(np.float64)
    differs = ~((x == y) | (np.isnan(x) & np.isnan(y)))
    if not np.isfinite(x[differs]).all() or not np.isfinite(y[differs]).all():
        return False
    error, signal = np.square(x[differs] - y[differs]).sum(), np.square(x[np.isfinite(x)]).sum()
    return bool(error <= _ROUNDING * signal)
