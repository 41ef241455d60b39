"""How many token rows go into one batch."""

from __future__ import annotations

from moetrace.models.anatomy import Anatomy

_ROW_BYTES = 80 << 20  # memory for one layer's intermediates of a batch, at the default budget


def auto_budget(anatomy: Anatomy) -> int:
    """Token rows of one batch whose intermediates in one layer take about 80 MiB, from 256 to 4,096."""
    config = anatomy.config
    width = anatomy.hidden_size
    inner = (
        getattr(config, "moe_intermediate_size", 0) or getattr(config, "intermediate_size", 0) or 4 * width
    )
    inner = int(max(inner) if isinstance(inner, (list, tuple)) else inner)  # ernie4_5_vl: text and images
    top_k = int(getattr(config, "num_experts_per_tok", 0) or 1) if anatomy.sparse_layers else 1
    size = anatomy.element_size
    per_row = size * (6 * width + top_k * (2 * width + 3 * inner))
    return int(min(4096, max(256, _ROW_BYTES // per_row)))


def resolve_budget(batch_tokens: int | str, anatomy: Anatomy) -> int:
    """Rows of one batch, where ``batch_tokens`` has been checked."""
    return auto_budget(anatomy) if isinstance(batch_tokens, str) else batch_tokens
