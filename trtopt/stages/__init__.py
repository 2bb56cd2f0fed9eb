"""The stages of a run: the cache key, the files and the summary line of each.

The key of a stage holds everything that can change its result: digests of its inputs, its options, and the versions of
the libraries that it uses.
"""

from trtopt.stages.context import Context, Target, environment, versions
from trtopt.stages.engine import ENGINE_NOT_RUN, Evaluation, build, check_randomness, compare, gate
from trtopt.stages.graph import check_operators, prepare, set_precision
from trtopt.stages.samples import calibrate, equalize, observe, open_data, sizes

__all__ = [
    "ENGINE_NOT_RUN",
    "Context",
    "Evaluation",
    "Target",
    "build",
    "calibrate",
    "check_operators",
    "check_randomness",
    "compare",
    "environment",
    "equalize",
    "gate",
    "observe",
    "open_data",
    "prepare",
    "set_precision",
    "sizes",
    "versions",
]
