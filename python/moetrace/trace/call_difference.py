"""Which arguments tell a call from the one whose run a folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What follows from another argument, and says nothing of its own where that one differs.
_FOLLOWS = {
    "tokens": {"cases", "position"},
    "noise": {"corruption"},
    "several_metrics": {"metric"},
}
_NAMES = {
    "what": "the kind of trace",
    "patches": "the layers or experts that are patched",
    "tokens": "the tokens that position gives",
    "several_metrics": "metric",
}


def differing_arguments(found: Mapping[str, Any], call: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that differ, as a user gives them, sorted.

    ``found``, ``call``: what run folders know of a call; ``details`` are arguments of one kind of trace.
    What is patched is named where no other argument explains it.
    """
    keys = _differing(found, call)
    inside = _differing(_details(found), _details(call)) if "details" in keys else set()
    if "what" in keys:  # the details are then of two kinds
        inside = set()
    left = {key for key in keys - {"details"} if not _FOLLOWS.get(key, set()) & keys}
    if "patches" in left and (inside or keys & {"what", "mode", "position"}):
        left.discard("patches")
    return sorted({_NAMES.get(key, key) for key in left | inside})


def _differing(found: Mapping[str, Any], call: Mapping[str, Any]) -> set[str]:
    return {key for key in {*call, *found} if found.get(key) != call.get(key)}


def _details(call: Mapping[str, Any]) -> Mapping[str, Any]:
    own = call.get("details")
    return own if isinstance(own, Mapping) else {}
