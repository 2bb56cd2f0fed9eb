"""Parts of a whole: `--shard I/N`.

Touches: nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trtopt.errors import UsageError

_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """The `number`-th of `count` parts; numbers begin with 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, total: int) -> range:
        """Return the indices of this part among `total` consecutive items.

        All parts together contain each item once. Their sizes differ by at most 1; a part may be empty.
        """
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)


WHOLE = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """Return the shard that a flag `--shard I/N` names.

    Raises:
        UsageError: the text does not parse, or I is not one of 1 to N.
    """
    match = _FORM.fullmatch(text.strip())
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(f"invalid --shard {text!r}", fix="Write I/N, such as 1/4, 2/4, 3/4 and 4/4")
    return Shard(number, count)


def shards(count: int) -> tuple[Shard, ...]:
    """Return all parts of a division into `count`."""
    return tuple(Shard(number, count) for number in range(1, count + 1))
