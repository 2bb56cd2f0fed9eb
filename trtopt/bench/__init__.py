"""How fast a target is, with the noise of the measurement beside each number, and which batch fits.

`READINGS` are the keys of `Timing.readings`. What the machine cannot say is absent, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading: what it is called in tables, what it is, and its unit (`bytes` are shown as a size)."""

    label: str
    text: str
    unit: str


READINGS = {
    "cpu_cores": Reading(label="CPU", text="cores that the process kept busy", unit="cores"),
    "process_memory": Reading(
        label="memory", text="resident memory of the process, with all targets loaded", unit="bytes"
    ),
    "gpu_utilisation": Reading(
        label="GPU", text="share of time in which the GPU had work, this target alone running", unit="%"
    ),
    "gpu_memory": Reading(label="GPU memory", text="memory in use on the whole GPU, all targets loaded", unit="bytes"),
    "gpu_power": Reading(label="power", text="power that the GPU drew, this target alone running", unit="W"),
}
"""In reading order."""
