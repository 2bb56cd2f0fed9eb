"""The stages: one file for each line that a run prints, and what they share.

A stage's key holds everything that can change its result: digests of its inputs, its options, and the versions of the
libraries that do the work.
"""

from trtopt.stages.aim import Aim, aim, check_fixed
from trtopt.stages.build import build, has_adopted
from trtopt.stages.calibrate import calibrate
from trtopt.stages.check import check_operators, hint_at_operators
from trtopt.stages.compare import Evaluation, check_randomness, compare
from trtopt.stages.equalize import equalize
from trtopt.stages.fault import REBUILDS, fault, rebuild, rebuilt, replaced
from trtopt.stages.gate import gate
from trtopt.stages.guard import guard
from trtopt.stages.mixed import Subject
from trtopt.stages.observe import observe
from trtopt.stages.precision import set_precision
from trtopt.stages.prepare import prepare
from trtopt.stages.read import read
from trtopt.stages.repair import repair
from trtopt.stages.samples import class_names, open_data, open_samples, sizes, tell
from trtopt.stages.sensitivity import sensitivity
from trtopt.stages.target import Target
from trtopt.stages.timing import Site, check_timing, timing
from trtopt.stages.tune import Halves, halves, tune, without
from trtopt.stages.widen import widen

__all__ = [
    "REBUILDS",
    "Aim",
    "Evaluation",
    "Halves",
    "Site",
    "Subject",
    "Target",
    "aim",
    "build",
    "calibrate",
    "check_fixed",
    "check_operators",
    "check_randomness",
    "check_timing",
    "class_names",
    "compare",
    "environment",
    "equalize",
    "fault",
    "gate",
    "guard",
    "halves",
    "has_adopted",
    "hint_at_operators",
    "observe",
    "open_data",
    "open_samples",
    "prepare",
    "read",
    "rebuild",
    "rebuilt",
    "repair",
    "replaced",
    "sensitivity",
    "set_precision",
    "sizes",
    "tell",
    "timing",
    "tune",
    "widen",
    "without",
]
