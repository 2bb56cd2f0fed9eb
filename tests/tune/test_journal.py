"""The journal of evaluations: what a killed run leaves can be read, and what belongs to other inputs is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtopt.errors import UsageError
from trtopt.tune import journal
from trtopt.tune.budget import Budget, parse_budget
from trtopt.tune.costs import check_speed
from trtopt.tune.journal import Journal


def test_answers_are_found_again(tmp_path: Path) -> None:
    Journal(tmp_path / "j", "key").record("a", {"x": 1.5})
    Journal(tmp_path / "j", "key").record("b", {"x": 2})
    again = Journal(tmp_path / "j", "key")
    assert (again.find("a"), again.find("b"), again.find("c"), len(again)) == ({"x": 1.5}, {"x": 2}, None, 2)


@pytest.mark.parametrize("cut", range(1, 45))
def test_a_torn_last_line_loses_one_answer_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    first = Journal(path, "key")
    for question in "abc":
        first.record(question, {"x": 1, "padding": "long enough"})
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, "key")
    assert again.find("a")
    assert again.find("b")
    assert again.find("c") is None
    again.record("c", {"x": 3})
    assert Journal(path, "key").find("c") == {"x": 3}


@pytest.mark.parametrize("text", ["", "\n", "[]\n", '{"key": 3}\n', "\0\0\0", '{"question": "a", "answer": {}}\n'])
def test_a_file_that_is_not_this_journal_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text)
    assert len(Journal(tmp_path / "j", "key")) == 0
    Journal(tmp_path / "j", "key").record("a", {})
    assert len(Journal(tmp_path / "j", "other")) == 0


def test_a_fresh_run_forgets(tmp_path: Path) -> None:
    Journal(tmp_path / "j", "key").record("a", {})
    assert len(Journal(tmp_path / "j", "key", fresh=True)) == 0


def test_the_file_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LARGEST", 200)
    book = Journal(tmp_path / "j", "key")
    for number in range(50):
        book.record(str(number), {"x": "y" * 20})
    assert book.find("49") is not None
    assert (tmp_path / "j").stat().st_size <= 200


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("", Budget()),
        ("30min", Budget(seconds=1800)),
        ("2 h", Budget(seconds=7200)),
        ("90s", Budget(seconds=90)),
        ("40candidates", Budget(candidates=40)),
    ],
)
def test_a_budget_is_parsed(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["30", "0min", "-3min", "1.5candidates", "3days", "soon"])
def test_a_budget_without_meaning_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        parse_budget(text)


def test_a_budget_is_spent() -> None:
    assert Budget(candidates=3).spent(1e9, 2) == ""
    assert "3 candidates" in Budget(candidates=3).spent(0.0, 3)
    assert "60 s" in Budget(seconds=60).spent(61.0, 0)


def test_an_unknown_speed_is_refused() -> None:
    with pytest.raises(UsageError, match="--speed flops"):
        check_speed("flops")
    check_speed("engine")
