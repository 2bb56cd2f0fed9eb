"""Which nodes a 16-bit type would spoil, as measured on a few samples: part of the stage `observe`.

Touches: temporary files in the run directory; reads the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt

from trtopt.calibrate.ranges import few
from trtopt.data.dataset import Dataset
from trtopt.errors import EnvironmentUnableError, MissingDependencyError, TrtoptError
from trtopt.formats import Format
from trtopt.precision.passes.blocks import DEPTHS, Block, discrete, enough, grown, measuring, single_nodes
from trtopt.run import Run
from trtopt.stages.trial import scratch
from trtopt.types import OnnxModel

_SAMPLES = 6


def spoiled(run: Run, model: OnnxModel, dataset: Dataset, half: Format) -> dict[str, str]:
    """Return the nodes to keep in FP32 because the type spoils a result, by name, each with the reason.

    A node whose result suffers from the rounding of its inputs is kept with as many of the nodes before it as it takes.
    Layers are among them only if nothing else helps. Indices and conditions are kept with all nodes behind the layers.
    If no number of nodes helps, the node is not kept.
    """
    from trtopt.graph.file import load_ir

    graph = load_ir(model.path)
    least = enough(half)
    reasons: dict[str, str] = {}
    try:
        blocks = single_nodes(graph)
        sqnrs = _sqnrs(run, model, dataset, half, blocks)
        left = {block.end: sqnr for block, sqnr in zip(blocks, sqnrs, strict=True) if sqnr < least}
        for layers, depth in product((False, True), DEPTHS):
            blocks = [block for end in left if (block := grown(graph, end, depth, layers=layers)) is not None]
            for block, sqnr in zip(blocks, _sqnrs(run, model, dataset, half, blocks), strict=True):
                if sqnr < least:
                    continue
                before = left.pop(block.end)
                _keep(reasons, block, f"its result has {before:.0f} dB SQNR if its inputs are {half.name.upper()}")
        exact = discrete(graph)
        rounded = [replace(block, kept=False) for block in exact]
        sqnrs = _sqnrs(run, model, dataset, half, [*rounded, *exact]).reshape(2, -1)
        for block, before, after in zip(exact, *sqnrs, strict=True):
            if before < least <= after:
                changed = 100 * 10 ** (-before / 10)
                _keep(reasons, block, f"{changed:.2g} % of its values change if its inputs are {half.name.upper()}")
    except (EnvironmentUnableError, MissingDependencyError):
        raise
    except TrtoptError as error:
        run.warn(f"rounding to {half.name.upper()} could not be measured node by node: {error}")
    return reasons


def _keep(reasons: dict[str, str], block: Block, reason: str) -> None:
    """Add the nodes of a block to the reasons, in place; `reason` is that of its end."""
    for name in block.nodes:
        reasons.setdefault(name, f"computes the inputs of {block.end}, which rounding spoils")
    reasons[block.end] = reason


def _sqnrs(
    run: Run, model: OnnxModel, dataset: Dataset, half: Format, blocks: Sequence[Block]
) -> npt.NDArray[np.float64]:
    """Return the SQNR in dB of each block's result; infinite for one that is exact, or is NaN or infinite in FP32."""
    from trtopt.engine.onnxruntime import open_runner
    from trtopt.graph.file import load_ir
    from trtopt.graph.prepare import BETWEEN_STAGES, save

    if not blocks:
        return np.zeros(0)
    samples = few(dataset, _SAMPLES)
    energies = np.zeros((2, len(blocks)))
    with scratch(run, "blocks.onnx") as path:
        save(measuring(load_ir(model.path), half, blocks), path, inline=BETWEEN_STAGES)
        runner = open_runner(path, device=run.device, simulates=False)  # it only casts to the type and back
        for index in range(len(samples)):
            outputs = runner.run(samples.load(index))
            energies += np.stack([outputs["trtopt/error"], outputs["trtopt/signal"]]).astype(np.float64)
    error, signal = energies
    with np.errstate(divide="ignore", invalid="ignore"):
        sqnr = 10 * np.log10(signal / error)
    return np.where(np.isfinite(error) & (error > 0), sqnr, math.inf)
