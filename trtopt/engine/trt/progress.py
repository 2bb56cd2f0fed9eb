"""TensorRT's builder in a thread, with progress events and, from TensorRT 10 on, cancellation by Ctrl-C.

Touches: one thread, which ends before `build_serialized` returns.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from trtopt.engine.trt.diagnosis import logger
from trtopt.engine.trt.locate import TensorRT
from trtopt.events import Emit, Progress

_Steps = queue.SimpleQueue["Progress | None"]
_POLL_SECONDS = 0.2
"""Interval of waits: on Windows, Ctrl-C does not interrupt a wait without a timeout."""


def build_serialized(trt: TensorRT, builder: Any, network: Any, config: Any, emit: Emit) -> Any:
    """Build the engine and return it as TensorRT's `IHostMemory`, or None if TensorRT fails.

    The builder's C++ code blocks its thread. So it runs in a thread of its own, and the calling thread emits the events
    and receives Ctrl-C.

    Args:
        trt: the TensorRT package.
        builder: its builder.
        network: the network to build.
        config: the builder configuration. Its progress monitor is replaced, and removed at the end. Before TensorRT 10
            there is none: the log tells the progress, and the build cannot be cancelled.
        emit: receives the progress. Any exception that it raises cancels the build, too.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. The builder has stopped.
    """
    steps: _Steps = queue.SimpleQueue()
    cancelled = threading.Event()
    result: Future[Any] = Future()
    log = logger(trt.module.__name__)
    if trt.can.progress:
        config.progress_monitor = _monitor(trt, steps, cancelled)
    else:
        log.timing = lambda done, total: steps.put(Progress("build", done, total, "layers timed"))

    def work() -> None:
        try:
            result.set_result(builder.build_serialized_network(network, config))
        except Exception as error:  # noqa: BLE001 - raised again by `result.result()` in the calling thread
            result.set_exception(error)
        finally:
            steps.put(None)  # also after an error: it ends the loop below

    thread = threading.Thread(target=work, name="trtopt-build", daemon=True)
    thread.start()
    try:
        for step in _until_none(steps):
            emit(step)
    except BaseException:  # Ctrl-C, or an error of `emit`: ask the builder to stop
        cancelled.set()
        raise
    finally:
        join(thread)
        if trt.can.progress:
            config.progress_monitor = None
        else:
            log.timing = lambda *_: None
    return result.result()


def join(thread: threading.Thread) -> None:
    """Wait for the builder's thread, ignoring further Ctrl-C.

    A cancelled builder stops at its next step. Until then it uses the network and the configuration, which the caller
    releases afterwards.
    """
    while thread.is_alive():
        with contextlib.suppress(KeyboardInterrupt):
            thread.join(_POLL_SECONDS)


def _until_none(steps: _Steps) -> Iterator[Progress]:
    """Yield the steps from the queue until the builder's thread puts None at its end."""
    while True:
        try:
            step = steps.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if step is None:
            return
        yield step


def _monitor(trt: TensorRT, steps: _Steps, cancelled: threading.Event) -> Any:
    """Return a progress monitor that puts steps into the queue. The builder calls it from its own thread."""

    class Monitor(trt.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Progress in steps of the outermost phase; the note is the phase inside it."""

        def __init__(self) -> None:
            super().__init__()
            self.root, self.total, self.done = "", 0, 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not self.root:
                self.root, self.total = phase_name, num_steps
            elif parent_phase == self.root:
                steps.put(Progress("build", self.done, self.total, phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self.root:
                self.done = step + 1
                steps.put(Progress("build", self.done, self.total))
            return not cancelled.is_set()  # False cancels the build

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
