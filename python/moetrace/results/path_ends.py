"""The ends of a path: a block, one expert of it, or its router."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from moetrace.arguments import as_count, is_integer, nearest, shown
from moetrace.errors import ArgumentError
from moetrace.results.expert_name import Expert

Kind = Literal["block", "expert", "router"]
_NAME = re.compile(r"L(\d{1,12})(?:\.(block|router))?", re.ASCII)
_EXPECTED = (
    "a layer's number or 'L03' (its block), 'L03.router', or an expert: an Expert, 'L03E017' or (3, 17)"
)


@dataclass(frozen=True, order=True)
class PathEnd:
    """A block, router or expert of a decoder layer.

    >>> str(PathEnd.of("L3E17")), str(PathEnd.of(4)), str(PathEnd.of("L05.router"))
    ('L03E017', 'L04', 'L05.router')
    """

    layer: int
    kind: Kind
    expert: int = -1

    def __str__(self) -> str:
        if self.kind == "expert":
            return str(Expert(self.layer, self.expert))
        return f"L{self.layer:02d}" + (".router" if self.kind == "router" else "")

    @classmethod
    def of(cls, value: Any) -> PathEnd:
        """From what a user gives. Objects named Block, Router or Expert with a ``layer`` serve too.

        ArgumentError for anything else.
        """
        if isinstance(value, PathEnd):
            return value
        if is_integer(value):
            return cls(as_count(value, "layer", 0), "block")
        if isinstance(value, str):
            found = _NAME.fullmatch(value.strip())
            if found is not None:
                return cls(int(found[1]), "router" if found[2] == "router" else "block")
            named = re.fullmatch(r"L\d{1,12}\.(\w+)", value.strip(), re.ASCII)
            if named is not None:
                near = nearest(named[1], ["block", "router"])
                raise ArgumentError(f"{shown(value)} names no site{near}; expected {_EXPECTED}")
        name, layer = type(value).__name__, getattr(value, "layer", None)
        if name in ("Block", "Router") and is_integer(layer):
            return cls(as_count(layer, "layer", 0), "block" if name == "Block" else "router")
        try:
            own = Expert.of(value)
        except ArgumentError:
            raise ArgumentError(f"{shown(value)} is no end of a path; expected {_EXPECTED}") from None
        return cls(own.layer, "expert", own.expert)
