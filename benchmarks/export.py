"""Export of a ResNet-50: the time, and the peak memory of trtopt's own process and of its child process.

    python benchmarks/export.py

The model is a Keras ResNet-50 with random weights, as a SavedModel. Memory is the peak resident set as the system
counts it. `trtopt` is the process that the user starts, and `framework` is the largest of its children. 8 GB should be
free.

Touches: a temporary folder; prints on stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MB = 600
"""Largest peak memory of trtopt's own process that passes."""
_SAVE = """
import sys, keras
keras.utils.set_random_seed(0)
keras.applications.ResNet50(weights=None).export(sys.argv[1], verbose=False)
"""
_RUN = """
import json, resource, sys
from trtopt.cli.app import main
code = 1
try: main()
except SystemExit as leave: code = leave.code or 0
peaks = [resource.getrusage(who).ru_maxrss * 1024 / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"code": code, "own": peaks[0], "child": peaks[1]}))
"""


def export(source: str, folder: Path, *flags: str) -> tuple[float, dict[str, float], dict[str, float]]:
    """Run `trtopt export`. Return the wall-clock time in seconds, the peaks in MB, and the seconds of each stage."""
    start = time.perf_counter()
    arguments = ["export", source, "-o", str(folder / "model.onnx"), *flags]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    peaks = json.loads(done.stdout.splitlines()[-1])
    if peaks["code"]:
        raise SystemExit(done.stderr)
    report = json.loads((folder / "trtopt-out/model/export/report.json").read_text(encoding="utf-8"))
    return seconds, peaks, {stage["name"]: stage["seconds"] for stage in report["stages"]}


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved = folder / "resnet50"
        subprocess.run([sys.executable, "-c", _SAVE, str(saved)], check=True, capture_output=True)
        print(f"{'source':24} {'total':>8} {'export':>8} {'parity':>8} {'trtopt':>9} {'framework':>10}")
        seconds, peaks, stages = export(
            str(saved), folder, "--shape", "keras_tensor=1x224x224x3:2x224x224x3:2x224x224x3"
        )
        print(
            f"{'ResNet-50 SavedModel':24} {seconds:6.1f} s {stages['export']:6.1f} s {stages['parity']:6.1f} s "
            f"{peaks['own']:6.0f} MB {peaks['child']:7.0f} MB"
        )
    verdict = "under" if peaks["own"] < LIMIT_MB else "OVER"
    print(f"trtopt's own process: {verdict} {LIMIT_MB} MB")
    return 0 if peaks["own"] < LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
