"""The name of one routed expert, and what can be wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import index
from typing import Any

from moetrace.errors import ArgumentError

_NAME = re.compile(r"L(\d+)E(\d+)")


class ExpertRangeError(ArgumentError, IndexError):
    """An expert that the layer doesn't have."""


class NeverActiveError(ArgumentError):
    """An expert that is clean-active in none of the cases: it was never patched."""


@dataclass(frozen=True, order=True)
class Expert:
    """A routed expert of a decoder layer, both counted from zero.

    >>> star = Expert(44, 69)
    >>> str(star), Expert.parse("L44E069") == star
    ('L44E069', True)

    Wherever an expert is asked for, its name or the pair ``(44, 69)`` serves too.

    Raises:
        ArgumentError: layer or expert isn't an integer of at least 0.
    """

    layer: int
    expert: int

    def __post_init__(self) -> None:
        for name in ("layer", "expert"):
            object.__setattr__(self, name, _count(getattr(self, name), name))

    def __str__(self) -> str:
        return f"L{self.layer:02d}E{self.expert:03d}"

    @classmethod
    def parse(cls, name: str) -> Expert:
        """The expert of a name such as "L44E069"; leading zeros don't matter."""
        found = _NAME.fullmatch(name.strip())
        if found is None:
            raise ArgumentError(f"{name!r} names no expert; expected L<layer>E<expert>, as 'L44E069'")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of(cls, value: ExpertLike) -> Expert:
        """An expert from an Expert, a name or a pair (layer, expert)."""
        if isinstance(value, Expert):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        try:
            layer, expert = value
        except (TypeError, ValueError):
            raise ArgumentError(
                f"{value!r} is no expert; expected a moetrace Expert, a name as 'L44E069', or (layer, expert)"
            ) from None
        return cls(layer, expert)


ExpertLike = Expert | str | tuple[int, int]


def _count(value: Any, name: str) -> int:
    try:
        number = index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise ArgumentError(f"{name} is {value!r}; expected an integer of at least 0")
    return number
