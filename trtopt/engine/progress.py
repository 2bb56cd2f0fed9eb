"""Run TensorRT's builder so that it can be watched and cancelled.

Touches: one thread, which ends before `build_serialized` returns.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from trtopt.engine.locate import TensorRT
from trtopt.events import Emit, Progress

_Steps = queue.SimpleQueue["Progress | None"]
_POLL_SECONDS = 0.2
"""How long Ctrl-C waits where a blocking wait cannot be interrupted (Windows)."""


def build_serialized(trt: TensorRT, builder: Any, network: Any, config: Any, emit: Emit) -> Any:
    """Return the serialized engine as TensorRT gives it, None when it refuses.

    C++ works on a thread of its own: events are emitted from the caller's, and Ctrl-C is heard there.

    Raises:
        KeyboardInterrupt: Ctrl-C, once the builder has stopped. Whatever else `emit` raises stops it in the same way.
    """
    steps: _Steps = queue.SimpleQueue()
    cancelled = threading.Event()
    result: Future[Any] = Future()
    monitor = _monitor(trt, steps, cancelled)
    config.progress_monitor = monitor

    def work() -> None:
        try:
            result.set_result(builder.build_serialized_network(network, config))
        except Exception as error:  # noqa: BLE001 - raised again where the result is read
            result.set_exception(error)
        finally:
            steps.put(None)

    thread = threading.Thread(target=work, name="trtopt-build", daemon=True)
    thread.start()
    try:
        for step in _until_none(steps):
            emit(step)
    except BaseException:
        cancelled.set()
        raise
    finally:
        join(thread)
        config.progress_monitor = None
    return result.result()


def join(thread: threading.Thread) -> None:
    """Wait for the builder, further Ctrl-C or not: it stops at its next step, and works on what leaving would free."""
    while thread.is_alive():
        with contextlib.suppress(KeyboardInterrupt):
            thread.join(_POLL_SECONDS)


def _until_none(steps: _Steps) -> Iterator[Progress]:
    while True:
        try:
            step = steps.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if step is None:
            return
        yield step


def _monitor(trt: TensorRT, steps: _Steps, cancelled: threading.Event) -> Any:
    class Monitor(trt.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Tells the steps of the outermost phase; the note is the phase within it."""

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
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
