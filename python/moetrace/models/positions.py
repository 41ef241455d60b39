"""How long a prompt a model has positions for."""

from __future__ import annotations

from typing import Any

# Where configs keep it, transformers' common name first; a family's own name is often mapped to that.
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
_ROPE = ("rope_parameters", "rope_scaling")


def position_limit(config: Any) -> int | None:
    """Tokens of the longest prompt that a model of this config was made for; None where it doesn't say.

    >>> position_limit(model.config.get_text_config())
    40960

    Rotary positions that are stretched reach as far as they are stretched. Some configs count that already:
    their number differs from the one that the model was first trained with.
    """
    values = (getattr(config, name, None) for name in _NAMES)
    found: int | None = next((value for value in values if _is_count(value)), None)
    if found is None:
        return None
    return max(found, _stretched(config, found))


def _stretched(config: Any, plain: int) -> int:
    """What rotary scaling makes of positions that don't count it yet."""
    given = next((value for name in _ROPE if isinstance(value := getattr(config, name, None), dict)), {})
    factors = [1.0]
    for own in [value for value in given.values() if isinstance(value, dict)] or [given]:
        factor = own.get("factor")
        if isinstance(factor, int | float) and own.get("original_max_position_embeddings", plain) == plain:
            factors.append(factor)
    return int(plain * max(factors))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
