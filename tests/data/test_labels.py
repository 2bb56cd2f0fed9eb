"""Labels of images, from subfolders with class names and from a CSV file."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from trtopt.data import Dataset, Labelling, open_dataset, read_classes
from trtopt.data.recipe import ImageRecipe, Recipe
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec

INPUTS = (TensorSpec(name="x", dtype="float32", shape=("n", 3, 6, 8)),)
SHAPES = "circle\nellipse\nring\nsquare\ntriangle\n"


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (1, 2, 3)).save(path)
    return path


def images(folder: Path, *names: str) -> Path:
    for name in names:
        image(folder / name)
    return folder


def opened(folder: Path, *, classes: Path | None = None, file: Path | None = None, skip_bad: bool = False) -> Dataset:
    recipe = Recipe(name="plain", image=ImageRecipe(scale=0.5))
    labelling = Labelling(classes=read_classes(classes) if classes else None, file=file)
    return open_dataset(str(folder), INPUTS, recipe=recipe, labelling=labelling, skip_bad=skip_bad)


def labels(dataset: Dataset) -> Mapping[str, int]:
    assert dataset.labels is not None
    return dict(zip(dataset.ids, dataset.labels, strict=True))


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(folder: Path, *, classes: Path | None = None, file: Path | None = None) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        opened(folder, classes=classes, file=file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return written(tmp_path / "shapes.txt", SHAPES)


def test_class_names_give_a_subset_of_folders_their_indices(tmp_path: Path, shapes: Path) -> None:
    dataset = opened(images(tmp_path / "d", "ring/a.png", "circle/a.png"), classes=shapes)
    assert labels(dataset) == {"circle/a.png": 0, "ring/a.png": 2}
    assert dataset.class_list is not None
    assert dataset.class_list.count == 5
    assert any(f"names in {shapes} (circle=0, ring=2)" in note for note in dataset.notes)


def test_a_single_folder_is_a_class_where_classes_have_names(tmp_path: Path, shapes: Path) -> None:
    assert labels(opened(images(tmp_path / "d", "ring/a.png"), classes=shapes)) == {"ring/a.png": 2}


def test_a_folder_that_is_not_a_class_is_refused_with_the_nearest_name(tmp_path: Path, shapes: Path) -> None:
    message = refusal(images(tmp_path / "d", "ring/a.png", "elipse/a.png"), classes=shapes)
    assert f"elipse is not a class of {shapes}. Did you mean ellipse?" in message
    assert "xyz is not a class" in refusal(images(tmp_path / "e", "xyz/a.png"), classes=shapes)


def test_a_number_is_not_a_class_where_classes_have_other_names(tmp_path: Path, shapes: Path) -> None:
    assert "3 is not a class" in refusal(images(tmp_path / "d", "3/a.png"), classes=shapes)


def test_explicit_indices_make_no_class_list(tmp_path: Path) -> None:
    classes = written(tmp_path / "c.json", '{"ring": 207, "circle": 3}')
    dataset = opened(images(tmp_path / "d", "ring/a.png", "circle/a.png"), classes=classes)
    assert labels(dataset) == {"circle/a.png": 3, "ring/a.png": 207}
    assert dataset.class_list is None


def test_class_names_of_a_recipe_are_used_unless_others_are_given(tmp_path: Path, shapes: Path) -> None:
    folder = images(tmp_path / "d", "ring/a.png", "circle/a.png")
    written(folder / "recipe.toml", 'classes = ["ring", "circle"]\n[image]\nscale = 0.5\n')
    assert open_dataset(str(folder), INPUTS).labels == (1, 0)
    assert open_dataset(str(folder), INPUTS, labelling=Labelling(classes=read_classes(shapes))).labels == (0, 2)


def test_sorted_subfolders_are_the_class_list(tmp_path: Path) -> None:
    dataset = opened(images(tmp_path / "d", "ring/a.png", "circle/a.png"))
    assert dataset.class_list is not None
    assert (dataset.class_list.count, dataset.class_list.what) == (2, "class folders (circle, ring)")


def test_numbered_subfolders_make_no_class_list(tmp_path: Path) -> None:
    assert opened(images(tmp_path / "d", "3/a.png", "7/a.png")).class_list is None


@pytest.mark.parametrize("names", [("circle", "ring", "square"), ("0", "1", "2")])
@pytest.mark.parametrize("given", [True, False])
def test_a_note_names_an_empty_class(tmp_path: Path, names: tuple[str, ...], given: bool) -> None:
    folder = images(tmp_path / "d", *(f"{name}/a.png" for name in names[:2]))
    written(folder / names[2] / "readme.txt", "to come")
    classes = written(tmp_path / "c.txt", "\n".join(names)) if given else None
    assert any(f"no samples of class {names[2]}" in note for note in opened(folder, classes=classes).warnings)


def test_a_warning_says_that_class_names_without_labels_only_appear_in_the_report(tmp_path: Path, shapes: Path) -> None:
    dataset = opened(images(tmp_path / "d", "a.png"), classes=shapes)
    assert dataset.labels is None
    assert any(f"the class names of {shapes} only appear in the report" in note for note in dataset.warnings)
    assert dataset.shown.names[0] == shapes.read_text().split()[0]


def test_a_fixed_batch_keeps_the_list(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "ring/a.png", "circle/a.png", "circle/b.png")
    fixed = (TensorSpec(name="x", dtype="float32", shape=(2, 3, 6, 8)),)
    dataset = open_dataset(str(folder), fixed, recipe=Recipe(name="plain", image=ImageRecipe(scale=0.5)))
    assert dataset.class_list is not None
    assert dataset.groups is not None
    assert dataset.groups.labels == (0, 0, 1)


@pytest.mark.parametrize("header", ["", "file,label\n", "\ufefffilename,class\r\n", "\n"])
def test_a_csv_file_in_the_folder_gives_labels_by_file_name(tmp_path: Path, header: str) -> None:
    folder = images(tmp_path / "d", "a.png", "deep/b.png", 'c, "d".png')
    written(folder / "labels.csv", f'{header}./deep/b.png, 4\n"c, ""d"".png",0\n\na.png,12\n')
    dataset = opened(folder)
    assert labels(dataset) == {"a.png": 12, 'c, "d".png': 0, "deep/b.png": 4}
    assert dataset.class_list is None
    assert f"labels are read from {folder / 'labels.csv'}" in dataset.notes


def test_a_csv_file_takes_precedence_over_the_folders(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "0/a.png", "1/b.png")
    written(folder / "labels.csv", "0/a.png,5\n1/b.png,6\n")
    assert labels(opened(folder)) == {"0/a.png": 5, "1/b.png": 6}
    other = written(tmp_path / "other.csv", "0/a.png,7\n1/b.png,8\n")
    assert labels(opened(folder, file=other)) == {"0/a.png": 7, "1/b.png": 8}


def test_a_csv_file_may_contain_class_names(tmp_path: Path, shapes: Path) -> None:
    folder = images(tmp_path / "d", "a.png", "b.png")
    written(folder / "labels.csv", "a.png,ring\nb.png,4\n")
    dataset = opened(folder, classes=shapes)
    assert labels(dataset) == {"a.png": 2, "b.png": 4}
    assert dataset.class_list is not None
    written(folder / "labels.csv", "a.png,2\nb.png,4\n")
    assert opened(folder, classes=shapes).class_list is None


def test_a_class_name_that_is_a_number_takes_precedence_over_the_index(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "a.png")
    written(folder / "labels.csv", "a.png,7\n")
    assert labels(opened(folder, classes=written(tmp_path / "c.txt", "9\n8\n7\n"))) == {"a.png": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.png,1\n", "labels.csv: no label for 1 of 2 images: b.png in"),
        ("", "labels.csv: no label for 2 of 2 images: a.png, b.png in"),
        ("file,label\n", "no label for 2 of 2 images"),
        ("a.png,1\nc.png,1\nb.png,1\n", "labels.csv:2: c.png is not an image in"),
        ("a.png,1\n/tmp/b.png,1\n", "labels.csv:2: /tmp/b.png is not an image in"),
        ("a.png,1\nb.png,1\na.png,1\n", "labels.csv:3: a.png already has a label"),
        ("a.png,1\nb.png,-1\n", "labels.csv:2: label '-1' is not a class index (an integer from 0)"),
        ("a.png,1\nb.png,1.0\n", "label '1.0' is not a class index"),
        (
            "a.png,1\nb.png,ring\n",
            "label 'ring' is not a class index (an integer from 0). Give an index, or the class names",
        ),
        ("a.png,1\nb.png,\u0664\n", "is not a class index"),
        ("a.png,1\nb.png," + "9" * 5000 + "\n", "is not a class index"),
        ("a.png,1\nb.png,\n", "labels.csv:2: no label"),
        ("a.png,1\nb.png\n", "labels.csv:2: 1 column instead of 2. A line is FILE,LABEL"),
        ("a.png;1\nb.png;1\n", "labels.csv:1: 1 column instead of 2"),
        ("a.png,1,2\nb.png,1,2\n", "labels.csv:1: 3 columns instead of 2"),
        ('a.png,1\n"b.png,1\n', "labels.csv: cannot be read as a CSV file of labels"),
    ],
)
def test_a_wrong_csv_file_is_refused_by_its_line(tmp_path: Path, text: str, reason: str) -> None:
    folder = images(tmp_path / "d", "a.png", "b.png")
    written(folder / "labels.csv", text)
    assert reason in refusal(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rign", "labels.csv:1: rign is not a class of"),
        ("5", "labels.csv:1: no class of"),
        ("", "labels.csv:1: no label"),
    ],
)
def test_a_label_that_is_not_a_class_of_the_list_is_refused(
    tmp_path: Path, shapes: Path, text: str, reason: str
) -> None:
    folder = images(tmp_path / "d", "a.png")
    written(folder / "labels.csv", f"a.png,{text}\n")
    assert reason in refusal(folder, classes=shapes)


def test_a_csv_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "a.png")
    (folder / "labels.csv").write_bytes(b"a.png,\xff\n")
    assert "labels.csv: cannot be read as a CSV file of labels" in refusal(folder)


def test_skip_bad_leaves_out_a_broken_image_with_its_label(tmp_path: Path) -> None:
    folder = images(tmp_path / "d", "a.png", "b.png", "c.png")
    written(folder / "labels.csv", "a.png,1\nb.png,2\nc.png,3\n")
    (folder / "b.png").write_bytes(b"broken")
    assert labels(opened(folder, skip_bad=True)) == {"a.png": 1, "c.png": 3}
    written(folder / "labels.csv", "a.png,1\nb.png,2\n")
    with pytest.raises(DataError, match=r"no label for 1 of 3 images: c\.png"):
        opened(folder, skip_bad=True)


def test_labels_do_not_change_the_digest(tmp_path: Path, shapes: Path) -> None:
    folder = images(tmp_path / "d", "ring/a.png", "circle/a.png")
    first = opened(folder).digest
    assert opened(folder, classes=shapes).digest == first
    written(folder / "labels.csv", "ring/a.png,1\ncircle/a.png,2\n")
    assert opened(folder).digest == first


@pytest.mark.parametrize("flag", ["--classes", "--labels"])
def test_labelling_is_refused_for_data_with_labels_of_its_own(tmp_path: Path, shapes: Path, flag: str) -> None:
    source = written(tmp_path / "rows.jsonl", '{"x": [1]}\n')
    with pytest.raises(UsageError, match=f"{flag} is for a folder of images: .*rows.jsonl is not one"):
        opened(source, classes=shapes if flag == "--classes" else None, file=shapes if flag == "--labels" else None)
