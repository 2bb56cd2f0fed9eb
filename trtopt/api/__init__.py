"""The commands as Python functions: `from trtopt import convert`.

Data (`calib`, `data`) is a path as on the command line, an array, a dict of arrays, an iterable of samples, a function
that returns one, or a `torch.utils.data.DataLoader`: `trtopt.data.given` describes each. `progress` is called with each
event of `trtopt.events`. Every function raises a `TrtoptError` where its command would exit with 2 or 3.

Touches: the run directory, as the command of the same name.
"""

from trtopt.api.conversion import calibrate, convert, export
from trtopt.api.measurement import bench, compare, inspect
from trtopt.api.prediction import merge, predict
from trtopt.api.search import sensitivity, tune

__all__ = [
    "bench",
    "calibrate",
    "compare",
    "convert",
    "export",
    "inspect",
    "merge",
    "predict",
    "sensitivity",
    "tune",
]
