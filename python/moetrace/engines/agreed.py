"""One engine for all ranks that trace together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moetrace._native import _core
from moetrace.engines.engine_choice import EngineChoice, distrusted, largest
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.ranks import Alone


def agreed_choice(ranks: Alone, choice: EngineChoice) -> EngineChoice:
    """The most careful of what the ranks chose, each by itself on the same case.

    The reference engine where one of them found that the tree doesn't serve, the lowest join, and the largest
    of the differences. On machines that are alike all find the same.
    """
    engine = choice.engine
    joins = tuple(_core.Join)
    join = joins.index(engine.join) if isinstance(engine, TreeEngine) else -1
    own = (engine.name, join, choice.reason, choice.difference, choice.null)
    found = ranks.share("the choice of an engine", own)
    null = largest([each[4] for each in found])
    for rank, (name, _, reason, _, _) in enumerate(found):
        if name == ReferenceEngine.name and engine.name != name:
            return distrusted(choice, f"rank {rank}: {reason}", null)
    if isinstance(engine, TreeEngine):
        engine.join = joins[max(each[1] for each in found)]
    return replace(choice, difference=largest([each[3] for each in found]), null=null)


def first_verdict(ranks: Alone, choice: EngineChoice, confirm: Callable[[], EngineChoice]) -> EngineChoice:
    """The choice after the first rank has held it against plain forwards on one of its own cases.

    Where ranks hold parts of one model, all of them run its forwards, and so each asks.
    """
    if ranks.mirrored:
        return confirm()
    made: list[EngineChoice] = []

    def verdict() -> tuple[str, str, tuple[float, ...], tuple[float, ...]]:
        made.append(confirm())
        return made[0].engine.name, made[0].reason, made[0].difference, made[0].null

    name, reason, difference, null = ranks.of_first("the check of the engine", verdict)
    if made:
        return made[0]
    if name != choice.engine.name:
        return distrusted(choice, reason, null)
    return replace(choice, reason=reason, difference=difference, null=null)
