"""A torch module from `package.module:factory`, with its weights.

Touches: imports and runs the user's code; reads the weights, never unpickling more than tensors.
"""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

from trtopt.errors import ModelError
from trtopt.export.text import brief
from trtopt.requires import require

_SHOWN = 4
_NESTED = ("state_dict", "model_state_dict", "model")


def build(reference: str, weights: Path | None) -> Any:
    """Return the `torch.nn.Module` that the factory makes, with `weights` loaded into it.

    Random numbers are seeded first, so that a factory that draws its weights draws the same ones each time.

    Raises:
        ModelError: there is no such factory, it fails, it returns something else, or the weights do not fit.
    """
    torch = require("torch")
    factory = _find(reference)
    random.seed(0)
    torch.manual_seed(0)
    require("numpy").random.seed(0)
    try:
        module = factory()
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"factory {reference} failed", why=brief(error), fix="Call it in Python to see where"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"factory {reference} returned no torch.nn.Module",
            why=f"it returned {type(module).__name__}",
            fix="Return the module itself",
        )
    if weights is not None:
        _load(module, _read(weights), weights)
    return module


def _find(reference: str) -> Any:
    path, _, name = reference.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path == missing or path.startswith(f"{missing}."):
            raise ModelError(
                f"{reference}: there is no module {missing}", fix="Run in the folder that holds it, or install it"
            ) from error
        raise ModelError(f"{reference}: importing {path} failed", why=brief(error)) from error
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"{reference}: importing {path} failed", why=brief(error)) from error
    found = getattr(module, name, None)
    if not callable(found):
        here = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        kind = f"{name} is no function" if hasattr(module, name) else f"{path} has no {name}"
        raise ModelError(f"{reference}: {kind}", fix=f"It has {', '.join(here)}" if here else "")
    return found


def _read(path: Path) -> dict[str, Any]:
    torch = require("torch")
    if not path.is_file():
        raise ModelError(f"--weights {path} does not exist", fix="Give a .safetensors file, or a .pt of a state_dict")
    try:
        if path.suffix.lower() == ".safetensors":
            found = require("safetensors.torch").load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        unsafe = "weights_only" in str(error) or "Weights only" in str(error)
        raise ModelError(
            f"--weights {path} holds more than weights" if unsafe else f"--weights {path} cannot be read",
            why="unpickling it could run code that is hidden in it" if unsafe else brief(error),
            fix="Save the weights alone: torch.save(module.state_dict(), ...), or as .safetensors",
        ) from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(torch.is_tensor(value) for value in found.values()):
        raise ModelError(f"--weights {path} is no state_dict", fix="Save it with torch.save(module.state_dict(), ...)")
    return found


def _load(module: Any, weights: dict[str, Any], path: Path) -> None:
    try:
        wrong = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes
        said = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise ModelError(
            f"--weights {path} does not fit the module", why="; ".join(said[:2]) or brief(error)
        ) from error
    parts = [
        f"{what} {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for what, names in (("it lacks", wrong.missing_keys), ("the module has no", wrong.unexpected_keys))
        if names
    ]
    if parts:
        raise ModelError(f"--weights {path} does not fit the module", why="; ".join(parts))
