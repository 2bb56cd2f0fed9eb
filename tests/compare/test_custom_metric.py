"""Custom metrics: their arguments, the average of their numbers, and their errors in one line."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trtopt.compare import custom
from trtopt.compare.gate import judge
from trtopt.compare.gates import parse_gates
from trtopt.compare.measures.outputs import Outputs
from trtopt.compare.pair import Pair
from trtopt.compare.run import Measure, compare
from trtopt.data.dataset import Dataset
from trtopt.errors import UsageError
from trtopt.events import silent

CODE = """
import numpy as np

def distance(reference, candidate, labels):
    return {"l1": np.abs(reference["y"] - candidate["y"]).mean(), "labelled": labels is not None}

def first_label(reference, candidate, labels):
    return {"label": labels[0]}

def nan(reference, candidate, labels):
    return {"mine": float("nan")}

def fails(reference, candidate, labels):
    raise ValueError("two\\nlines")

def ends(reference, candidate, labels):
    raise SystemExit(0)

def changes(reference, candidate, labels):
    reference["y"][:] = 0
    return {"mine": 0.0}

def number(reference, candidate, labels):
    return 0.5

def nothing(reference, candidate, labels):
    return {}

def text(reference, candidate, labels):
    return {"mine": "0.5"}

def arrays(reference, candidate, labels):
    return {"mine": reference["y"]}

def colon(reference, candidate, labels):
    return {"my:metric": 1}

def known(reference, candidate, labels):
    return {"top1": 1}

def unsteady(reference, candidate, labels):
    return {f"m{len(reference['y'])}": 1}

y = distance
constant = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write a module into the current folder, which is not on the import path."""
    (tmp_path / "my_metrics.py").write_text(CODE)
    (tmp_path / "other_metrics.py").write_text("def distance(reference, candidate, labels): return {'l2': 1}")
    (tmp_path / "broken_metrics.py").write_text("import no_such_module")
    (tmp_path / "ending_metrics.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("my_metrics", "other_metrics", "broken_metrics", "ending_metrics", "indirect_metrics"):
        sys.modules.pop(name, None)


def outputs(count: int, shift: float, start: int = 0, *, labels: bool = False) -> Outputs:
    y = np.zeros((count, 2), np.float32)
    indices = tuple(range(start, start + count))
    return Outputs(
        reference={"y": y}, candidate={"y": y + np.float32(shift)}, indices=indices, labels=indices if labels else None
    )


def test_numbers_are_averaged_over_samples_not_over_batches() -> None:
    metric = custom.OwnMetric("my_metrics:distance")
    metric.add(outputs(3, 1.0))
    metric.add(outputs(1, 5.0, 3))
    found = metric.drift()
    assert (found.output, found.kind) == ("distance", "own")
    assert found.values == {"l1": 2.0, "labelled": 0.0}


def test_labels_are_those_of_the_batch() -> None:
    metric = custom.OwnMetric("my_metrics:first_label")
    metric.add(outputs(2, 0.0, 6, labels=True))
    assert metric.drift().values == {"label": 6.0}


def test_a_gate_on_a_custom_metric_fails_on_nan() -> None:
    metric = custom.OwnMetric("my_metrics:distance")
    metric.add(outputs(3, 1.0))
    verdicts = [gate.verdict for gate in judge([metric.drift()], parse_gates("l1<=1,l1>=1.5,distance:l1<=2"), 3)]
    assert verdicts == ["pass", "fail", "pass"]
    metric = custom.OwnMetric("my_metrics:nan")
    metric.add(outputs(3, 1.0))
    assert math.isnan(metric.drift().values["mine"])
    for gate in ("mine>=0", "mine<=0"):
        assert [result.verdict for result in judge([metric.drift()], parse_gates(gate), 3)] == ["fail"]


def test_the_current_folder_is_on_the_path_only_while_the_code_runs() -> None:
    before = list(sys.path)
    custom.OwnMetric("my_metrics:distance").add(outputs(1, 0.0))
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("my_metrics", "--metric 'my_metrics' is not the name of a function. Write package.module:function"),
        ("my_metrics:", "--metric 'my_metrics:' is not the name of a function"),
        (
            "no_metrics:f",
            "--metric no_metrics:f cannot be imported: ModuleNotFoundError: No module named 'no_metrics'",
        ),
        (
            "broken_metrics:f",
            "--metric broken_metrics:f cannot be imported: ModuleNotFoundError: No module named",
        ),
        (
            "ending_metrics:f",
            "--metric ending_metrics:f cannot be imported: SystemExit: 1",
        ),
        (
            "my_metrics:f",
            "--metric my_metrics:f cannot be imported: AttributeError: module 'my_metrics' has no",
        ),
        ("my_metrics:constant", "--metric my_metrics:constant is not a function: it is int"),
    ],
)
def test_a_wrong_function_name_is_refused_in_one_line(source: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        custom.OwnMetric(source)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "failed: ValueError: two lines"),
        ("ends", "failed: SystemExit: 0"),
        ("changes", "failed: ValueError: assignment destination is read-only"),
        ("first_label", "failed: TypeError: 'NoneType' object is not subscriptable"),
        ("number", "returned float: it must return a dict of numbers by name"),
        ("nothing", "returned an empty dict: it must return a dict of numbers by name"),
        ("text", "returned mine, which is not a number: it is str"),
        ("arrays", "returned mine, which is not a number: it is ndarray"),
        ("colon", "returned the name 'my:metric': --gate needs a name, as text without : = < > and commas"),
        ("known", "returned the name 'top1': top1 is a metric of trtopt. Return it under another name"),
    ],
)
def test_a_function_with_a_wrong_result_is_refused_in_one_line(function: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        custom.OwnMetric(f"my_metrics:{function}").add(outputs(2, 0.0))
    assert str(error.value).startswith(f"--metric my_metrics:{function} {message}")


def test_names_must_be_the_same_for_every_batch() -> None:
    metric = custom.OwnMetric("my_metrics:unsteady")
    metric.add(outputs(2, 0.0))
    with pytest.raises(UsageError, match="does not return the same names every time: m1 after m2"):
        metric.add(outputs(1, 0.0, 2))


def test_a_function_without_a_file_has_a_digest_too() -> None:
    assert len(custom.digest("math:fsum")) == 64


def test_two_functions_of_the_same_name_are_refused() -> None:
    with pytest.raises(UsageError, match="my_metrics:distance and --metric other_metrics:distance have the same name"):
        custom.opened(["my_metrics:distance", "other_metrics:distance"])


def test_the_digest_follows_the_code(tmp_path: Path) -> None:
    first = custom.digest("my_metrics:distance")
    assert custom.digest("my_metrics:distance") == first
    (tmp_path / "my_metrics.py").write_text(CODE + "# changed\n")
    assert custom.digest("my_metrics:distance") != first


def test_the_digest_follows_what_the_code_imports(tmp_path: Path) -> None:
    (tmp_path / "indirect_metrics.py").write_text("from other_metrics import distance as far\ndef f(*_): return far()")
    first = custom.digest("indirect_metrics:f")
    (tmp_path / "other_metrics.py").write_text("def distance(reference, candidate, labels): return {'l2': 2}")
    assert custom.digest("indirect_metrics:f") != first


class Doubled:
    """A runner that gives its input, times two, as `y`."""

    where = "numpy"

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": 2 * feed["x"]}


def run(*sources: str) -> list[tuple[str, str, dict[str, float]]]:
    samples = np.arange(12, dtype=np.float32).reshape(6, 2)
    data = Dataset(
        source="eval.npz",
        digest="d",
        ids=tuple("abcdef"),
        load=lambda i: {"x": samples[i : i + 1]},
        batched=True,
        labels=(0, 1) * 3,
    )
    pair = Pair(baseline=Doubled(), candidate=Doubled(), names=("a", "b"))
    found = compare(pair, data, Measure(metrics=sources), emit=silent, batch=4)
    assert [note for note in found.notes if "code" in note] == [f"the code of {s} was run" for s in sources]
    return [(output.output, output.kind, dict(output.values)) for output in found.outputs]


def test_a_comparison_shows_its_numbers_as_an_output() -> None:
    assert run("my_metrics:distance")[1:] == [("distance", "own", {"l1": 0.0, "labelled": 1.0})]


def test_a_function_with_the_name_of_an_output_is_refused() -> None:
    with pytest.raises(UsageError, match="--metric my_metrics:y has the name of output y"):
        run("my_metrics:y")
