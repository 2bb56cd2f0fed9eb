"""Samples as the stages are given them.

Touches: reads the samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from trtopt.data.dataset import Dataset
from trtopt.errors import TrtoptError
from trtopt.events import Emit, Noted, Warned
from trtopt.plan import DataPlan
from trtopt.shapes import fixed, of_profile
from trtopt.types import OnnxModel, ShapeRange


def open_data(plan: DataPlan, model: OnnxModel, *, to_predict: bool = False) -> Dataset:
    """Open the samples of a plan for the inputs of a model: at most as many as the plan says, with a note on it.

    To predict, labels are not read, and the error of a sample that cannot be used is raised when it is loaded.
    """
    from trtopt.data import Labelling, load_recipe, open_dataset, read_classes

    recipe = load_recipe(plan.recipe) if plan.recipe else None
    labelling = None
    if not to_predict:
        labelling = Labelling(classes=read_classes(plan.classes) if plan.classes else None, file=plan.labels)
    return open_dataset(
        plan.source, model.inputs, recipe=recipe, labelling=labelling, skip_bad=plan.skip_bad, most=plan.samples
    )


def class_names(plan: DataPlan) -> tuple[str, ...]:
    """Return the names of the classes in the order of the scores; empty if not all of them are known.

    They are those of the plan, or of its recipe, or of the recipe in the folder of images.
    """
    from trtopt.data import load_recipe, read_classes
    from trtopt.data.recipe import FILE_NAME

    recipe = plan.recipe
    if recipe is None and isinstance(plan.source, str) and (Path(plan.source) / FILE_NAME).is_file():
        recipe = str(Path(plan.source) / FILE_NAME)
    classes = read_classes(plan.classes) if plan.classes else load_recipe(recipe).classes if recipe else None
    by_index = {index: name for name, index in classes.index.items()} if classes else {}
    return tuple(by_index[i] for i in range(len(by_index))) if set(by_index) == set(range(len(by_index))) else ()


def sizes(plans: Iterable[DataPlan | None], model: OnnxModel) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that the samples have for each input, to suggest a `--shape`.

    Samples that cannot be read are left out: the error is reported when they are needed.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for plan in plans:
        # A source with a colon is a function: its code does not run only for a suggestion.
        if plan is None or (isinstance(plan.source, str) and ":" in plan.source):
            continue
        try:
            dataset = open_data(replace(plan, skip_bad=False), model)
        except TrtoptError:
            continue
        for i, spec in enumerate(model.inputs):
            shapes.setdefault(spec.name, []).extend(of_sample[i] for of_sample in dataset.shapes)
    return shapes


def open_samples(data: DataPlan | None, source: OnnxModel, ranges: tuple[ShapeRange, ...]) -> Dataset | None:
    """Open samples for the network with the dimensions that the profile fixes; `tell` tells about them."""
    if data is None:
        return None
    return open_data(data, replace(source, inputs=fixed(source.inputs, of_profile(ranges))))


def tell(emit: Emit, *datasets: Dataset | None) -> None:
    """Emit the notes and warnings about the samples; one that is about several of them is emitted once."""
    sources: dict[Noted | Warned, list[str]] = {}
    for dataset in datasets:
        if dataset is not None:
            told: list[Noted | Warned] = [*map(Noted, dataset.notes), *map(Warned, dataset.warnings)]
            for event in told:
                sources.setdefault(event, []).append(dataset.source)
    for event, of in sources.items():
        emit(replace(event, message=f"{', '.join(dict.fromkeys(of))}: {event.message}"))
