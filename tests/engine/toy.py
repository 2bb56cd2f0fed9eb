"""Toy engines in place of TensorRT's: the typed graph in onnxruntime, with chosen times and errors."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import trtopt.engine.tensorrt as backend
from trtopt.engine import Order, Times, onnxruntime
from trtopt.types import Engine, EngineLayer, Support

TIMES = "timing-0123456789ab.cache"


@dataclass
class Toy:
    """A machine whose engines take `ms` by precision, and of which the builds numbered in `wrong` are wrong.

    A build without a timing cache times the kernels. If its number is in `misled`, these times lead to a wrong kernel,
    in each build that reads them from the cache.
    """

    ms: dict[str, float]
    wrong: set[int] = field(default_factory=set)
    misled: set[int] = field(default_factory=set)
    caches: list[Path | None] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    layers: tuple[EngineLayer, ...] = ()
    builds: list[str] = field(default_factory=list)

    def build(self, order: Order, out: Path, *, emit: object) -> Engine:
        self.builds.append(order.typed.precision)
        if order.typed.precision in self.refused:
            raise backend.EnvironmentUnableError("no engine of this precision")
        shutil.copyfile(order.typed.onnx.path, out)
        times = self._times(order.plan.timing_cache)
        with out.open("ab"):
            digest = hashlib.sha256(f"{len(self.builds)}".encode() + out.read_bytes()).hexdigest()
        engine = onnxruntime.build(order, out, emit=emit)
        return Engine(
            path=out,
            digest=digest,
            backend="tensorrt",
            builder=f"toy {order.typed.precision} {len(self.builds)} {times}",
            device="toy",
            size_bytes=engine.size_bytes,
            audit=engine.audit,
            audited="toy",
            layers=self.layers,
        )

    def _times(self, cache: Path | None) -> int:
        """Return the number of the build that the kernels were timed in."""
        self.caches.append(cache)
        if cache is not None and cache.exists():
            return int(cache.read_text())
        if cache is not None:
            cache.write_text(str(len(self.builds)))
        return len(self.builds)

    def layer_times(self, engine: Engine, feed: Mapping[str, np.ndarray], runs: int) -> Mapping[str, Sequence[float]]:
        """Return one millisecond for each layer, and three for one that did not fuse."""
        return {layer.name: [3.0 if layer.apart else 1.0] * runs for layer in engine.layers}

    def open(self, engine: Engine, *, graphs: bool, streams: int = 1) -> Runner:
        _, precision, build, times = engine.builder.split()
        wrong = int(build) in self.wrong or int(times) in self.misled
        return Runner(onnxruntime.open_runner(engine.path), self.ms[precision], wrong)


class Runner:
    """Runner of a toy engine."""

    device, weights, max_batch, where = "cuda", 0, 64, "toy GPU"

    def __init__(self, inner: onnxruntime.OrtRunner, ms: float, wrong: bool) -> None:
        self.inner, self.ms, self.wrong, self.inputs = inner, ms, wrong, inner.inputs

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self.inner.run(feed)
        return {name: -array if self.wrong else array for name, array in outputs.items()}

    def times(self, feed: dict[str, np.ndarray]) -> Times:
        return Times(copy_in=0.1, compute=self.ms, copy_out=0.1)

    def close(self) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch, toy: Toy) -> Toy:
    """Put the toy in place of TensorRT, in this process."""
    monkeypatch.setattr(backend, "check_options", lambda plan: None)
    monkeypatch.setattr(backend, "check", lambda model, plan, *, emit: Support(by="toy", rejections=()))
    monkeypatch.setattr(backend, "key", lambda plan: {"toy": 1})
    monkeypatch.setattr(backend, "host", lambda: {"toy": 1})
    monkeypatch.setattr(backend, "timing_cache", lambda plan: TIMES)
    monkeypatch.setattr(backend, "build", toy.build)
    monkeypatch.setattr(backend, "open", toy.open)
    monkeypatch.setattr(backend, "layer_times", toy.layer_times)
    return toy
