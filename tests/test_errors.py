"""The error tree in the docstring matches the classes, and every error prints as one line."""

import inspect
import re

import pytest

from trtopt import errors
from trtopt.errors import TrtoptError

NODE = re.compile(r"^ {4}([│├└─ ]*)(\w+) +(\d+)", re.MULTILINE)


def drawn() -> dict[str, tuple[str | None, int]]:
    """Return class name -> (name of the parent, exit code), as drawn in the docstring."""
    assert errors.__doc__ is not None
    tree: dict[str, tuple[str | None, int]] = {}
    path: list[str] = []
    for prefix, name, code in NODE.findall(errors.__doc__):
        depth = len(prefix) // 4
        path[depth:] = [name]
        tree[name] = (path[depth - 1] if depth else None, int(code))
    return tree


def defined() -> dict[str, tuple[str | None, int]]:
    """Return the same mapping from the classes themselves."""
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, TrtoptError)]
    return {
        kind.__name__: (None if kind is TrtoptError else kind.__bases__[0].__name__, kind.exit_code) for kind in classes
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert drawn() == defined()


def test_every_class_has_a_description() -> None:
    assert errors.__doc__ is not None
    lines = [line for line in errors.__doc__.splitlines() if NODE.match(line) and "TrtoptError" not in line]
    assert all(len(NODE.sub("", line).strip()) > 20 for line in lines)
    assert len(lines) == len(defined()) - 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TrtoptError("it broke"), "it broke"),
        (TrtoptError("it broke", why="of rust"), "it broke: of rust"),
        (TrtoptError("it broke", fix="Oil it"), "it broke. Oil it"),
        (TrtoptError("it\nbroke", why="of\r\n  rust", fix="Oil it"), "it broke: of rust. Oil it"),
    ],
)
def test_an_error_prints_as_one_line(error: TrtoptError, line: str) -> None:
    assert str(error) == line


def test_exit_codes_are_those_of_the_documentation() -> None:
    assert (errors.EXIT_PASS, errors.EXIT_GATE_FAILED, errors.EXIT_INCONCLUSIVE) == (0, 1, 4)
    assert errors.EXIT_INTERRUPTED == 130
    assert {kind.exit_code for kind in (errors.UsageError, errors.AuditError, errors.StoreError)} == {2}
    assert {kind.exit_code for kind in (errors.MissingDependencyError, errors.EnvironmentUnableError)} == {3}
