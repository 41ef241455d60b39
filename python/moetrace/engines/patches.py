"""What a patched run changes. Every engine takes the same list of patches and gives a column for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RecipeKind = Literal["clean", "union", "place", "subset", "experts", "anchor", "matched"]


@dataclass(frozen=True)
class BlockPatch:
    """The clean block output at one layer in place of the noised one (section 3.3, equation 4)."""

    layer: int


@dataclass(frozen=True)
class NullPatch:
    """The noised block output in place of itself: its rescue is the engine's numerical floor."""

    layer: int


@dataclass(frozen=True)
class ExpertPatch:
    """Patch vectors of chosen experts, added to the noised block output (section 3.4, equation 6).

    ``kind`` says which, before the routing of a case is known:
    "clean" all clean-routed experts (equation 14); "union" all of either run (equation 15);
    "place" the expert at one of 2k places (k clean-routed in the router's order, then k noised-routed, empty
    where the clean run has them too); "subset" a bitmask over those places; "experts" the named ones
    where either run routes to them; "anchor" one named expert where it is clean-routed beside another;
    "matched" its gate-weight-matched control (equation 8). ``equal_norm``: anchor and control scaled to the
    smaller norm (equation 10). Where a patch names nobody in a case, nothing is added.
    """

    layer: int
    kind: RecipeKind
    place: int = 0
    subset: int = 0
    experts: tuple[int, ...] = ()
    equal_norm: bool = False


Patch = BlockPatch | NullPatch | ExpertPatch


def expert_layers(patches: tuple[Patch, ...]) -> tuple[int, ...]:
    """Layers with expert patches: those whose routing is recorded."""
    return tuple(sorted({patch.layer for patch in patches if isinstance(patch, ExpertPatch)}))
