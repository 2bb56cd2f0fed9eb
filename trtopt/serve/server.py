"""A real Triton server on a machine without a GPU: the one in pytriton's wheel, with backends that run the graphs.

Touches: starts the server; ports of this machine; a temporary folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trtopt.errors import EnvironmentUnableError, MissingDependencyError
from trtopt.serve.client import Client

_START_SECONDS, _SECONDS_EACH = 60, 15
"""Time for a server to be ready, and for each of its models, which are processes that import onnxruntime."""
_STOP_SECONDS = 15
_PROGRAM = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Becomes the server. PR_SET_PDEATHSIG (1) ends it even if this process is killed; a `preexec_fn` is not safe with
threads, and Python 3.12 warns of it."""

_INSIDE = Path(__file__).parent / "inside"
CPU_BACKENDS = ("tensorrt", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs: its process, its gRPC address and the address of its metrics."""

    pid: int
    url: str
    metrics: str


def packages() -> list[str]:
    """Return the folders that this process imports packages from, for a Python that the server starts."""
    return [str(Path(entry).resolve()) for entry in sys.path if entry and Path(entry).exists()]


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[Server]:
    """Start a server on a repository, and stop it at the end of the block.

    The server is ready when all models that can be loaded are; `Client.unloaded` names the others.

    Raises:
        MissingDependencyError: pytriton or tritonclient is not installed.
        EnvironmentUnableError: the server does not start here.
    """
    home = _home()
    with tempfile.TemporaryDirectory(prefix="trtopt-triton-") as folder:
        backends = _backends(home, Path(folder))
        grpc, http, metrics = _free_ports(3)
        command = [
            *(sys.executable, "-c", _PROGRAM),
            str(home / "bin/tritonserver"),
            f"--model-repository={repository.resolve()}",
            f"--backend-directory={backends}",
            "--http-address=127.0.0.1",
            f"--http-port={http}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={grpc}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={metrics}",
            "--allow-gpu-metrics=false",
            "--metrics-config=summary_latencies=true",
            "--exit-on-error=false",
            "--strict-readiness=false",
            "--exit-timeout-secs=5",
            # The configurations are complete. To complete one, the server would start another process for each model.
            "--disable-auto-complete-config",
            f"--cache-directory={home / 'caches'}",
            "--cache-config=local,size=16777216",
        ]
        libraries = f"{home.parent.parent / 'nvidia_pytriton.libs'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
                cwd=folder,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops the server
            )
        try:
            server = Server(pid=process.pid, url=f"grpc://127.0.0.1:{grpc}", metrics=f"http://127.0.0.1:{metrics}")
            models = sum(1 for each in repository.iterdir() if each.is_dir())
            _await(process, server, log, _START_SECONDS + _SECONDS_EACH * models)
            yield server
        finally:
            _stop(process)


def _home() -> Path:
    """Return the folder of the server in pytriton's wheel."""
    found = importlib.util.find_spec("pytriton")
    places = found.submodule_search_locations if found else None
    if not places:
        raise MissingDependencyError(
            "pytriton is required and is not installed",
            why="its wheel holds a Triton server that runs without a GPU",
            fix="Install it: pip install --no-deps nvidia-pytriton",
        )
    return Path(places[0]) / "tritonserver"


def _backends(home: Path, folder: Path) -> Path:
    """Write the folder of the backends, and return it."""
    backends = folder / "backends"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise EnvironmentUnableError(
            f"pytriton's server has no Python {version}", fix="Run trtopt in a version of Python that it has"
        )
    shutil.copytree(home / "backends/python", backends / "python", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(stub, backends / "python")
    source = f"PACKAGES = {packages()!r}\n{(_INSIDE / 'cpu_backend.py').read_text(encoding='utf-8')}"
    for name in CPU_BACKENDS:
        (backends / name).mkdir()
        (backends / name / "model.py").write_text(source, encoding="utf-8")
    return backends


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _await(process: subprocess.Popen[bytes], server: Server, log: Path, seconds: float) -> None:
    """Wait until the server is ready, for some seconds.

    Raises:
        EnvironmentUnableError: it ended, or is not ready in time.
    """
    deadline = time.monotonic() + seconds
    with Client(server.url) as client:
        while process.poll() is None and time.monotonic() < deadline:
            if client.is_ready():
                return
            time.sleep(0.1)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("E") or "error" in line.lower()]
    raise EnvironmentUnableError(
        "Triton does not start here",
        why=(errors or lines or [f"it was not ready after {seconds:g} s"])[-1][:300],
        fix="It needs Linux with glibc 2.35, and the shared library of this Python (libpython)",
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server, and its backends with it."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
