"""What takes the place of an expert's contribution where it is switched off in the clean run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from moetrace.engines.clean_contributions import ByLayer, Contributions
from moetrace.errors import ArgumentError, ContributionError

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.engines.ablation import Ablated

Kind = Literal["zero", "mean", "resample", "reroute"]
KINDS: tuple[Kind, ...] = ("zero", "mean", "resample", "reroute")
_WORD = 2**64 - 1  # case ids may be negative


@dataclass(frozen=True, eq=False)
class Ablation:
    """How experts are switched off.

    "zero": their contribution c_e (equation 5) is taken away, the other weights stay. "mean": the mean of c_e
    over the tokens of ``reference`` that are routed to e takes its place. "resample": that of another case of
    ``reference`` does, drawn by ``seed``. "reroute": the router chooses as it would if e's logit were minus
    infinity.

    ``tokens``: those of a case at which they are off; of several the donor's is the one as far from the end
    of its own. ``own``: the traced cases' clean contributions, ``reference`` those of the reference set, by
    case id and layer.
    """

    kind: Kind
    tokens: Callable[[Case], Sequence[int]]
    seed: int = 0
    own: Mapping[int, ByLayer] = field(default_factory=dict)
    reference: Mapping[int, ByLayer] = field(default_factory=dict)

    @property
    def elsewhere(self) -> bool:
        """Whether routers also change at tokens that don't choose the expert, so that switching it off
        changes more than the tokens that are routed to it ("reroute")."""
        return any(own.elsewhere for layers in self.own.values() for own in layers.values())

    @cached_property
    def _means(self) -> dict[int, dict[int, torch.Tensor]]:
        """Of each layer and expert the mean contribution over the tokens that are routed to it."""
        found: dict[int, dict[int, torch.Tensor]] = {}
        for layer in next(iter(self.reference.values()), {}):
            parts = [own[layer] for own in self.reference.values()]
            experts = torch.cat([part.experts.flatten() for part in parts])
            values = torch.cat([_values(part).flatten(0, 1) for part in parts]).double()
            found[layer] = {int(e): values[experts == e].mean(dim=0) for e in set(experts.tolist())}
        return found

    @cached_property
    def _active(self) -> dict[tuple[int, int], list[int]]:
        """Of each layer and expert the reference cases that route to it."""
        found: dict[tuple[int, int], list[int]] = {}
        for case_id, layers in self.reference.items():
            for layer, own in layers.items():
                for expert in own.routed:
                    found.setdefault((layer, expert), []).append(case_id)
        return found

    def donor(self, case_id: int, layer: int, expert: int) -> int:
        """The case whose contribution takes the place of the expert's in another ("resample").

        Drawn from (seed, case id, layer, expert) among the other reference cases that route to the expert;
        where none does, among all others, and the expert then contributes nothing.
        """
        others = [one for one in self._active.get((layer, expert), ()) if one != case_id]
        others = others or [one for one in self.reference if one != case_id]
        if not others:
            raise ArgumentError(
                f"case {case_id} has no other case whose contributions could take its experts' place; "
                "ablation='resample' needs at least two cases, or a reference set with another one: give "
                "more cases or reference=cases"
            )
        draw = np.random.default_rng([self.seed, case_id & _WORD, layer, expert])
        return others[int(draw.integers(len(others)))]

    def replacement(
        self, case: Case, layer: int, token: int, expert: int, strict: bool = True
    ) -> torch.Tensor | None:
        """What the expert contributes instead at a token, at the block's output (width,); None for nothing.

        Not of "reroute", where the router chooses. ArgumentError where a mean isn't defined, unless nobody
        asks for this expert (``strict``).
        """
        if self.kind == "mean":
            mean = self._means[layer].get(expert)
            if mean is None and strict:
                raise ArgumentError(
                    f"no token of the reference set ({len(self.reference)} cases) is routed to L{layer:02d}"
                    f"E{expert:03d}, which case {case.case_id} is, so that its mean contribution isn't "
                    "defined; give a reference set in which it is active, or ablation='zero'"
                )
            return mean
        if self.kind == "resample":
            donor = self.reference[self.donor(case.case_id, layer, expert)][layer]
            mine = self.tokens(case)
            place = len(donor.tokens) - len(mine) + mine.index(token)
            return donor.at(int(donor.tokens[place]), expert) if place >= 0 else None
        return None

    def refuse_undefined(self, cases: Sequence[Case], sites: Collection[tuple[int, int]]) -> None:
        """ArgumentError where an expert that is to be switched off has no mean, or a case no donor."""
        if self.kind not in ("mean", "resample"):
            return
        for case in cases:
            for layer, own in self.own[case.case_id].items():
                for expert in own.routed:
                    if (layer, expert) in sites:
                        self.replacement(case, layer, int(own.tokens[-1]), expert)

    def instead(self, case: Case, layer: int, token: int, width: int) -> tuple[list[int], torch.Tensor]:
        """Experts of a token, and what each adds to their sum beside what taking it away does.

        (m,) and float32 (m, width), at the experts' output: of "mean" and "resample" its replacement, of
        "reroute" all that changes. ContributionError where the block does more with its experts than scale
        them.
        """
        own = self.own[case.case_id][layer]
        place = int((own.tokens == token).nonzero()[0, 0])
        experts = own.experts[place].tolist()
        if self.kind == "reroute":
            assert own.rerouted is not None
            found = own.rerouted[place]
        else:
            nothing = torch.zeros(width)
            given = (self.replacement(case, layer, token, expert, strict=False) for expert in experts)
            found = torch.stack([nothing if one is None else one.to(nothing) for one in given])
        if own.scale is None:
            raise ContributionError(
                f"layer {layer}: the block does more with the sum of its experts than scale it; "
                "engine='reference' serves it"
            )
        return experts, (found / own.scale).float()

    def switched_off(self, case: Case, layer: int, token: int, own: Ablated) -> Ablated:
        """A token's experts with what each contributes instead, c_e and what it changes for "reroute"."""
        values = []
        for expert, contribution in zip(own.experts, own.values, strict=True):
            if self.kind == "reroute":
                change = self.own[case.case_id][layer].at(token, expert, rerouted=True)
                assert change is not None
                values.append(contribution + change.to(contribution))
                continue
            instead = self.replacement(case, layer, token, expert, strict=False)
            nothing = torch.zeros_like(contribution)
            values.append(nothing if instead is None else instead.to(contribution))
        return replace(own, values=values)


def _values(own: Contributions) -> torch.Tensor:
    assert own.values is not None
    return own.values


def donors_of(ablation: Ablation, case_ids: Sequence[int], sites: Sequence[tuple[int, int]]) -> np.ndarray:
    """int64 (cases, sites): the donor of each case and (layer, expert)."""
    rows = [[ablation.donor(case_id, *site) for site in sites] for case_id in case_ids]
    return np.array(rows, np.int64).reshape(len(case_ids), len(sites))
