"""The networks that `damage.py` damages: their evaluation samples, their task, and how they are converted to INT8.

Touches: reads the zoo and `samples/`; `converted` writes a run directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import flags
from tasks import TASKS, Task, chosen, labels

from trtopt.commands.convert import convert
from trtopt.plan import BuildPlan, ConvertPlan, DataPlan, ExportPlan
from trtopt.shapes import parse_shapes

ROOT = Path(__file__).resolve().parent.parent
Array = NDArray[Any]

DRAWN = {"digits": 6, "mnist": 4, "efflite0": 4, "minilm": 4, "ocrrec": 4, "resnet18": 2, "bert": 1}
"""Damages of each kind by network, 200 in all. The last two have random weights: few damages matter there."""

SAMPLES = {"digits": 600, "mnist": 600, "efflite0": 120, "minilm": 716, "ocrrec": 120, "resnet18": 120, "bert": 120}
"""Evaluation samples by network, seen and unseen together. The votes of `minilm` are noisy: on 150 unseen sentences the
score moves by 2 points after damages that do not change it on all 716."""

AGREEMENT = Task(
    "top-1 as FP32 %",
    lambda output: np.asarray(output.ravel().argmax()),
    lambda found: 100 * float(np.mean(np.asarray(found.kept) == np.asarray(found.reference))),
)
"""The task of a network with class scores and without labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network and its evaluation samples.

    Attributes:
        name: the name of the network.
        plan: how it is converted to INT8.
        feed: the samples by input name, joined along the first axis.
        task: the task; None if there is none.
        truth: the labels of the task, if it has labels.
        classes: whether the labels are classes of the output, so that `trtopt compare` can use them.
    """

    name: str
    plan: ConvertPlan
    feed: Mapping[str, Array]
    task: Task | None = None
    truth: Array | None = None
    classes: bool = False

    @property
    def fp32(self) -> Path:
        """Return the FP32 graph of the run directory."""
        return self.plan.run_dir / "fp32.onnx"

    @property
    def typed(self) -> Path:
        """Return the INT8 graph of the run directory."""
        return self.plan.run_dir / "typed.onnx"


def drawn(name: str, kind: str) -> int:
    """Return how many damages of one kind a network gets."""
    if kind.startswith("bias"):  # `bert` has no biases, and `resnet18` few: `efflite0` gets their shares
        return {"bert": 0, "resnet18": 0, "efflite0": 7}.get(name, DRAWN[name])
    return DRAWN[name]


def converted(case: Case) -> Case:
    """Convert the network to INT8, unless its run directory has the graph, and return the case."""
    if not case.typed.exists():
        convert(case.plan)
    return case


def opened(name: str, run_dir: Path, zoo: Path) -> Case:
    """Return a network of `samples/` or of the zoo, with its samples."""
    samples: dict[str, Callable[[Path], Case]] = {"digits": digits, "resnet18": resnet18, "bert": bert}
    return samples[name](run_dir) if name in samples else of_zoo(name, run_dir, zoo)


def of_zoo(name: str, run_dir: Path, zoo: Path) -> Case:
    plan = replace(
        _plan(run_dir, zoo / f"{name}.onnx", str(zoo / f"{name}.calib.npz")), shapes=parse_shapes(flags(zoo, name))
    )
    with np.load(zoo / f"{name}.eval.npz") as archive:
        feed = {key: archive[key][chosen(zoo, name, "eval", SAMPLES[name])] for key in archive.files}
    task, truth = TASKS[name], labels(zoo, name, SAMPLES[name])
    return Case(name=name, plan=plan, feed=feed, task=task, truth=truth, classes=task.metric.startswith("top-1"))


def digits(run_dir: Path) -> Case:
    folder = ROOT / "samples/digits"
    with np.load(folder / "eval.npz") as archive:
        kept = np.linspace(0, len(archive["labels"]) - 1, SAMPLES["digits"]).astype(int)
        feed, truth = {"input": archive["input"][kept]}, archive["labels"][kept]
    plan = _plan(run_dir, folder / "model.onnx", str(ROOT / "calibration/digits"))
    return Case(name="digits", plan=plan, feed=feed, task=TASKS["mnist"], truth=truth, classes=True)


def resnet18(run_dir: Path) -> Case:
    from samples.data import other_images

    plan = _plan(run_dir, Path("samples.pytorch_resnet.resnet:resnet18"), "samples.data:images")
    plan = replace(plan, shapes=parse_shapes(["pixels=1x3x96x96:8x3x96x96:32x3x96x96"]))
    return Case(name="resnet18", plan=plan, feed=_joined(other_images(SAMPLES["resnet18"])), task=AGREEMENT)


def bert(run_dir: Path) -> Case:
    from samples.data import other_sentences

    plan = replace(
        _plan(run_dir, Path("samples.bert_encoder.encoder:encoder"), "samples.data:sentences"),
        shapes=parse_shapes(["input_ids=1x8:8x32:32x128", "attention_mask=1x8:8x32:32x128"]),
        export=ExportPlan(dtypes={"input_ids": "int64", "attention_mask": "int64"}),
    )
    return Case(name="bert", plan=plan, feed=_joined(other_sentences(SAMPLES["bert"])))


def _plan(run_dir: Path, source: Path, calib: str) -> ConvertPlan:
    return ConvertPlan(
        source=source,
        precision="int8",
        run_dir=run_dir,
        calib=DataPlan(source=calib),
        compare=False,
        build=BuildPlan(backend="onnxruntime"),
    )


def _joined(samples: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    rows = list(samples)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
