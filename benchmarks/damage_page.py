"""`docs/damage.md` from what `damage.py` measured.

Touches: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from damages import KINDS
from quality_page import table

POINTS = 2.0
COSINE = 0.9
"""A damage must be caught if the task loses so many points, or if a sample's cosine falls below this."""

Record = Mapping[str, Any]

INTRO = f"""# Damaged INT8 graphs, and whether the default gates catch them

Written by `benchmarks/damage.py`; do not edit. INT8 graphs that trtopt made are damaged, one layer at a time, by seeded
draws spread over the layers: what a wrong scale, a lost bias or a mixed-up weight leaves behind. Each damaged graph is
then judged twice. `trtopt compare` sees half of the evaluation samples, with labels where they are classes of the
output, and has its default gates: a damage is *caught* if it exits 1, and an inconclusive verdict counts as not caught.
On the other half a judge that shares no code with `compare` measures the task, and each sample's cosine with FP32.
A damage *must be caught* if the task loses {POINTS:g} points or more against the undamaged INT8 graph, or if the worst
sample's cosine is below {COSINE:g} where the undamaged graph's is not. A damage after which all numbers are the same is
drawn again.

Everything ran as the typed graph in onnxruntime on the CPU, 16-bit rounding simulated, as `trtopt compare` runs it
where there is no GPU; no TensorRT engine was run. `digits`, `mnist`, `efflite0` (images), `minilm` (sentences) and
`ocrrec` (lines of text) are trained networks. `resnet18` and `bert` of `samples/` have random weights: there is no
accuracy to lose, and of `bert` only the cosine is judged.
"""

KIND_NOTE = """Scales are multiplied by 4 or divided by 4. Clipped at half its range: a Clip before the Q, or the scale
of both halved.
"""


def page(models: Mapping[str, Record]) -> str:
    """Return the whole page; `models` as `damage.json` holds them."""
    damages = [(model, damage) for model in models.values() for damage in model["damages"]]
    by_model = [(name, [(model, damage) for damage in model["damages"]]) for name, model in models.items()]
    by_kind = [(kind, [pair for pair in damages if pair[1]["kind"] == kind]) for kind in KINDS]
    parts = [
        INTRO,
        summary(damages),
        "## By network\n",
        counted("", [*by_model, ("all", damages)]),
        "## By kind of damage\n",
        KIND_NOTE,
        counted("", [*by_kind, ("all", damages)]),
        "## By both: caught / must be caught\n",
        crossed(models),
        "## Missed\n",
        misses(models),
        "## The INT8 graphs without damage\n",
        undamaged(models),
        how(models),
    ]
    return "\n".join(parts)


def must_be_caught(damage: Record, undamaged: Record) -> bool:
    """Return whether the samples that `compare` did not see are worse by more than may pass. NaN is."""
    lost = undamaged["task"] is not None and not undamaged["task"] - damage["task"] < POINTS
    return lost or any(not damage["cosine"][name] >= COSINE <= fine for name, fine in undamaged["cosine"].items())


def caught(damage: Record) -> bool:
    """Return whether `trtopt compare` exits 1."""
    return bool(damage["verdict"] == "fail")


def counts(pairs: Iterable[tuple[Record, Record]]) -> list[int]:
    """Return how many damages there are, must be caught, are, are not, and are caught though harmless."""
    verdicts = [(must_be_caught(damage, model["undamaged"]), caught(damage)) for model, damage in pairs]
    must, hit = (sum(each[i] for each in verdicts) for i in (0, 1))
    both = sum(each == (True, True) for each in verdicts)
    return [len(verdicts), must, both, must - both, hit - both]


def summary(damages: Sequence[tuple[Record, Record]]) -> str:
    """Return the result in a sentence."""
    total, must, both, missed, harmless = counts(damages)
    return (
        f"**Of {total} damages {must} must be caught: {both} are, {missed} {'is' if missed == 1 else 'are'} missed.** "
        f"Of the other {total - must}, {harmless} are caught, too: the answers on the unseen samples stay within these "
        "limits, but the numbers have moved.\n"
    )


def counted(head: str, groups: Iterable[tuple[str, Iterable[tuple[Record, Record]]]]) -> str:
    """Return a table of counts, a row for each group of damages."""
    columns = (head, "damages", "must be caught", "caught", "missed", "caught though harmless")
    return table(columns, [(name, *map(str, counts(pairs))) for name, pairs in groups])


def crossed(models: Mapping[str, Record]) -> str:
    """Return a table of kinds and models."""
    body = []
    for kind in KINDS:
        cells = []
        for model in models.values():
            pairs = [(model, damage) for damage in model["damages"] if damage["kind"] == kind]
            _, must, both, *_ = counts(pairs)
            cells.append(f"{both}/{must}" if both == must else f"**{both}/{must}**")
        body.append((kind, *cells))
    return table(("", *models), body)


def misses(models: Mapping[str, Record]) -> str:
    """Return a table of what must be caught and is not, with the numbers of both halves."""
    columns = ("damage", "unseen: task %", "unseen: worst cosine", "seen: default gates")
    body = [
        (
            f"{name}: {damage['what']}",
            moved(_task, model["undamaged"], damage),
            moved(_cosine, model["undamaged"], damage),
            gates(damage),
        )
        for name, model in models.items()
        for damage in model["damages"]
        if must_be_caught(damage, model["undamaged"]) and not caught(damage)
    ]
    return table(columns, body) if body else "None.\n"


def undamaged(models: Mapping[str, Record]) -> str:
    """Return a table of the graphs as trtopt made them."""
    columns = ("", "verdict", "unseen: task", "FP32", "INT8", "unseen: worst cosine", "seen: default gates")
    body = []
    for name, model in models.items():
        fine = model["undamaged"]
        scores = ["" if score is None else f"{score:.2f}" for score in (model["fp32"], fine["task"])]
        body.append((name, fine["verdict"], model["metric"].removesuffix(" %"), *scores, _cosine(fine), gates(fine)))
    return table(columns, body)


def how(models: Mapping[str, Record]) -> str:
    """Return how it was measured."""
    samples = "; ".join(f"{name} {' and '.join(map(str, model['samples']))}" for name, model in models.items())
    places = sorted({f"{model['ran']}; {model['machine']}" for model in models.values()})
    minutes = sum(model["seconds"] for model in models.values()) / 60
    return f"Samples seen and unseen: {samples}. {' / '.join(places)}; {minutes:.0f} minutes in all.\n"


def moved(shown: Callable[[Record], str], before: Record, after: Record) -> str:
    """Return a number without and with the damage."""
    return f"{shown(before)} -> {shown(after)}" if shown(before) else ""


def gates(record: Record) -> str:
    """Return the gates with their values and limits."""
    cells = []
    for output, metric, value, limit, verdict in record["gates"]:
        name = f"{output}: {metric}" if len(record["values"]) > 1 else metric
        cells.append(f"{name} {'NaN' if math.isnan(value) else f'{value:.4g}'} ({limit:g}) {verdict}")
    return ", ".join(cells)


def _task(record: Record) -> str:
    return "" if record["task"] is None else f"{record['task']:.2f}"


def _cosine(record: Record) -> str:
    return f"{min(record['cosine'].values()):.3f}"
