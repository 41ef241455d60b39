"""How checkpoint tensors become a model's parameters: transformers' own conversions, planned beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetrace.weights.placement import Placement, Run


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint as a conversion takes it: its ``name``, the ``pattern`` of the conversion
    that it matched, and the ``dtype`` that it is cast to first, None for its own."""

    name: str
    pattern: str
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Placed:
    """A parameter whose elements are those of checkpoint tensors, put in places and perhaps cast."""

    target: str
    runs: tuple[Run, ...]
    stored: torch.dtype

    @property
    def targets(self) -> tuple[str, ...]:
        """Its one name."""
        return (self.target,)


@dataclass(frozen=True)
class Computed:
    """Parameters that transformers' conversion computes from whole checkpoint tensors."""

    targets: tuple[str, ...]
    sources: tuple[Source, ...]
    renamed: str
    converter: Any

    def compute(self, model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters by name, from the tensors of the checkpoint by name."""
        return _convert(
            self, model, {s.name: tensors[s.name].to(s.dtype or tensors[s.name].dtype) for s in self.sources}
        )


Part = Placed | Computed


def plan_conversion(
    model: nn.Module,
    transforms: list[Any],
    tensors: Mapping[str, torch.Tensor],
    casts: Mapping[str, torch.dtype | None],
) -> list[Part]:
    """What becomes of every checkpoint tensor that the model has a use for.

    ``model``: with parameters on the meta device; ``transforms``: transformers' renamings and converters for
    it; ``tensors``: those of the checkpoint, on the meta device; ``casts``: the dtype that each is cast to.
    """
    return [
        part
        for renamed, (converter, sources) in _groups(model, transforms, tensors, casts).items()
        for part in _parts(model, renamed, converter, sources, tensors)
    ]


def _groups(
    model: Any, transforms: list[Any], names: Mapping[str, Any], casts: Mapping[str, torch.dtype | None]
) -> dict[str, tuple[Any, list[Source]]]:
    """Checkpoint tensors by the (first) parameter that they become, as transformers collects them."""
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = deepcopy(transforms)
    renamings = [own for own in transforms if isinstance(own, WeightRenaming)]
    converters = [own for own in transforms if isinstance(own, WeightConverter)]
    by_pattern = {pattern: own for own in converters for pattern in own.source_patterns}
    known, prefix = model.state_dict(), model.base_model_prefix
    groups: dict[str, tuple[Any, list[Source]]] = {}
    for name in sorted(names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in known and name in known:
            renamed, pattern = rename_source_key(name, [], [], prefix, known)
        if renamed not in known:
            continue
        converter = None if pattern is None else by_pattern[pattern]
        _, sources = groups.setdefault(renamed, (converter, []))
        sources.append(Source(name, pattern or name, casts.get(name)))
    return groups


def _parts(
    model: nn.Module, renamed: str, converter: Any, sources: list[Source], tensors: Mapping[str, torch.Tensor]
) -> list[Part]:
    if converter is None:
        # Two tensors of one name after renaming: the first is taken, as transformers does.
        only = sources[0]
        shape, stored = tuple(tensors[only.name].shape), tensors[only.name].dtype
        return [Placed(renamed, tuple(Placement.of(only.name, shape, stored).runs), stored)]
    whole = Computed((), tuple(sources), renamed, converter)
    try:
        stand_ins = {
            s.name: Placement.of(s.name, tuple(tensors[s.name].shape), tensors[s.name].dtype) for s in sources
        }
        found = _convert(whole, model, stand_ins)
    except Exception:  # NotPlacedError, or whatever an operation makes of what isn't a tensor
        targets = whole.compute(model, tensors)
        return [Computed(tuple(targets), whole.sources, renamed, converter)]
    return [Placed(name, tuple(own.runs), own.dtype) for name, own in found.items()]


def _convert(part: Computed, model: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    converter = deepcopy(part.converter)
    for source in part.sources:
        converter.add_tensor(part.renamed, source.name, source.pattern, tensors[source.name])
    found = converter.convert(part.renamed, model=model, config=model.config)
    return {name: own[0] if isinstance(own, list) else own for name, own in found.items()}
