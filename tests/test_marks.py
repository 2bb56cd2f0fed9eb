"""Ranges for a profiler. Nsight needs a GPU: a module that records the calls is put in place of nvtx."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

from support import DIGITS, EVAL

from trtopt.marks import DOMAIN, marked


def test_the_stages_of_a_conversion_and_the_batches_of_a_benchmark_are_ranges(cli, tmp_path, monkeypatch):
    ranges = []

    def annotate(name, *, domain):
        ranges.append((name, domain))
        return contextlib.nullcontext()

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    done = cli("convert", DIGITS, "-p", "fp16", "--data", EVAL, "--backend", "onnxruntime", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert [name for name, _ in ranges][:2] == ["read", "prepare"]
    ranges.clear()
    cli("bench", DIGITS, "--device", "cpu", "--batch", "1,2", "--seconds", "0.01", "-o", tmp_path / "bench")
    assert ranges == [("batch 1", DOMAIN), ("batch 2", DOMAIN)]


def test_the_package_itself_accepts_the_calls_without_a_profiler():
    import nvtx

    with marked("stage") as annotation:
        assert isinstance(annotation, nvtx.annotate)
        pass


def test_without_the_package_a_range_is_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with marked("stage"):
        pass
