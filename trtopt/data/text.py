"""Rows of a .jsonl or .parquet file: token ids by input name, or a field `text` for a recipe's tokenizer.

A row may have a class index in the field `label`. Other fields are ignored, with a note. The token ids of all rows are
kept in memory: they are small compared with a model. A bad row is kept as its error, which is raised when it is read.

Touches: reads the file and the tokenizer's file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trtopt.data.arrays import label_key
from trtopt.data.checks import Header
from trtopt.data.dataset import Array, Feed, Shown
from trtopt.data.digest import of_file
from trtopt.data.recipe import Recipe, TextRecipe
from trtopt.data.sample import Samples, single_labels
from trtopt.errors import DataError, UsageError
from trtopt.requires import require
from trtopt.types import TensorSpec

T = TypeVar("T")
Row = Mapping[str, Any]

SUFFIXES = frozenset({".jsonl", ".parquet"})
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


def read_rows(path: Path, inputs: tuple[TensorSpec, ...], recipe: Recipe | None) -> Samples:
    """Return one sample per row. `peek` and `read` raise the DataError of a row that does not fit the inputs.

    Raises:
        DataError: the file cannot be read, or a label is not a class index.
        UsageError: the recipe has no [text] table, or its tokenizer cannot be used.
        MissingDependencyError: the package tokenizers or pyarrow is needed but not installed.
    """
    ids, rows = _table(path)
    names = {spec.name for spec in inputs}
    good = [row for row in rows if not isinstance(row, DataError)]
    fields = dict.fromkeys(name for row in good for name in row)
    tokenized = "text" in fields and "text" not in names and not names & set(fields)
    if tokenized:
        how = _text_recipe(path, recipe)
        feeds = _tokenize(rows, ids, inputs, how)
        digest = of_file(path, recipe.digest if recipe else "", of_file(how.tokenizer))
    else:
        feeds = [_caught(partial(_feed, row, inputs, sample)) for row, sample in zip(rows, ids, strict=True)]
        digest = of_file(path)
    key = label_key(tuple(fields), inputs)
    unapplied = (
        "" if recipe is None or tokenized else f"recipe {recipe.name} is not applied to {path}: it has token ids"
    )
    unread = [name for name in fields if name not in names | {key, "text" if tokenized else ""}]
    return Samples(
        source=str(path),
        digest=digest,
        ids=ids,
        peek=lambda i: {name: Header(array.dtype.name, array.shape) for name, array in _checked(feeds[i]).items()},
        read=lambda i: _checked(feeds[i]),
        labels=_labels(rows, ids, key, str(path)) if key else None,
        shown=Shown(text=lambda i: str(_checked(rows[i])["text"])) if tokenized else Shown(),
        notes=(f"ignored fields that are not inputs: {', '.join(unread)}",) if unread else (),
        warnings=(unapplied,) if unapplied else (),
    )


def _caught(make: Callable[[], Feed]) -> Feed | DataError:
    """Return the feed that `make` returns, or the error that it raises, without the frames that it went through."""
    try:
        return make()
    except DataError as error:
        return DataError(error.what, why=error.why, fix=error.fix)


def _checked(row: T | DataError) -> T:
    """Return a row that is not an error.

    Raises:
        DataError: it is.
    """
    if isinstance(row, DataError):
        raise DataError(row.what, why=row.why, fix=row.fix)
    return row


def _labels(rows: Sequence[Row | DataError], ids: Sequence[str], key: str, source: str) -> tuple[int, ...] | None:
    """Return the label of every row, -1 for one that cannot be read: it is left out, and its label with it."""
    good = [(row, sample) for row, sample in zip(rows, ids, strict=True) if not isinstance(row, DataError)]
    values = [None if row.get(key) is None else np.asarray(row[key]) for row, _ in good]
    labels = single_labels(values, tuple(sample for _, sample in good), source)
    if labels is None:
        return None
    following = iter(labels)
    return tuple(-1 if isinstance(row, DataError) else next(following) for row in rows)


def _table(path: Path) -> tuple[tuple[str, ...], list[Row | DataError]]:
    """Return the name of each row, for messages, and the rows."""
    if path.suffix.lower() == ".parquet":
        parquet = require("pyarrow.parquet")
        try:
            rows: list[Row | DataError] = parquet.read_table(path).to_pylist()
        except Exception as error:
            raise DataError(f"{path}: cannot be read as Parquet", why=str(error)[:200]) from error
        return tuple(f"{path.name}[{i}]" for i in range(len(rows))), rows
    pairs = list(_json_rows(path))
    return tuple(sample for sample, _ in pairs), [row for _, row in pairs]


def _json_rows(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            sample = f"{path.name}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = DataError(f"{sample}: not JSON", why=str(error)[:200])
            if not isinstance(row, dict | DataError):
                row = DataError(f"{sample}: not a JSON object", why="a row maps each input's name to its values")
            yield sample, row


def _feed(row: Row | DataError, inputs: tuple[TensorSpec, ...], sample: str) -> Feed:
    row = _checked(row)
    missing = [spec.name for spec in inputs if row.get(spec.name) is None]
    if missing:
        names = ", ".join(spec.name for spec in inputs)
        fix = "Give token ids, or a recipe with a [text] table (--recipe)" if "text" in row else ""
        raise DataError(
            f"{sample}: no field for input {', '.join(missing)}",
            why=f"it has {', '.join(row) or 'no fields'}; the model takes {names}",
            fix=fix,
        )
    return {spec.name: _array(row[spec.name], spec, sample) for spec in inputs}


def _array(value: object, spec: TensorSpec, sample: str) -> Array:
    """Return a JSON value as an array of the input's dtype, to which JSON numbers are converted if they fit.

    Raises:
        DataError: the value is ragged or empty, is of another kind (for example fractions for an integer input), or is
            outside the dtype's range.
    """
    try:
        values = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{sample}: {spec.name} is ragged", why="its lists differ in length") from error
    try:
        dtype = np.dtype(spec.dtype)  # raises for bfloat16
    except TypeError as error:
        raise DataError(f"{sample}: rows cannot feed input {spec.name}", why=f"it is {spec.dtype}") from error
    # Kinds of JSON values that each kind of input dtype can take.
    fits = {"i": "iu", "u": "iu", "f": "iuf", "b": "b"}.get(dtype.kind, "")
    if not values.size or values.dtype.kind not in fits:
        what = f"contains {values.dtype.name} values" if values.size else "is empty"
        raise DataError(f"{sample}: {spec.name} {what}", why=f"the model takes {spec.dtype}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise DataError(f"{sample}: a value of {spec.name} does not fit {spec.dtype}")
    return values.astype(dtype)


def _text_recipe(path: Path, recipe: Recipe | None) -> TextRecipe:
    if recipe is None:
        raise DataError(
            f"{path}: rows of text need a tokenizer",
            why="they have a field `text` and no token ids",
            fix="Give a recipe with a [text] table (--recipe)",
        )
    if recipe.text is None:
        raise UsageError(f"recipe {recipe.name} has no [text] table", why=f"{path} contains rows of text")
    if not recipe.text.tokenizer.is_file():
        raise UsageError(f"recipe {recipe.name}: tokenizer file {recipe.text.tokenizer} does not exist")
    return recipe.text


def _tokenize(
    rows: Sequence[Row | DataError], ids: tuple[str, ...], inputs: tuple[TensorSpec, ...], how: TextRecipe
) -> list[Feed | DataError]:
    tokenizer = _tokenizer(how)
    # Input name -> the attribute of the tokenizer's encoding that feeds it.
    part = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    wanted = {spec.name: part.get(spec.name, "ids" if len(inputs) == 1 else "") for spec in inputs}
    unknown = [name for name, field in wanted.items() if not field]
    if unknown:
        raise DataError(
            f"a tokenizer has no output for input {', '.join(unknown)}",
            why=f"its outputs are {', '.join(part)}",
            fix="Give token ids by input name",
        )
    texts = [_text(row, sample) for row, sample in zip(rows, ids, strict=True)]
    encoded = iter(tokenizer.encode_batch([text for text in texts if isinstance(text, str)]))
    encodings = [next(encoded) if isinstance(text, str) else text for text in texts]

    def feed(encoding: Any | DataError, sample: str) -> Feed:
        known = _checked(encoding)
        return {spec.name: _array(getattr(known, wanted[spec.name]), spec, sample) for spec in inputs}

    return [_caught(partial(feed, encoding, sample)) for encoding, sample in zip(encodings, ids, strict=True)]


def _text(row: Row | DataError, sample: str) -> str | DataError:
    if isinstance(row, DataError):
        return row
    text = row.get("text")
    return text if isinstance(text, str) else DataError(f"{sample}: text is not a string")


def _tokenizer(how: TextRecipe) -> Any:
    tokenizers = require("tokenizers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(how.tokenizer))
    except Exception as error:
        raise UsageError(f"{how.tokenizer}: cannot be read as a tokenizer", why=str(error)[:200]) from error
    own = tokenizer.padding  # the padding that the tokenizer's file states, or None
    tokenizer.enable_truncation(how.max_length)
    tokenizer.no_padding()
    if how.padding == "none":
        return tokenizer
    token = own["pad_token"] if own else next((pad for pad in _PADS if tokenizer.token_to_id(pad) is not None), None)
    if token is None:
        raise UsageError(f"{how.tokenizer}: has no padding token", fix='Set padding = "none" in the recipe')
    tokenizer.enable_padding(
        direction=own["direction"] if own else "right",
        pad_id=own["pad_id"] if own else tokenizer.token_to_id(token),
        pad_type_id=own["pad_type_id"] if own else 0,
        pad_token=token,
        length=how.max_length,
    )
    return tokenizer
