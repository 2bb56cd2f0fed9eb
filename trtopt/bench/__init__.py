"""Speed of targets, with the uncertainty of each number, and the largest batch that fits.

`READINGS` lists the keys of `Timing.readings`. Readings that the machine does not provide are absent, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Kind of reading: its label in tables, its description, and its unit (`bytes` are shown as a size)."""

    label: str
    text: str
    unit: str


READINGS = {
    "cpu_cores": Reading(label="CPU", text="cores kept busy by the process", unit="cores"),
    "process_memory": Reading(
        label="memory", text="resident memory of the process, with all targets loaded", unit="bytes"
    ),
    "gpu_utilisation": Reading(
        label="GPU", text="share of time in which the GPU was busy, this target running alone", unit="%"
    ),
    "gpu_memory": Reading(label="GPU memory", text="memory in use on the whole GPU, all targets loaded", unit="bytes"),
    "gpu_power": Reading(label="power", text="power drawn by the GPU, this target running alone", unit="W"),
}
"""Readings by their key in `Timing.readings`, in the order of the tables."""
