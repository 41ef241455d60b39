"""What a token tree costs, and how the forks of a case that costs too much are cut into several trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetrace.engines.base import Job
from moetrace.engines.growth import Growth
from moetrace.engines.patches import Patch
from moetrace.engines.rows import shape_of

if TYPE_CHECKING:
    from moetrace.cases import Case


def tree_rows(job: Job, case: Case, patches: Sequence[Patch]) -> int:
    """Token rows of one case with all its forks."""
    shape = shape_of(job, case)
    draws = job.noise.draws
    prompt = shape.subject_start + (draws + 1) * (shape.length - shape.subject_start)
    return int(prompt + len(patches) * draws * (shape.length - shape.patch_position))


def tree_cost(job: Job, case: Case, patches: Sequence[Patch], growth: Growth) -> int:
    """Token rows of one case in the average layer, at least a quarter of all: what a batch is cut by.

    Forks that are born late cost little, and small batches would cost much in the layers below them; the
    quarter bounds what the layers above may take.
    """
    rows = tree_rows(job, case, patches)
    if growth is Growth.STATIC:
        return rows
    layers = len(job.anatomy.layers)
    chain = (len(case.input_ids) - job.patch_position(case)) * job.noise.draws
    unborn = sum(patch.layer for patch in patches) * chain
    return max(-(-(rows * layers - unborn) // layers), -(-rows // 4))


def cut_patches(job: Job, case: Case, growth: Growth, batch_tokens: int | None) -> list[tuple[Patch, ...]]:
    """The patches of a case in as many parts as keep each tree within the budget, in order.

    Each part runs the prompt again, so a part may have as many fork rows as the prompt has rows, however
    small the budget is. None: no budget.
    """
    if batch_tokens is None:
        return [job.patches]
    allowed = max(batch_tokens, 2 * tree_cost(job, case, (), growth))

    def halves(patches: tuple[Patch, ...]) -> list[tuple[Patch, ...]]:
        if len(patches) < 2 or tree_cost(job, case, patches, growth) <= allowed:
            return [patches]
        middle = len(patches) // 2
        return [*halves(patches[:middle]), *halves(patches[middle:])]

    return halves(job.patches)
