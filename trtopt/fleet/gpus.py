"""The GPUs of a fleet: `--gpu NAME`, or those of this machine.

Touches: NVML, for `auto`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from trtopt.bench import nvml
from trtopt.bench.units import BYTES, quantity
from trtopt.errors import EnvironmentUnableError, UsageError
from trtopt.fleet.demand import Gpu

_MIB = 2**20
MEMORY = {
    "T4": 15360,
    "L4": 23034,
    "A10": 23028,
    "A10G": 23028,
    "A30": 24576,
    "L40S": 46068,
    "A100-40GB": 40960,
    "A100-80GB": 81920,
    "H100-80GB": 81559,
    "H200": 143771,
    "B200": 183359,
}
"""Memory in MiB as nvidia-smi reports it. That of a machine may differ by its driver: `auto` reads it."""
_GPU = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)(/(?P<profile>(?P<slices>[1-7])g\.(?P<gb>[0-9]+)gb))?(=(?P<memory>[^:,]+))?"
    r"(:(?P<count>[0-9]+))?"
)
_SLICES = 7
_MOST = 64


def parse(texts: Sequence[str]) -> tuple[Gpu, ...]:
    """Return the GPUs of `--gpu` flags: `L4`, `L4:2`, `mine=8GiB`, `H100-80GB/3g.40gb:2` (slices), or `auto`.

    Slices of a profile are those of one GPU.

    Raises:
        UsageError: one does not parse, is unknown, or its slices are more than a GPU has.
        MissingDependencyError: `auto` without nvidia-ml-py.
        EnvironmentUnableError: `auto` on a machine without a GPU.
    """
    found: list[Gpu] = []
    number = 0
    for part in ",".join(texts).split(","):
        if part.strip() == "auto":
            found += here(first=number)
            number = 1 + max(int(gpu.device.partition(":")[0]) for gpu in found)
            continue
        match = _GPU.fullmatch(part.strip())
        if match is None or not 0 < int(match["count"] or 1) <= _MOST:
            raise UsageError(
                f"--gpu {part.strip()!r} does not parse",
                fix="Write auto, NAME:COUNT, NAME=MEMORY or NAME/PROFILE:COUNT, as in L4:2 or H100-80GB/3g.40gb:2",
            )
        own = _slices(match, number) if match["profile"] else _whole(match, number)
        number += 1 if match["profile"] else len(own)
        found += own
    return tuple(found)


def _whole(match: re.Match[str], first: int) -> list[Gpu]:
    memory = _stated(match) or _known(match["name"])
    count = int(match["count"] or 1)
    return [Gpu(device=str(first + i), name=match["name"], memory=memory) for i in range(count)]


def _slices(match: re.Match[str], number: int) -> list[Gpu]:
    size, count = int(match["slices"]), int(match["count"] or 1)
    if size * count > _SLICES:
        raise UsageError(
            f"--gpu {match[0]}: {count} slices of {size}/{_SLICES}", why="a GPU has no more than 7", fix="Ask for fewer"
        )
    # The profile rounds up on some GPUs (1g.18gb of an H200 has 16 GiB), so 8 % stay unused unless it is stated.
    memory = _stated(match) or int(int(match["gb"]) * 0.92 * 1e9)
    if match["name"] in MEMORY and memory * count > _known(match["name"]):
        raise UsageError(f"--gpu {match[0]}: the slices have more memory than the GPU", fix="Ask for fewer")
    name = f"{match['name']}/{match['profile']}"
    return [
        Gpu(device=f"{number}:{i}", name=name, memory=memory, speed=size / _SLICES, profile=match["profile"])
        for i in range(count)
    ]


def _stated(match: re.Match[str]) -> int:
    text = match["memory"]
    return int(quantity(text, BYTES, f"--gpu {match[0]}", "--gpu mine=8GiB")) if text else 0


def _known(name: str) -> int:
    if name in MEMORY:
        return MEMORY[name] * _MIB
    close = difflib.get_close_matches(name.upper(), MEMORY, 1, 0.4)
    hint = f"Did you mean {close[0]}? Or state" if close else "State"
    raise UsageError(
        f"unknown GPU {name!r}", why=f"known are {', '.join(MEMORY)}", fix=f"{hint} its memory: --gpu {name}=24GiB"
    )


def here(first: int = 0) -> list[Gpu]:
    """Return the GPUs of this machine, and the slices of those that are divided.

    Raises:
        MissingDependencyError: nvidia-ml-py is not installed.
        EnvironmentUnableError: no GPU reports its memory.
    """
    module = nvml.start("--gpu auto finds no GPU")
    try:
        found = []
        for number in range(int(module.nvmlDeviceGetCount())):
            handle = nvml.ask(module, partial(module.nvmlDeviceGetHandleByIndex, number))
            name = nvml.name(module, handle).removeprefix("NVIDIA ").replace(" ", "-") if handle else ""
            slices = _divided(module, handle, name, first + number) if handle else []
            readings = nvml.readings(module, handle, ("memory_total",)) if handle else {}
            if slices:
                found += slices
            elif readings:
                found.append(Gpu(device=str(first + number), name=name, memory=int(readings["memory_total"])))
    finally:
        nvml.stop(module)
    if not found:
        raise EnvironmentUnableError(
            "--gpu auto finds no GPU that reports its memory", fix="State it: --gpu NAME=24GiB"
        )
    return found


def _divided(module: Any, handle: Any, name: str, number: int) -> list[Gpu]:
    """Return the MIG slices of a GPU; none if it is not divided."""
    mode = nvml.ask(module, lambda: module.nvmlDeviceGetMigMode(handle))
    if not mode or mode[0] != 1:
        return []
    found = []
    for i in range(int(module.nvmlDeviceGetMaxMigDeviceCount(handle))):
        part = nvml.ask(module, partial(module.nvmlDeviceGetMigDeviceHandleByIndex, handle, i))
        own = nvml.readings(module, part, ("memory_total",)) if part else {}
        sizes = nvml.ask(module, partial(module.nvmlDeviceGetAttributes, part)) if part else None
        if own and sizes is not None:
            size = int(sizes.gpuInstanceSliceCount)
            profile = f"{size}g.{round(own['memory_total'] / 2**30)}gb"
            found.append(
                Gpu(
                    device=f"{number}:{i}",
                    name=f"{name}/{profile}",
                    memory=int(own["memory_total"]),
                    speed=size / _SLICES,
                    profile=profile,
                )
            )
    return found
