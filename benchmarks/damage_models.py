"""The networks that `damage.py` damages: their samples, their task, and how they are converted to INT8.

Touches: reads the zoo and `samples/`; `ready` writes the run directory that it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import flags
from tasks import TASKS, Task, chosen, labels

from trtopt import BuildPlan, ConvertPlan, DataPlan, convert
from trtopt.config import ExportPlan

ROOT = Path(__file__).resolve().parent.parent
Array = NDArray[Any]

ZOO = ("mnist", "efflite0", "minilm", "ocrrec")
DRAWN = {"digits": 6, **dict.fromkeys(ZOO, 4), "resnet18": 2, "bert": 1}
"""Damages of each kind, by network: 200 in all. The last two have random weights: few damages matter there."""

SAMPLES = {"digits": 600, "mnist": 600, "efflite0": 120, "minilm": 300, "ocrrec": 120, "resnet18": 120, "bert": 120}
"""Evaluation samples, of both halves together."""

AGREEMENT = Task(
    "top-1 as FP32 %",
    lambda output: np.asarray(output.ravel().argmax()),
    lambda found: 100 * float(np.mean(np.asarray(found.kept) == np.asarray(found.reference))),
)
"""The task of a network that has class scores, and no labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, and its evaluation samples joined along the first axis: `feed` by input name.

    `task` is None where there is nothing to get right. `truth` are its labels, if it has any; `classes` says that they
    are classes of the output, so that a user would give them to `trtopt compare`.
    """

    name: str
    plan: ConvertPlan
    feed: Mapping[str, Array]
    task: Task | None = None
    truth: Array | None = None
    classes: bool = False

    @property
    def fp32(self) -> Path:
        """The network that is compared with, once it is `ready`."""
        return self.plan.run_dir / "fp32.onnx"

    @property
    def typed(self) -> Path:
        """The INT8 network, once it is `ready`."""
        return self.plan.run_dir / "typed.onnx"


def drawn(name: str, kind: str) -> int:
    """How many damages of a kind a model gets. The encoder of samples/ has no biases: the ResNet gets its share."""
    if kind.startswith("bias"):
        return {"bert": 0, "resnet18": DRAWN["resnet18"] + DRAWN["bert"]}.get(name, DRAWN[name])
    return DRAWN[name]


def opened(name: str, run_dir: Path, zoo: Path | None = None) -> Case:
    """Return a network with its samples; one of the zoo's is read from there."""
    sample: dict[str, Callable[[Path], Case]] = {"digits": _digits, "resnet18": _resnet18, "bert": _bert}
    if name in sample:
        return sample[name](run_dir)
    if zoo is None:
        sys.exit(f"{name} is a network of the zoo: give the folder that zoo.py filled")
    return _of_zoo(name, run_dir, zoo)


def ready(case: Case) -> Case:
    """Convert the network to INT8, unless that was done before."""
    if not case.typed.exists():
        convert(case.plan)
    return case


def _plan(run_dir: Path, source: Path, calib: str) -> ConvertPlan:
    return ConvertPlan(
        source=source,
        precision="int8",
        run_dir=run_dir,
        calib=DataPlan(source=calib),
        compare=False,
        build=BuildPlan(backend="onnxruntime"),
    )


def _of_zoo(name: str, run_dir: Path, zoo: Path) -> Case:
    plan = replace(_plan(run_dir, zoo / f"{name}.onnx", str(zoo / f"{name}.calib.npz")), shapes=flags(zoo, name))
    with np.load(zoo / f"{name}.eval.npz") as archive:
        feed = {key: archive[key][chosen(zoo, name, "eval", SAMPLES[name])] for key in archive.files}
    task, truth = TASKS[name], labels(zoo, name, SAMPLES[name])
    return Case(name=name, plan=plan, feed=feed, task=task, truth=truth, classes=task.metric.startswith("top-1"))


def _digits(run_dir: Path) -> Case:
    folder = ROOT / "samples/digits"
    with np.load(folder / "eval.npz") as archive:
        kept = np.linspace(0, len(archive["labels"]) - 1, SAMPLES["digits"]).astype(int)
        feed, truth = {"input": archive["input"][kept]}, archive["labels"][kept]
    plan = _plan(run_dir, folder / "model.onnx", str(ROOT / "calibration/digits"))
    return Case(name="digits", plan=plan, feed=feed, task=TASKS["mnist"], truth=truth, classes=True)


def _resnet18(run_dir: Path) -> Case:
    from samples.data import other_pictures

    plan = _plan(run_dir, Path("samples.pytorch_resnet.resnet:resnet18"), "samples.data:pictures")
    plan = replace(plan, shapes=("pixels=1x3x96x96:8x3x96x96:32x3x96x96",))
    return Case(name="resnet18", plan=plan, feed=_joined(other_pictures(SAMPLES["resnet18"])), task=AGREEMENT)


def _bert(run_dir: Path) -> Case:
    from samples.data import other_sentences

    plan = _plan(run_dir, Path("samples.bert_encoder.encoder:encoder"), "samples.data:sentences")
    inputs = ("input_ids", "attention_mask")
    plan = replace(
        plan,
        shapes=tuple(f"{name}=1x8:8x32:32x128" for name in inputs),
        export=ExportPlan(dtypes=tuple(f"{name}=int64" for name in inputs)),
    )
    return Case(name="bert", plan=plan, feed=_joined(other_sentences(SAMPLES["bert"])))


def _joined(samples: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    rows = list(samples)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
