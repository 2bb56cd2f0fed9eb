"""Class names: the file formats, their errors, and lists that do not fit a model's scores."""

from pathlib import Path

import pytest

from trtopt.data.classes import check_count, read_classes, score_count
from trtopt.data.dataset import ClassList, Dataset
from trtopt.errors import DataError, UsageError


def written(folder: Path, text: str, name: str = "classes.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text", ["circle\nring\nsquare", "circle\r\nring\r\nsquare\r\n", "\ufeffcircle\n ring\nsquare \n\n\n"]
)
def test_a_text_file_contains_one_name_per_line(tmp_path: Path, text: str) -> None:
    classes = read_classes(written(tmp_path, text))
    assert classes.index == {"circle": 0, "ring": 1, "square": 2}
    assert classes.complete


def test_a_whole_line_is_a_name(tmp_path: Path) -> None:
    classes = read_classes(written(tmp_path, "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"))
    assert classes.index == {"n01440764 tench, Tinca tinca": 0, "n01443537 goldfish, Carassius auratus": 1}


@pytest.mark.parametrize(
    ("text", "index", "complete"),
    [
        ('["circle", "ring"]', {"circle": 0, "ring": 1}, True),
        ('{"circle": 4, "ring": 0}', {"circle": 4, "ring": 0}, False),
        ('{"4": "circle", "0": "ring"}', {"circle": 4, "ring": 0}, False),
        ('{"7": 1, "1": 7}', {"7": 1, "1": 7}, False),
    ],
)
def test_json_contains_a_list_or_the_index_of_each_name(
    tmp_path: Path, text: str, index: dict[str, int], complete: bool
) -> None:
    classes = read_classes(written(tmp_path, text, "classes.JSON"))
    assert (classes.index, classes.complete) == (index, complete)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("c.txt", "", "contains no class names"),
        ("c.txt", " \n\n", "contains no class names"),
        ("c.txt", "a\n\nb", "the name of class 1 is blank"),
        ("c.txt", "a\nb\n a ", "a appears twice: as class 0 and as class 2"),
        ("c.json", "", "cannot be read as JSON"),
        ("c.json", "[" * 100_000, "cannot be read as JSON"),
        ("c.json", "[]", "contains no class names"),
        ("c.json", "{}", "contains no class names"),
        ("c.json", '["a", 3]', "the name of class 1 is 3, which is not text"),
        ("c.json", '["a", "a"]', "a appears twice"),
        ("c.json", '{"a": 0, "a": 1}', "'a' appears twice"),
        ("c.json", '{"0": "a", "1": "a"}', "a appears twice: as class 0 and as class 1"),
        ("c.json", '{"a": 1, "b": 1}', "two classes have index 1: a and b"),
        ("c.json", '{"0": "a", "00": "b"}', "two classes have index 0"),
        ("c.json", '{"a": -1}', "the index of a is -1"),
        ("c.json", '{"a": true}', "does not contain class names"),
        ("c.json", '{"a": 1.0}', "does not contain class names"),
        ("c.json", '{"0": ["n01440764", "tench"]}', "the name of class 0 is ['n01440764', 'tench'], which is not text"),
        ("c.json", '"a"', "does not contain class names"),
        ("c.json", '{"id2label": {"0": "a"}}', "does not contain class names"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_classes(written(tmp_path, text, name))
    assert f"{tmp_path / name}: " in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"c\.txt: cannot be read as class names"):
        read_classes(tmp_path / "c.txt")


@pytest.mark.parametrize(
    ("row", "count"), [((5,), 5), ((5, 1, 1), 5), ((1, 5), 5), ((), 0), ((1,), 0), ((3, 8, 8), 0), ((0,), 0)]
)
def test_scores_are_one_vector_per_sample(row: tuple[int, ...], count: int) -> None:
    assert score_count(row) == count


def listed(count: int) -> Dataset:
    return Dataset(
        source="eval",
        digest="",
        ids=("a",),
        load=lambda i: {},
        batched=True,
        labels=(0,),
        class_list=ClassList(count=count, what="class folders (circle, ring)"),
    )


@pytest.mark.parametrize("scores", [{"logits": 5}, {"embedding": 512, "logits": 5}, {"boxes": 0}, {}])
def test_a_list_as_long_as_the_scores_of_an_output_fits(scores: dict[str, int]) -> None:
    check_count(listed(5), scores)


@pytest.mark.parametrize(("count", "scores"), [(2, 5), (1000, 1001), (1001, 1000)])
def test_a_list_of_another_length_is_refused(count: int, scores: int) -> None:
    with pytest.raises(DataError) as caught:
        check_count(listed(count), {"logits": scores})
    assert str(caught.value).startswith(
        f"eval: the labels do not fit the model: they are indices into {count} class folders (circle, ring), and "
        f"output logits has {scores} scores. Give --classes FILE"
    )
