"""Rows of token ids or text: JSON numbers take the input's type, and a row that does not fit is named by its line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers

from trtopt.data import Dataset, batches, load_recipe, open_dataset
from trtopt.errors import DataError, UsageError
from trtopt.types import TensorSpec

IDS = TensorSpec(name="input_ids", dtype="int64", shape=("n", "length"))
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=("n", "length"))
BOTH = (IDS, MASK)


def rows(folder: Path, *lines: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def refusal(source: str, inputs: tuple[TensorSpec, ...] = (IDS,)) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(source, inputs)
    return str(caught.value)


def test_token_ids_take_the_inputs_types_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    first = {"input_ids": [1, 2], "attention_mask": [1, 1]}
    dataset = open_dataset(rows(tmp_path, first, "", {"input_ids": [3, 4], "attention_mask": [1, 0]}), BOTH)
    assert dataset.ids == ("rows.jsonl:1", "rows.jsonl:3")
    assert dataset.batched
    feed = dataset.load(1)
    assert feed["input_ids"].tolist() == [[3, 4]]
    assert (feed["input_ids"].dtype, feed["attention_mask"].dtype) == (np.int64, np.int32)


def test_rows_of_different_length_are_fed_one_at_a_time(tmp_path: Path) -> None:
    dataset = open_dataset(rows(tmp_path, {"input_ids": [1]}, {"input_ids": [1, 2]}), (IDS,))
    assert [batch.feed["input_ids"].shape for batch in batches(dataset, 2)] == [(1, 1), (1, 2)]


def test_labels_are_read_and_a_note_lists_ignored_fields(tmp_path: Path) -> None:
    dataset = open_dataset(rows(tmp_path, {"input_ids": [1], "label": 4, "source": "web"}), (IDS,))
    assert dataset.labels == (4,)
    assert any("ignored fields that are not inputs: source" in note for note in dataset.notes)


def test_a_row_without_a_label_among_labelled_ones_is_refused(tmp_path: Path) -> None:
    source = rows(tmp_path, {"input_ids": [1], "label": 4}, {"input_ids": [1]})
    assert "rows.jsonl:2: no label" in refusal(source)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"input_ids": [1, ', "rows.jsonl:2: not JSON"),
        ("[" * 100_000, "rows.jsonl:2: not JSON"),
        ("[1, 2]", "rows.jsonl:2: not a JSON object"),
        ({"ids": [1, 2]}, "rows.jsonl:2: no field for input input_ids: it has ids"),
        ({"input_ids": None}, "no field for input input_ids"),
        ({"input_ids": []}, "input_ids is empty"),
        ({"input_ids": [1.5]}, "input_ids contains float64 values"),
        ({"input_ids": ["a"]}, "input_ids contains"),
        ({"input_ids": [[1], [2, 3]]}, "input_ids is ragged"),
        ({"input_ids": [2**63]}, "does not fit int64"),
        ({"input_ids": [2**70]}, "input_ids contains object values"),
        ({"input_ids": 5}, "input_ids has shape []"),
    ],
)
def test_a_wrong_row_is_refused_by_its_line(tmp_path: Path, line: Any, reason: str) -> None:
    assert reason in refusal(rows(tmp_path, {"input_ids": [1, 2]}, line))


@pytest.mark.parametrize("line", ['{"input_ids": [1, ', "[1, 2]", {"input_ids": [], "label": 3}])
def test_bad_rows_can_be_left_out(tmp_path: Path, line: Any) -> None:
    first, last = {"input_ids": [1], "label": 4}, {"input_ids": [2], "label": 5}
    dataset = open_dataset(rows(tmp_path, first, line, last), (IDS,), skip_bad=True)
    assert (dataset.ids, dataset.labels) == (("rows.jsonl:1", "rows.jsonl:3"), (4, 5))
    assert "left out 1 of 3 samples: rows.jsonl:2" in dataset.warnings[0]


def test_numbers_feed_a_float_input(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 2))
    x = open_dataset(rows(tmp_path, {"x": [1, 0.5]}), (spec,)).load(0)["x"]
    assert x.dtype == np.float32
    assert x.tolist() == [[1, 0.5]]


def test_a_json_nan_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 2))
    dataset = open_dataset(rows(tmp_path, '{"x": [1, NaN]}'), (spec,))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 1 of 2 values of x are NaN"):
        dataset.load(0)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "no samples" in refusal(rows(tmp_path))


def test_text_without_a_recipe_is_refused(tmp_path: Path) -> None:
    assert "rows of text need a tokenizer" in refusal(rows(tmp_path, {"text": "hello"}))


def test_a_recipe_that_token_ids_do_not_need_is_told(tmp_path: Path) -> None:
    dataset = open_dataset(rows(tmp_path, {"input_ids": [1]}), (IDS,), recipe=load_recipe("imagenet"))
    assert "recipe imagenet is not applied to" in dataset.warnings[0]


def test_text_with_a_recipe_for_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe imagenet has no \[text\] table"):
        open_dataset(rows(tmp_path, {"text": "hello"}), (IDS,), recipe=load_recipe("imagenet"))


def test_a_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[text]\ntokenizer = "gone.json"\nmax_length = 4')
    with pytest.raises(UsageError, match=r"tokenizer file .*gone\.json does not exist"):
        open_dataset(rows(tmp_path, {"text": "hello"}), (IDS,), recipe=load_recipe(recipe))


def tokenized(
    folder: Path, inputs: tuple[TensorSpec, ...], padding: str, *more: Any, pad: bool = True, skip_bad: bool = False
) -> Dataset:
    words = {"[UNK]": 0, "hello": 1, "big": 2, "world": 3} | ({"[PAD]": 9} if pad else {})
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    recipe = folder / "r.toml"
    recipe.write_text(f'[text]\ntokenizer = "tokenizer.json"\nmax_length = 4\npadding = "{padding}"')
    source = rows(folder, {"text": "hello world", "label": 1}, {"text": "hello big big big world", "label": 0}, *more)
    return open_dataset(source, inputs, recipe=load_recipe(recipe), skip_bad=skip_bad)


def test_text_is_tokenized_truncated_and_padded(tmp_path: Path) -> None:
    dataset = tokenized(tmp_path, BOTH, "max_length")
    feed = next(batches(dataset, 2)).feed
    assert feed["input_ids"].tolist() == [[1, 3, 9, 9], [1, 2, 2, 2]]
    assert feed["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert dataset.labels == (1, 0)


def test_bad_rows_of_text_can_be_left_out(tmp_path: Path) -> None:
    bad = ({"text": 5, "label": 0}, "{", {"text": "world", "label": 1})
    dataset = tokenized(tmp_path, (IDS,), "none", *bad, skip_bad=True)
    assert dataset.ids == ("rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:5")
    assert dataset.load(2)["input_ids"].tolist() == [[3]]
    with pytest.raises(DataError, match=r"rows\.jsonl:3: text is not a string"):
        tokenized(tmp_path, (IDS,), "none", *bad)


def test_text_without_padding_keeps_its_length(tmp_path: Path) -> None:
    dataset = tokenized(tmp_path, (IDS,), "none", pad=False)
    assert [dataset.load(i)["input_ids"].shape for i in range(2)] == [(1, 2), (1, 4)]


def test_a_tokenizer_without_a_padding_token_cannot_pad(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no padding token"):
        tokenized(tmp_path, (IDS,), "max_length", pad=False)


def test_an_input_without_a_tokenizer_output_is_refused(tmp_path: Path) -> None:
    pixels = TensorSpec(name="pixels", dtype="int64", shape=("n", 4))
    with pytest.raises(DataError, match="a tokenizer has no output for input pixels"):
        tokenized(tmp_path, (IDS, pixels), "max_length")


def test_a_tokenizer_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    recipe = tmp_path / "r.toml"
    recipe.write_text('[text]\ntokenizer = "t.json"\nmax_length = 4')
    with pytest.raises(UsageError, match=r"t\.json: cannot be read as a tokenizer"):
        open_dataset(rows(tmp_path, {"text": "hello"}), (IDS,), recipe=load_recipe(recipe))


def test_parquet_rows_are_read_like_json_rows(tmp_path: Path) -> None:
    table = pyarrow.table({"input_ids": [[1, 2], [3, 4]], "label": [1, 0], "note": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    dataset = open_dataset(str(tmp_path / "rows.parquet"), (IDS,))
    assert dataset.ids == ("rows.parquet[0]", "rows.parquet[1]")
    assert dataset.labels == (1, 0)
    assert next(batches(dataset, 2)).feed["input_ids"].tolist() == [[1, 2], [3, 4]]


def test_a_corrupt_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot be read as Parquet" in refusal(str(tmp_path / "rows.parquet"))
