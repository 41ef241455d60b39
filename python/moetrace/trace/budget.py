"""How many token rows go into one batch."""

from __future__ import annotations

from moetrace.errors import LayoutError
from moetrace.models.anatomy import Anatomy, expert_count
from moetrace.models.experts import top_k_of

_ROW_BYTES = 80 << 20  # memory for one layer's intermediates of a batch, at the default budget
_MOST_BYTES = 512 << 20  # the same where experts would get few rows otherwise
_EXPERT_ROWS = 128  # rows from which on more gain little: a product of one expert reads its weights once


def auto_budget(anatomy: Anatomy) -> int:
    """Token rows of one batch, from 256 to 4,096.

    As many as take about 80 MiB of one layer's intermediates; in a sparse model as many as give each expert
    128 rows on average where that takes more, up to 512 MiB.
    """
    config = anatomy.config
    width = anatomy.hidden_size
    inner = (
        getattr(config, "moe_intermediate_size", 0) or getattr(config, "intermediate_size", 0) or 4 * width
    )
    inner = int(max(inner) if isinstance(inner, (list, tuple)) else inner)  # ernie4_5_vl: text and images
    top_k = int(getattr(config, "num_experts_per_tok", 0) or 1) if anatomy.sparse_layers else 1
    size = anatomy.element_size
    per_row = size * (6 * width + top_k * (2 * width + 3 * inner))
    rows = max(_ROW_BYTES // per_row, min(_rows_for_experts(anatomy), _MOST_BYTES // per_row))
    return int(min(4096, max(256, rows)))


def _rows_for_experts(anatomy: Anatomy) -> int:
    """Rows of a batch that give each routed expert enough of them on average; 0 where that isn't known."""
    try:
        experts = expert_count(anatomy, anatomy.sparse_layers[0])
        return _EXPERT_ROWS * experts // top_k_of(anatomy.config)
    except (IndexError, LayoutError, ValueError):
        return 0


def resolve_budget(batch_tokens: int | str, anatomy: Anatomy) -> int:
    """Rows of one batch, where ``batch_tokens`` has been checked."""
    return auto_budget(anatomy) if isinstance(batch_tokens, str) else batch_tokens
