"""The stage `layer times`: the time of each layer of the engine, and so what the layers cost that did not fuse.

Touches: the run directory, through the store; the GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from trtopt.data.dataset import Feed
from trtopt.engine import Compiler
from trtopt.engine.trt.fusion import unfused_time
from trtopt.errors import EnvironmentUnableError, StoreError, TrtoptError
from trtopt.run import Run
from trtopt.types import Engine, LayerTimes

_RUNS = 20
_MOST_UNKNOWN = 0.1
"""Largest share of the time that layers may take which the engine inspector does not list."""


def layer_times(
    run: Run, engine: Engine, compiling: Compiler, batch: int, feed: Callable[[int], Feed], data: str
) -> LayerTimes | None:
    """Return the times of an engine's layers at one batch size.

    None, after a warning, if they cannot be timed, and None for an engine whose layers are not known.

    Args:
        run: the run.
        engine: the engine.
        compiling: the backend that built it.
        batch: the batch size.
        feed: returns the inputs for a batch size.
        data: the digest of the samples among the inputs; empty for random inputs.
    """
    if not engine.layers:
        return None

    def make(_: Path) -> LayerTimes:
        series = compiling.layer_times(engine, feed(batch), _RUNS)
        ms = {name: statistics.median(times) for name, times in series.items()}
        listed = {layer.name for layer in engine.layers}
        unknown = sum(time for name, time in ms.items() if name not in listed)
        if unknown >= _MOST_UNKNOWN * sum(ms.values()):
            raise EnvironmentUnableError("TensorRT's profiler names other layers than its engine inspector")
        return LayerTimes(batch=batch, ms={name: time for name, time in ms.items() if name in listed})

    key = {"engine": engine.digest, "host": compiling.host(), "batch": batch, "data": data}
    try:
        return run.store.stage("layer times", key, LayerTimes, make, lambda times: unfused_time(engine.layers, times))
    except StoreError:
        raise
    except TrtoptError as error:
        run.warn(f"the layers of the engine are not timed: {error}")
        return None
