"""Accuracy by class, and which classes are confused.

Touches: nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from trtopt.types import ClassAccuracy, Classification, Confusion

MOST_CLASSES = 100
"""Largest number of classes in a report; those with the largest losses are kept."""

FEW_CLASSES = 20
"""Number of classes up to which all confusions are kept, for a matrix."""

_MOST_CONFUSIONS = 40


def classification(
    labels: Sequence[int], fp32: Sequence[int], candidate: Sequence[int], names: Mapping[int, str]
) -> Classification:
    """Return the accuracy by class, and the mistakes of both models.

    Args:
        labels: the class of each sample.
        fp32: the class that FP32 chose for each of them.
        candidate: the class that the candidate chose.
        names: the names of classes by index, as far as they are known.
    """
    samples = Counter(labels)
    right_fp32, right = (
        Counter(label for label, choice in zip(labels, chosen, strict=True) if label == choice)
        for chosen in (fp32, candidate)
    )
    # The largest loss first; among equal losses the class that the candidate gets wrong most often.
    order = sorted(
        samples, key=lambda c: ((right[c] - right_fp32[c]) / samples[c], right[c] / samples[c], c)
    )[:MOST_CLASSES]  # fmt: skip
    mistakes_fp32, mistakes = (
        Counter(pair for pair in zip(labels, chosen, strict=True) if pair[0] != pair[1]) for chosen in (fp32, candidate)
    )
    pairs = sorted(
        mistakes_fp32.keys() | mistakes.keys(), key=lambda pair: (-mistakes[pair], -mistakes_fp32[pair], pair)
    )
    if len({*samples, *(chosen for _, chosen in pairs)}) > FEW_CLASSES:
        pairs = pairs[:_MOST_CONFUSIONS]
    mentioned = {index for pair in pairs for index in pair} - {*order}
    return Classification(
        classes=tuple(
            ClassAccuracy(index=c, name=names.get(c, ""), samples=samples[c], fp32=right_fp32[c], candidate=right[c])
            for c in sorted(order)
        ),
        found=len(samples),
        names={str(c): names[c] for c in sorted(mentioned) if c in names},
        confusions=tuple(
            Confusion(label=label, chosen=chosen, fp32=mistakes_fp32[label, chosen], candidate=mistakes[label, chosen])
            for label, chosen in pairs
        ),
    )
