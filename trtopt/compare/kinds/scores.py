"""Class scores, one vector per sample: agreement on the chosen class, and with labels the accuracy of both models.

One number per sample, `[n]` or `[n, 1]`, is the score of a binary classifier: a probability, with threshold 0.5, or a
logit, with threshold 0.

Touches: nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trtopt.compare.kinds import Opening
from trtopt.compare.measures.choices import Choices, add_yes_or_no, sigmoid
from trtopt.compare.measures.decisions import Decisions
from trtopt.compare.measures.noise import MEASURED, Noise, summed
from trtopt.compare.measures.outputs import TOLERANCE, Array, Floats, Mask, Outputs, are_probabilities, is_float
from trtopt.compare.measures.worst import suspects
from trtopt.types import OutputDrift

TAKES = "one vector of numbers per sample, [n, classes] or [n, classes, 1, 1], or one number, [n] or [n, 1]"
PLAIN = False
METRICS = ("accuracy_fp32", "accuracy", "top1", "top1_agreement", "top5", "kl", "recall", *MEASURED)

TOP5_CLASSES = 10
"""Least number of classes for a top-5 metric. With fewer, the top 5 contain the baseline's class almost always."""

_MANY = 100
"""Samples from which on labels that do not fit contradict FP32; fewer show nothing."""

_LARGE = 1e300

_NAMES = re.compile(r"logit|score|prob|class|softmax")
_OTHERS = re.compile(r"feat|embed|hidden")
_YES_OR_NO = re.compile(r"sigmoid|prob|logit")
"""Names of the score of a binary classifier. A plain `score` is not one of them, because it may be a rating."""


class Scores:
    """Accumulator of agreement, accuracy and quantization error."""

    reads: tuple[str, ...] = ()
    note = ""

    def __init__(self, opening: Opening, classes: int) -> None:
        self.name = opening.name
        self.noise = Noise()
        self._names = opening.names
        self._asked = opening.asked
        self._labelled = opening.labelled
        names = _YES_OR_NO if classes == 1 else _NAMES
        name = opening.name.lower()
        self._named = names.search(name) is not None and _OTHERS.search(name) is None
        self._classes = classes
        # For a binary classifier, only all samples together show whether the threshold is 0.5 or 0; both are counted.
        self._choices = {0.5: Choices(), 0.0: Choices()} if classes == 1 else {0.0: Choices()}
        # More than one class may apply to a sample: a decision per class. Only all samples show if scores are logits.
        self._applies, self._applies_logits = Decisions(), Decisions()
        self._softmax = True
        self._probabilities = True
        self._in_range = True
        self._top5 = 0
        self._yes = 0
        # Divergences of the scores themselves and of their softmax: only all samples together show which is right.
        self._divergence = np.zeros(2)

    def add(self, batch: Outputs) -> None:
        """Add one batch."""
        rows = batch.rows(self.name)
        if _classes(batch, self.name) != self._classes:
            self._classes = 0  # vectors of another length are not scores of the same classes
        if not self._classes:
            return
        self.noise.add(rows)
        if rows.comparable.any():
            labels = None if batch.labels is None else np.asarray(batch.labels)[rows.comparable]
            self._add(_good(rows.x, rows.comparable), _good(rows.y, rows.comparable), labels)

    def _add(self, x: Floats, y: Floats, labels: npt.NDArray[np.int64] | None) -> None:
        """Add the scores [n, classes] of comparable samples: FP32's `x`, the candidate's `y`."""
        self._probabilities = self._probabilities and are_probabilities(x)
        if labels is not None:
            self._in_range &= bool(((labels >= 0) & (labels < max(self._classes, 2))).all())
            self._yes += int((labels == 1).sum())
        if self._classes == 1:
            for threshold, choices in self._choices.items():
                reference, candidate = ((scores[:, 0] > threshold).astype(np.intp) for scores in (x, y))
                choices.add(reference, candidate, labels)
            return
        self._softmax = self._softmax and self._probabilities and bool(np.allclose(x.sum(axis=1), 1.0, atol=TOLERANCE))
        best = x.argmax(axis=1)
        self._choices[0.0].add(best, y.argmax(axis=1), labels)
        if self._named or self._asked or self._labelled:  # other scores are of one class: a softmax, or labels fit
            add_yes_or_no(self._applies_logits, sigmoid(x), sigmoid(y))
            if self._probabilities:
                add_yes_or_no(self._applies, x, y)
        # The rank of FP32's class among the candidate's scores; ties go to the lower index, as with argmax.
        score = np.take_along_axis(y, best[:, None], axis=1)
        before = (y > score) | ((y == score) & (np.arange(self._classes) < best[:, None]))
        self._top5 += int(np.count_nonzero(before.sum(axis=1) < 5))
        unchanged = _divergence(x, y) if self._softmax else np.zeros(len(x))
        self._divergence = summed(self._divergence, np.stack([unchanged, _softmax_divergence(x, y)], axis=1))

    @property
    def _counted(self) -> Choices:
        """Choices at the right threshold, as far as the samples so far show it."""
        return self._choices[0.5 if self._classes == 1 and self._probabilities else 0.0]

    @property
    def _decided(self) -> Decisions:
        """The decisions with the clearest loss: the chosen classes, or every class that applies.

        Several classes may apply to a sample unless the scores are a softmax, or labels say that it has one class. A
        decision that labels show to be wrong does not count as a loss.
        """
        chosen = self._counted.decisions
        if self.labels_fit:
            return self._counted.right_decisions
        if self._classes == 1 or self._softmax:
            return chosen
        applies = self._applies if self._probabilities else self._applies_logits
        return max(chosen, applies, key=lambda decisions: decisions.loss)

    def fits(self) -> bool:
        """Return whether the output contains class scores.

        That is so if the user or the output's name says so, if every vector of FP32 is a softmax (non-negative, with
        sum 1), if the labels fit, or if they are those of as many classes: labels in another order than the scores must
        be told, and not turn the scores into plain numbers.
        """
        if not self._classes:
            return False
        if self._asked or self.labels_fit:
            return True
        if self._classes == 1:
            return self._named and (self._probabilities or "logit" in self.name.lower())
        return self._named or self._labelled or (self._softmax and bool(self._counted.agree))

    @property
    def labels_fit(self) -> bool:
        """Whether the labels are those of this output: they are in range, and FP32 does better than guessing.

        An output that holds something else (an embedding beside the logits), or labels of another numbering, would give
        FP32 and any candidate the same accuracy near zero, and a gate on its drop would always pass.
        """
        hits, guessed, deviation = self._hits()
        return self._in_range and bool(self._counted.right) and (hits == 1.0 or hits > guessed + 2.0 * deviation)

    @property
    def _labels_contradict(self) -> bool:
        """Whether FP32 is clearly no better than guessing: many samples, and no sign of the labels."""
        if not self._in_range:
            return True
        hits, guessed, deviation = self._hits()
        # Without a deviation all labels are the same answer, which a good model may miss now and then.
        return deviation > 0 and len(self._counted.right) >= _MANY and hits < guessed + deviation

    def _hits(self) -> tuple[float, float, float]:
        """Return FP32's accuracy, that of guessing, and the standard deviation of guessing, as fractions.

        Guessing among c classes has the accuracy 1/c. A yes-or-no question is scored by its balanced accuracy, the mean
        over both answers, which is 0.5 for every guess whatever the share of positives is.
        """
        choices = self._counted
        count = len(choices.right)
        if not count or not self._classes:
            return 0.0, 1.0, 0.0
        if self._classes > 1:
            chance = 1.0 / self._classes
            return choices.hits() / count, chance, math.sqrt(chance * (1.0 - chance) / count)
        negatives = count - self._yes
        if not self._yes or not negatives:  # labels of one answer only: nothing to be better at, but perfection
            return choices.hits() / count, 1.0, 0.0
        found = choices.hits_of_yes
        balanced = (found / self._yes + (choices.hits() - found) / negatives) / 2.0
        return balanced, 0.5, math.sqrt(0.25 / self._yes + 0.25 / negatives) / 2.0

    def suspects(self, count: int) -> set[int]:
        """Return the indices of the samples with another class than FP32, and then those with the lowest SQNR."""
        noise = self.noise.noise()
        changed = np.frombuffer(bytes(self._counted.agree), np.uint8) == 0
        return suspects(np.where(changed, noise + _LARGE, noise), self.noise.good, count)

    def drift(self, ids: Sequence[str]) -> OutputDrift:
        """Return agreement, accuracy if the labels fit, and quantization error."""
        return OutputDrift(
            output=self.name,
            kind="scores",
            values=self._values(),
            counts=self._counts(),
            first_bad=self.noise.first_bad(ids),
            spread=self.noise.spread(),
            worst=self.noise.worst(ids, self._note),
            by_class=self._counted.by_class(self._names) if self.labels_fit else None,
        )

    def _counts(self) -> dict[str, int]:
        choices = self._counted
        if not choices.agree:
            return {}
        counts = self._decided.counts() | {
            "samples": len(choices.agree),
            "agree": choices.agree.count(1),
            "chosen": choices.chosen(),
        }
        if self._classes >= TOP5_CLASSES:
            counts["top5"] = self._top5
        if self.labels_fit:
            counts["both"] = choices.right.count(3)
            counts["only_fp32"] = choices.right.count(1)
            counts["only_candidate"] = choices.right.count(2)
        elif choices.right:
            counts["unfit"] = choices.hits()
            counts["contradicted"] = int(self._labels_contradict)
        return counts

    def _values(self) -> dict[str, float]:
        counts, values = self._counts(), self._decided.values()
        if counts:
            samples = counts["samples"]
            if "both" in counts:
                values["accuracy_fp32"] = 100.0 * (counts["both"] + counts["only_fp32"]) / samples
                values["accuracy"] = 100.0 * (counts["both"] + counts["only_candidate"]) / samples
            values["top1"] = values["top1_agreement"] = 100.0 * counts["agree"] / samples
            if "top5" in counts:
                values["top5"] = 100.0 * counts["top5"] / samples
            if self._classes > 1:
                values["kl"] = float(self._divergence[0 if self._softmax else 1]) / samples
        return values | self.noise.values()

    def _note(self, index: int) -> str:
        """Return a note on the choices for one comparable sample."""
        choices = self._counted
        agreement = "same class" if choices.agree[index] else "another class than FP32"
        if not self.labels_fit:
            return agreement
        right = ("both wrong", "only FP32 right", "only the candidate right", "both right")
        return f"{agreement}, {right[choices.right[index]]}"


def reader(opening: Opening) -> Scores | None:
    """Return a reader of one vector or one number per sample, or None for other shapes or dtypes."""
    classes = _classes(opening.first, opening.name)
    if not classes or not (opening.asked or is_float(opening.first.reference[opening.name])):
        return None
    return Scores(opening, classes)


def _classes(batch: Outputs, name: str) -> int:
    """Return the length of the vectors, or 0 if the output is not one vector or number per sample."""
    shape = batch.reference[name].shape
    vectors = shape[:1] == (len(batch.indices),) and sum(size > 1 for size in shape[1:]) <= 1
    return math.prod(shape[1:]) if vectors else 0


def _good(array: Array, comparable: Mask) -> Floats:
    """Return the rows of the comparable samples as float64."""
    return array[comparable].astype(np.float64)


def _divergence(x: Floats, y: Floats) -> Floats:
    """Return sum(x log(x / y) - x + y) of each row.

    It equals the Kullback-Leibler divergence if both rows sum to 1, and cannot become negative if rounding changes the
    sums (`scipy.special.kl_div`).
    """
    from scipy.special import kl_div

    # A 0 in a low precision is an underflow, not an impossible class, so its divergence must not be infinite.
    least = np.where(x > 0, float(np.finfo(np.float32).tiny), 0.0)
    divergence: Floats = kl_div(np.maximum(x, 0.0), np.maximum(y, least)).sum(axis=1)
    return divergence


def _softmax_divergence(x: Floats, y: Floats) -> Floats:
    """Return the Kullback-Leibler divergence of the softmax of each row."""
    from scipy.special import log_softmax

    # Infinities that both models share (classes that are ruled out) are replaced by large finite numbers.
    p, q = (log_softmax(np.clip(scores, -_LARGE, _LARGE), axis=1) for scores in (x, y))
    # Rounding alone may make the sum negative.
    divergence: Floats = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return divergence
