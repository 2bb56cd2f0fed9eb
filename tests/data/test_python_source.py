"""A function as a source: it runs once, to its end, and its failures are reported in one line."""

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from trtopt.data import batches, open_dataset, python
from trtopt.errors import DataError
from trtopt.types import TensorSpec

ONE = (TensorSpec(name="x", dtype="float32", shape=("n", 3)),)
Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        (tmp_path / "my_loader_for_tests.py").write_text(f"import numpy as np\n{code}\n")
        importlib.invalidate_caches()
        return "my_loader_for_tests:samples"

    yield write
    sys.modules.pop("my_loader_for_tests", None)


def refusal(source: str) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(source, ONE)
    return str(caught.value)


def test_a_generator_in_the_current_folder_runs_once_with_a_note(module: Module) -> None:
    source = module(
        "runs = []\n"
        "def samples():\n"
        "    runs.append(1)\n"
        "    for i in range(5):\n"
        "        yield {'x': np.full(3, i, np.float32), 'label': i % 2}"
    )
    before = list(sys.path)
    dataset = open_dataset(source, ONE)
    assert sys.path == before
    assert np.concatenate([b.feed["x"] for b in batches(dataset, 2)])[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert dataset.labels == (0, 1, 0, 1, 0)
    assert dataset.ids[4] == f"{source}[4]"
    assert any(f"the code of {source} was run and returned 5 samples" in note for note in dataset.notes)
    assert sys.modules["my_loader_for_tests"].runs == [1]


def test_a_returned_list_is_read_the_same_in_memory_and_on_disk(
    module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = module("def samples():\n    return [{'x': np.arange(3, dtype=np.float32)}] * 4")
    small = open_dataset(source, ONE)
    monkeypatch.setattr(python, "_IN_MEMORY", 16)
    spilled = open_dataset(source, ONE)
    assert small.digest == spilled.digest
    assert np.array_equal(small.load(3)["x"], spilled.load(3)["x"])


def test_the_temporary_file_is_closed_with_the_dataset(module: Module) -> None:
    dataset = open_dataset(module("def samples():\n    yield {'x': np.zeros(3, np.float32)}"), ONE)
    load = dataset.load
    del dataset
    assert load(0)["x"].shape == (1, 3)
    del load
    gc.collect()  # an unclosed file would be a ResourceWarning, which is an error here


def test_the_digest_is_of_the_samples(module: Module) -> None:
    source = module("value = 0\ndef samples():\n    yield {'x': np.full(3, value, np.float32)}")
    first = open_dataset(source, ONE).digest
    assert open_dataset(source, ONE).digest == first
    sys.modules["my_loader_for_tests"].value = 1
    assert open_dataset(source, ONE).digest != first


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def other(): pass", "the function failed: AttributeError"),
        ("def samples(: pass", "the function failed: SyntaxError"),
        ("def samples(): raise RuntimeError('no\\ndisk')", "the function failed: RuntimeError: no disk"),
        ("def samples():\n    yield {'x': np.zeros(3, np.float32)}\n    1 / 0", "[1]: the function failed: ZeroDiv"),
        ("raise SystemExit(0)", "the function failed: SystemExit: 0"),
        ("def samples():\n    yield {'x': np.zeros(3, np.float32)}\n    raise SystemExit", "[1]: the function failed"),
        ("def samples(): return 3", "returned int: it must yield or return dicts"),
        ("def samples(): return {'x': 3}", "returned dict"),
        ("def samples(): yield np.zeros(3)", "is ndarray: a sample must be a dict"),
        ("def samples(): yield {'x': object()}", "x contains Python objects"),
        ("def samples(): yield {'x': [[1], [1, 2]]}", "[0]: the function failed: ValueError"),
        ("def samples(): yield {'x': [0.0, 1.0, 2.0]}", "x is float64"),
        ("def samples(): yield {'y': np.zeros(3, np.float32)}", "no array for input x: it has y"),
        ("def samples(): return iter(())", "no samples"),
    ],
)
def test_a_function_without_usable_samples_is_refused(module: Module, code: str, reason: str) -> None:
    assert reason in refusal(module(code))


def test_a_missing_module_is_refused() -> None:
    assert "ModuleNotFoundError" in refusal("no_module_of_this_name:samples")


def test_a_function_without_end_is_stopped(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "MAX_SAMPLES", 50)
    source = module("def samples():\n    while True:\n        yield {'x': np.zeros(3, np.float32)}")
    assert "yields more than 50 samples" in refusal(source)


INDEXED = """
made = []
class Squares:
    digest = "squares of 6"
    labels = [0, 1, 0, 1, 0, 1]
    def __len__(self): return 6
    def __getitem__(self, i):
        made.append(i)
        if i == 4: raise RuntimeError("no square")
        return {"x": np.full(2 if i == 5 else 3, i * i, np.float32)}
samples = Squares
"""


def test_samples_by_index_are_made_when_they_are_loaded(module: Module) -> None:
    source = module(INDEXED)
    dataset = open_dataset(source, ONE)
    made = sys.modules["my_loader_for_tests"].made
    assert (len(dataset), dataset.labels, made) == (6, (0, 1, 0, 1, 0, 1), [0])
    assert dataset.load(3)["x"].tolist() == [[9, 9, 9]]
    assert made == [0, 3]
    assert any("makes each of its 6 samples when it is needed" in note for note in dataset.notes)


def test_the_digest_of_samples_by_index_is_of_what_the_object_says(module: Module) -> None:
    source = module(INDEXED)
    first = open_dataset(source, ONE).digest
    assert open_dataset(source, ONE).digest == first
    sys.modules["my_loader_for_tests"].Squares.digest = "cubes of 6"
    assert open_dataset(source, ONE).digest != first


@pytest.mark.parametrize(
    ("index", "reason"),
    [(4, "[4]: the function failed: RuntimeError: no square"), (5, "x float32 [2] is not x float32 [3]")],
)
def test_a_bad_sample_by_index_is_refused_when_it_is_loaded(module: Module, index: int, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(module(INDEXED), ONE).load(index)
    assert reason in str(caught.value)


def test_an_empty_object_has_no_samples(module: Module) -> None:
    code = "class Empty:\n    digest = ''\n    def __len__(self): return 0\n    def __getitem__(self, i): return {}"
    assert "no samples" in refusal(module(f"{code}\nsamples = Empty"))
