"""Results of the search for a mixed precision, and of the analysis of its groups.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trtopt.types.comparison import GateResult
from trtopt.types.precision import Keep

Half = Literal["search", "verdict"]
"""The half of the samples on which a choice was evaluated: the one that was searched on, or the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A choice of the groups to quantize, as it was evaluated.

    Attributes:
        half: the samples that it was evaluated on.
        samples: their number. Most choices of the search are settled on a few.
        quantized: the number of groups that are quantized.
        share: their share of all multiplications, from 0 to 1.
        cost: the cost of the network, relative to the one without any quantized group.
        drift: the lowest SQNR of the outputs in dB, or another measure where there is none (`trtopt.compare.quality`).
        acceptable: whether every gate is as good as needed, in the search with a margin.
        reason: the gate that it fails; empty if it is acceptable.
        chosen: true for the result, as it was evaluated for the verdict.
    """

    half: Half
    samples: int
    quantized: int
    share: float
    cost: float
    drift: float
    acceptable: bool
    reason: str
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedGroup:
    """A group of nodes that share a quantizer, whether it is quantized, and why.

    `error` is the relative error energy at the outputs with only this group quantized, and `share` its share of all
    multiplications.
    """

    name: str
    nodes: tuple[str, ...]
    quantized: bool
    share: float
    error: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Result of a search for the cheapest mixed precision that passes the gates.

    Attributes:
        speed: the measure of cost.
        groups: every group, in graph order.
        choices: every choice that was evaluated, in order.
        share: the share of all multiplications that is quantized, from 0 to 1.
        cost: the cost of the result, relative to the network without any quantized group.
        searched: number of samples of the half that was searched on.
        judged: number of samples of the half that the verdict rests on.
        passes: forward passes of candidates in the search, one sample each.
        judging: the same for the verdict.
        stopped: why the search ended early; empty if it is complete.
        failed: the gate that fails without any quantized group; None if none does.
    """

    speed: str
    groups: tuple[TunedGroup, ...]
    choices: tuple[Choice, ...]
    share: float
    cost: float
    searched: int
    judged: int
    passes: int
    judging: int = 0
    stopped: str = ""
    failed: GateResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedLayer:
    """A layer of an engine with its times.

    Attributes:
        name: its name, which lists what was fused into it.
        nodes: the nodes of the typed graph that it computes; of a reformat, those beside it.
        ms: its time in each run, in milliseconds.
    """

    name: str
    nodes: tuple[str, ...]
    ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimes:
    """The layers of two engines of a network, and the nodes that stay in higher precision because of them.

    Attributes:
        half: the layers without any quantized node.
        quantized: the layers with all nodes quantized but those of `keep`.
        keep: nodes whose quantization makes the engine wrong, or not faster, each with the reason.
    """

    half: tuple[TimedLayer, ...]
    quantized: tuple[TimedLayer, ...]
    keep: tuple[Keep, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitiveGroup:
    """Loss of accuracy by quantizing one group.

    All errors are error energies at the outputs, relative to the signal energy, as a mean over the outputs.

    Attributes:
        name: the first of the nodes.
        nodes: the nodes.
        share: share of all multiplications, from 0 to 1.
        alone: the error with only this group quantized.
        low: lower bound of `alone` at 95 %, from resampled samples; NaN if it is an estimate.
        high: upper bound, as `low`.
        others: the error with every other group quantized.
        parts: the error with only one part of it quantized: `weight`, `clipped` and `rounded` activations; and `bias`,
            the change of the error by the correction of the bias, which is negative where that helps.
        exact: true if `alone` and `others` were measured on `SAMPLES` samples, false if they are estimates from fewer.
    """

    name: str
    nodes: tuple[str, ...]
    share: float
    alone: float
    others: float
    exact: bool
    low: float = math.nan
    high: float = math.nan
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The groups of a network, the one that adds the most error first.

    `whole` is the error with all groups quantized. `samples` were used to measure, and `few` of them to estimate.
    """

    groups: tuple[SensitiveGroup, ...]
    whole: float
    samples: int
    few: int
