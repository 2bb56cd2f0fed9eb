"""The benchmark of damaged INT8 graphs on the digits sample: what loses answers on samples that `compare` did not see
fails on those that it saw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from damage import Trial
from damage_models import converted
from damage_models import digits as digits_case
from damage_page import caught, must_be_caught, page
from damages import KINDS, damaged
from support import Done

KIND = "activation: scale of Q alone x 4 or / 4"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(converted(digits_case(tmp_path_factory.mktemp("digits") / "run")))


def test_an_undamaged_graph_is_not_caught(digits: Trial) -> None:
    assert not caught(digits.undamaged)
    assert digits.undamaged["task"] > 98


def test_what_loses_answers_on_unseen_samples_is_caught(digits: Trial) -> None:
    damages = [damage for kind in KINDS for damage in digits.damages(kind, 2)]
    losing = [damage for damage in damages if damage["task"] <= digits.undamaged["task"] - 2]
    assert len(losing) >= 4
    assert [damage["what"] for damage in losing if not caught(damage)] == []


def test_damages_are_the_same_each_time(digits: Trial) -> None:
    first, again = (list(digits.damages(KIND, 1)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_damage_leaves_a_graph_that_onnx_accepts(digits: Trial, kind: str) -> None:
    model, what = damaged(onnx.load(digits.case.typed), kind, 0.99, np.random.default_rng(0))
    onnx.checker.check_model(model, full_check=True)
    assert what


def test_a_graph_whose_numbers_are_the_same_is_no_damage(digits: Trial) -> None:
    assert digits.record(onnx.load(digits.case.typed)) is None


def test_the_command_exits_as_the_benchmark_says(digits: Trial, cli: Callable[..., Done], tmp_path: Path) -> None:
    np.savez(tmp_path / "seen.npz", **digits.seen, labels=digits.case.truth[::2])
    codes = []
    for kind, place in ((KIND, 0.0), ("activation: scale of Q and DQ x 4 or / 4", 0.9)):
        model, _ = damaged(onnx.load(digits.case.typed), kind, place, np.random.default_rng(1))
        onnx.save(model, tmp_path / "damaged.onnx")
        files = (digits.case.fp32, tmp_path / "damaged.onnx")
        codes.append(cli("compare", *files, "--data", tmp_path / "seen.npz", "-o", tmp_path / "run").code)
        assert (codes[-1] == 1) == caught(digits.record(model))
    assert codes == [1, 0]


def test_the_page_counts_and_names_what_is_missed() -> None:
    fine = {"verdict": "pass", "gates": [["y", "cosine", 0.99, 0.98, "pass"]], "values": {"y": {}}}
    undamaged = {**fine, "task": 95.0, "cosine": {"y": 0.97}}
    kind = next(iter(KINDS))
    missed = {**undamaged, "kind": kind, "what": "conv: ruined", "cosine": {"y": 0.5}}
    found = {**missed, "verdict": "fail", "what": "conv: seen"}
    assert [must_be_caught(each, undamaged) for each in (undamaged, missed, found)] == [False, True, True]
    model = {"metric": "top-1 %", "samples": [3, 3], "fp32": 96.0, "ran": "", "machine": "", "seconds": 60.0}
    text = page({"net": {**model, "undamaged": undamaged, "damages": [missed, found]}})
    assert "Of 2 damages, 2 must be caught: 1 are caught and 1 missed.**" in text
    assert "| net: conv: ruined | 95.00 -> 95.00 | 0.9700 -> 0.5000 | cosine 0.99 (0.98) |" in text
    assert "net: conv: seen" not in text
