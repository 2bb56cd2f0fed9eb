"""Main program of the child process that runs a framework: reads a task, performs it, writes the reply.

    python -c "from trtopt.export.worker import main; main()" FOLDER

FOLDER contains `request.json`, and `feeds.npz` when the source is to be run. The reply is written to `reply.json`, with
`source.onnx` or `outputs.npz` beside it.

Touches: the folder, and anything that the source's own code touches.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from trtopt.codec import decode, encode
from trtopt.errors import TrtoptError
from trtopt.export.request import Request
from trtopt.export.text import brief


def main() -> None:
    """Perform the task in the folder that the command line names, and write the reply or the error."""
    folder = Path(sys.argv[1])
    task = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        reply = _perform(task["task"], decode(Request, task["request"]), folder)
    except TrtoptError as error:
        traceback.print_exc()  # for the log, which `--verbose` shows
        reply = {"error": type(error).__name__, "what": error.what, "why": error.why, "fix": error.fix}
    except MemoryError:
        raise  # without a reply: the parent recognizes it in the log
    except Exception as error:  # noqa: BLE001 - the reply is how the parent learns of it
        traceback.print_exc()
        reply = {"error": "ModelError", "what": "the export failed", "why": brief(error), "fix": ""}
    (folder / "reply.json").write_text(json.dumps(reply), encoding="utf-8")


def _perform(task: str, request: Request, folder: Path) -> dict[str, Any]:
    """Export or run the source with its framework, and return the reply."""
    framework = importlib.import_module(f"trtopt.export.{request.source.framework}")
    if task == "export":
        return {"exported": encode(framework.export(request, folder))}
    from trtopt.export.feeds import read_feeds, write_arrays

    write_arrays(folder / "outputs.npz", framework.run(request, read_feeds(folder / "feeds.npz")))
    return {"framework": framework.name()}
