"""The child process of an export: reads a task, does it with the framework, writes the answer.

    python -c "from trtopt.export.worker import main; main()" FOLDER

FOLDER holds `request.json` (and `feeds.npz`, when the source is to be run); the answer goes to `reply.json` (and
`source.onnx` or `outputs.npz`).

Touches: the folder; whatever the source's own code touches.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from trtopt.codec import decode, encode
from trtopt.errors import TrtoptError
from trtopt.export.request import Request
from trtopt.export.text import brief


def main() -> None:
    """Do the task in the folder that the command line names."""
    folder = Path(sys.argv[1])
    task = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        answer = _answer(task["task"], decode(Request, task["request"]), folder)
    except TrtoptError as error:
        answer = {"error": type(error).__name__, "what": error.what, "why": error.why, "fix": error.fix}
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the answer is how the parent learns of it
        answer = {"error": "ModelError", "what": "the export failed", "why": brief(error), "fix": ""}
    (folder / "reply.json").write_text(json.dumps(answer), encoding="utf-8")


def _answer(task: str, request: Request, folder: Path) -> dict[str, Any]:
    framework = importlib.import_module(f"trtopt.export.{request.source.framework}")
    if task == "export":
        return {"exported": encode(framework.export(request, folder))}
    from trtopt.export.feeds import read_feeds, write_arrays

    write_arrays(folder / "outputs.npz", framework.run(request, read_feeds(folder / "feeds.npz")))
    return {"framework": framework.name()}
