"""Check of a model repository: a real server loads it, and its answers are compared with those of trtopt's runner.

The machine needs no GPU: the graphs run in the place of engines. So this checks configurations, batching, types, shapes
and steps in Python, and says nothing about an engine.

Touches: a temporary copy of the models; starts a server.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtopt.bench.inputs import Sizes
from trtopt.compare import parity
from trtopt.data import images
from trtopt.data.dataset import Array, Feed
from trtopt.data.recipe import ImageRecipe
from trtopt.engine.onnxruntime import open_runner
from trtopt.errors import ModelError
from trtopt.graph.file import copy
from trtopt.serve import config, ensemble, server
from trtopt.serve.client import Client, RequestError, Signature
from trtopt.serve.repository import Folder
from trtopt.types import GateResult, OnnxModel, ShapeRange

_REQUESTS = 64
"""Requests that are sent at the same time."""
_TOLERANCE = 0.02
"""Largest difference of an answer, relative to its norm: in a batch, kernels round differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Behavior that is expected of a served model.

    Attributes:
        name: the name of the model.
        onnx: the graph that its answers must equal.
        ranges: the shapes of the graph's inputs.
        recipe: how it preprocesses encoded images; None for a model that is given arrays.
        runs: the model whose batches count, if it is another one.
    """

    name: str
    onnx: OnnxModel
    ranges: tuple[ShapeRange, ...]
    recipe: ImageRecipe | None = None
    runs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Outcome for a model: right answers, the mean batch of its runs, and wrong requests that it refused."""

    name: str
    answered: int
    mean_batch: float
    refused: int


def gates(verified: Sequence[Verified]) -> tuple[GateResult, ...]:
    """Return a gate for each model that was checked; all of them passed, or there would be an error."""
    return tuple(
        GateResult(
            output=each.name,
            metric="verify",
            value=float(each.answered),
            limit=float(each.answered),
            verdict="pass",
            reason=f"{each.answered} answers equal the runner's, mean batch {each.mean_batch:.1f}, "
            f"{each.refused} wrong requests refused",
        )
        for each in verified
    )


def verify(folders: Sequence[Folder], stage: Path, claims: Sequence[Claim]) -> tuple[Verified, ...]:
    """Load the folders in a real server, and check each claim.

    Args:
        folders: the models.
        stage: the folder that they were written to.
        claims: what to check.

    Raises:
        MissingDependencyError: pytriton or tritonclient is not installed.
        EnvironmentUnableError: the server does not start here.
        ModelError: a model is not loaded, an answer differs, or a wrong request was answered.
    """
    with served(folders, stage) as running, Client(running.url) as client:
        return tuple(_check(client, claim) for claim in claims)


@contextlib.contextmanager
def served(folders: Sequence[Folder], stage: Path) -> Iterator[server.Server]:
    """Start a server on a copy of the folders that needs no GPU.

    Raises:
        MissingDependencyError: pytriton or tritonclient is not installed.
        EnvironmentUnableError: the server does not start here.
        ModelError: a model is not loaded.
    """
    with tempfile.TemporaryDirectory(prefix="trtopt-verify-") as place:
        for folder in folders:
            _on_cpu(folder, stage / folder.name, Path(place) / folder.name)
        with server.serving(Path(place)) as running:
            with Client(running.url) as client:
                models = client.models()
            for name, why in models.items():
                if why:
                    raise ModelError(f"Triton does not load {name}", why=why, fix="This is a bug in trtopt: report it")
            yield running


def _on_cpu(folder: Folder, source: Path, target: Path) -> None:
    """Copy a model's folder for a server without a GPU. The graph is beside an engine, or in its place."""
    shutil.copytree(source, target)
    changed = type(folder.config)()
    changed.CopyFrom(folder.config)
    for group in changed.instance_group:
        group.kind = config.protobuf().ModelInstanceGroup.KIND_CPU
        del group.gpus[:]
    (target / "config.pbtxt").write_text(config.text(changed), encoding="utf-8")
    if folder.graph is not None:
        for name in {config.FILES.get(changed.platform, ""), *changed.cc_model_filenames.values()} - {""}:
            (target / "1" / name).touch()
        copy(folder.graph, target / "1/model.onnx")
    step = target / "1/model.py"
    if step.is_file():
        # The backend ignores PYTHONPATH.
        path = f"import sys\nsys.path[:0] = {server.packages()!r}\nsys.unraisablehook = lambda _: None\n"
        future = "from __future__ import annotations\n"
        step.write_text(step.read_text(encoding="utf-8").replace(future, future + path, 1), encoding="utf-8")


def _check(client: Client, claim: Claim) -> Verified:
    signature = client.signature(claim.name)
    runner = open_runner(claim.onnx.path)
    feeds = list(_feeds(claim, batched=signature.max_batch > 0))
    expected = [runner.run(_to_arrays(claim, feed)) for feed in feeds]
    requests = [_request(feed, signature) for feed in feeds]
    counted = claim.runs or claim.name
    before = client.counts(counted)
    turns = [i % len(feeds) for i in range(_REQUESTS)]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        answers = list(pool.map(lambda turn: _answer(client, claim.name, requests[turn]), turns))
    for turn, answer in zip(turns, answers, strict=True):
        if why := difference(answer, expected[turn]):
            raise ModelError(f"{claim.name} answers something else than the runner", why=why)
    samples, runs = (after - earlier for after, earlier in zip(client.counts(counted), before, strict=True))
    return Verified(
        name=claim.name,
        answered=len(answers),
        mean_batch=samples / runs if runs else 1.0,
        refused=_refused(client, claim.name, requests[0]),
    )


def _request(feed: Feed, signature: Signature) -> Feed:
    """Return the request for a feed: an array without dimensions beside the batch has one of size 1 there."""
    ranks = {spec.name: len(spec.shape) for spec in signature.inputs}
    return {name: array[:, np.newaxis] if ranks[name] > array.ndim else array for name, array in feed.items()}


def _answer(client: Client, name: str, feed: Feed) -> dict[str, Array]:
    try:
        return client.infer(name, feed)
    except RequestError as error:
        raise ModelError(f"{name} refuses a request", why=str(error)) from error


def _feeds(claim: Claim, *, batched: bool) -> Iterator[Feed]:
    """Yield requests: encoded images; or singles of the smallest and the usual shape, and one of the largest."""
    if claim.recipe is not None:
        yield from (_encoded(claim, number) for number in range(3))
        return
    sizes = Sizes(inputs=claim.onnx.inputs, ranges=claim.ranges)
    shapes = claim.ranges
    if batched:
        # A batch of one, and the other dimensions at their smallest and usual sizes.
        free = {spec.name for spec in claim.onnx.inputs if sizes.is_free(spec)}
        shapes = tuple(_single(entry) if entry.name in free else entry for entry in claim.ranges)
    yield from (dict(feed) for feed in parity.random(claim.onnx.inputs, shapes).draw())
    largest = tuple(ShapeRange(name=entry.name, min=entry.max, opt=entry.max, max=entry.max) for entry in claim.ranges)
    yield dict(parity.random(claim.onnx.inputs, largest).draw()[0])


def _single(entry: ShapeRange) -> ShapeRange:
    return ShapeRange(name=entry.name, min=(1, *entry.min[1:]), opt=(1, *entry.opt[1:]), max=entry.max)


def _encoded(claim: Claim, number: int) -> Feed:
    """Return a random PNG as a request, larger than the input where the recipe resizes or crops."""
    from PIL import Image

    assert claim.recipe is not None
    spec = claim.onnx.inputs[0]
    sides = spec.shape[2:] if claim.recipe.layout == "NCHW" else spec.shape[1:3]
    grows = bool(claim.recipe.resize or claim.recipe.crop)
    height, width = (int(side) * (2 if grows else 1) if isinstance(side, int) else 64 for side in sides)
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {ensemble.INPUT: np.frombuffer(stream.getvalue(), np.uint8)[np.newaxis]}


def _to_arrays(claim: Claim, feed: Feed) -> Feed:
    """Return the feed of the graph for a request."""
    if claim.recipe is None:
        return feed
    from PIL import Image

    spec = claim.onnx.inputs[0]
    with Image.open(io.BytesIO(feed[ensemble.INPUT].tobytes())) as image:
        array = images.to_array(image, claim.recipe)
    return {spec.name: array[np.newaxis].astype(spec.dtype)}


def difference(answer: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
    """Return how an answer differs from the runner's; empty if they are equal up to rounding."""
    for name, right in expected.items():
        left: Any = answer.get(name)
        if left is None:
            return f"output {name} is missing"
        # A tensor without dimensions beside the batch has one of size 1 in a request and in an answer.
        if left.dtype != right.dtype or left.shape not in (right.shape, (*right.shape, 1)[:2]):
            return f"output {name} is {left.dtype} {list(left.shape)}, not {right.dtype} {list(right.shape)}"
        first, second = left.reshape(right.shape).astype(np.float64), right.astype(np.float64)
        finite = np.isfinite(second)
        if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
            return f"output {name} differs in infinite or undefined values"
        distance = float(np.linalg.norm(first[finite] - second[finite]))
        if distance > _TOLERANCE * float(np.linalg.norm(second[finite])) + 1e-6:
            return f"output {name} differs by {distance:.3g}"
    return ""


def _refused(client: Client, name: str, feed: Feed) -> int:
    """Send wrong requests: another rank, another type, an input less, an unknown input. Return their number.

    Raises:
        ModelError: one of them was answered.
    """
    first = next(iter(feed))
    other = np.int32 if feed[first].dtype != np.int32 else np.float32
    wrong: dict[str, Feed] = {
        "with another rank": {**feed, first: feed[first][..., np.newaxis]},
        "of another type": {**feed, first: feed[first].astype(other)},
        "without an input": {key: array for key, array in feed.items() if key != first},
        "with an unknown input": {**feed, f"{first}_": feed[first]},
    }
    for described, request in wrong.items():
        try:
            client.infer(name, request)
        except RequestError:
            continue
        raise ModelError(f"{name} answers a request {described}", why="it must refuse it")
    return len(wrong)
