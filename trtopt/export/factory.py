"""A torch module built by a factory function, `package.module:factory`, with weights loaded into it.

Touches: imports and runs the user's code; reads the weights, and unpickles nothing but tensors.
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

_MAX_NAMES = 4  # of missing or unexpected weights, named in an error message
# Keys under which training scripts usually store the state_dict of a checkpoint.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")


def build(reference: str, weights: Path | None) -> Any:
    """Return the `torch.nn.Module` that the factory builds, with `weights` loaded into it.

    Python's, NumPy's and torch's random generators are seeded first, so that a factory with random weights returns the
    same module each time.

    Args:
        reference: the factory, as `package.module:factory`; it is called without arguments.
        weights: a .safetensors file, or a .pt file with a state_dict; None to keep the factory's own weights.

    Raises:
        ModelError: the factory does not exist, raises, or does not return a module, or the weights do not fit it.
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
            f"factory {reference} failed", why=brief(error), fix="Call it in Python to see the traceback"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"factory {reference} did not return a torch.nn.Module",
            why=f"it returned {type(module).__name__}",
            fix="Return the module itself",
        )
    if weights is not None:
        _load(module, _read(weights), weights)
    return module


def _find(reference: str) -> Any:
    """Import `package.module:factory` and return the function."""
    path, _, name = reference.partition(":")
    # The child process started without the current folder on its path; the user's module usually is there.
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        # The module itself, or a package that contains it; anything else is a dependency that it imports.
        if path == missing or path.startswith(f"{missing}."):
            raise ModelError(
                f"{reference}: module {missing} was not found", fix="Run in the folder that contains it, or install it"
            ) from error
        raise ModelError(f"{reference}: importing {path} failed", why=brief(error)) from error
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"{reference}: importing {path} failed", why=brief(error)) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        problem = f"{name} is not a function" if hasattr(module, name) else f"{path} has no {name}"
        raise ModelError(f"{reference}: {problem}", fix=f"It has {', '.join(functions)}" if functions else "")
    return factory


def _read(path: Path) -> dict[str, Any]:
    """Read a state_dict: tensors by parameter name."""
    torch = require("torch")
    if not path.is_file():
        raise ModelError(f"--weights {path} does not exist", fix="Give a .safetensors file, or a .pt of a state_dict")
    try:
        if path.suffix.lower() == ".safetensors":
            checkpoint = require("safetensors.torch").load_file(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch refuses to unpickle anything but tensors, and says so only in the text of its error.
        unsafe = "weights_only" in str(error) or "Weights only" in str(error)
        raise ModelError(
            f"--weights {path} contains more than weights" if unsafe else f"--weights {path} cannot be read",
            why="unpickling it could run code that is hidden in it" if unsafe else brief(error),
            fix="Save the weights alone: torch.save(module.state_dict(), ...), or as .safetensors",
        ) from error
    for key in _STATE_DICT_KEYS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if (
        not isinstance(checkpoint, dict)
        or not checkpoint
        or not all(torch.is_tensor(value) for value in checkpoint.values())
    ):
        raise ModelError(
            f"--weights {path} is not a state_dict", fix="Save it with torch.save(module.state_dict(), ...)"
        )
    return checkpoint


def _load(module: Any, weights: dict[str, Any], path: Path) -> None:
    """Load the weights into the module; every parameter must be there, with its shape, and nothing else."""
    try:
        mismatch = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # a shape differs: this is raised even with strict=False
        mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise ModelError(
            f"--weights {path} does not fit the module", why="; ".join(mismatches[:2]) or brief(error)
        ) from error
    problems = []
    if mismatch.missing_keys:
        problems.append(f"it lacks {_listed(mismatch.missing_keys)}")
    if mismatch.unexpected_keys:
        problems.append(f"the module has no {_listed(mismatch.unexpected_keys)}")
    if problems:
        raise ModelError(f"--weights {path} does not fit the module", why="; ".join(problems))


def _listed(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
