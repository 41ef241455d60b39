"""The name of one routed expert, and what can be wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moetrace.arguments import as_count, as_list, refuse_type, shown
from moetrace.errors import ArgumentError

_NAME = re.compile(r"L(\d{1,12})E(\d{1,12})", re.ASCII)


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
            object.__setattr__(self, name, as_count(getattr(self, name), name, 0))

    def __str__(self) -> str:
        return f"L{self.layer:02d}E{self.expert:03d}"

    @classmethod
    def parse(cls, name: str) -> Expert:
        """The expert of a name such as "L44E069"; leading zeros don't matter."""
        if not isinstance(name, str):
            refuse_type(name, "an expert's name", "L<layer>E<expert>, as 'L44E069'")
        found = _NAME.fullmatch(name.strip())
        if found is None:
            raise ArgumentError(f"{shown(name)} names no expert; expected L<layer>E<expert>, as 'L44E069'")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of(cls, value: ExpertLike) -> Expert:
        """An expert from an Expert, a name or a pair (layer, expert)."""
        if isinstance(value, Expert):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        try:
            layer, expert = as_list(value, "the expert", "a pair")
        except ValueError:
            raise ArgumentError(
                f"{shown(value)} is no expert; expected an Expert, a name as 'L44E069', or (layer, expert)"
            ) from None
        return cls(layer, expert)


ExpertLike = Expert | str | tuple[int, int]
