"""The maker of planted models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from moetrace.arguments import as_count, as_seed
from moetrace.cases import CaseSet
from moetrace.corruptions import NoiseLike, SubjectNoise, as_subject_noise
from moetrace.planted.closed_form import truth_of
from moetrace.planted.design import BASE, Design, make_design
from moetrace.planted.necessity import Necessity, necessity_of
from moetrace.planted.signal import Prompts, make_prompts
from moetrace.planted.truth import Truth
from moetrace.planted.weights import EPS, build_model
from moetrace.results.expert_name import Expert

# Every case brings up to three tokens into the vocabulary, every layer a layer's weights.
MOST_CASES, MOST_LAYERS = 10_000, 256


@dataclass(frozen=True, eq=False)
class Planted:
    """A model with a known answer, cases for it, and the answer.

    >>> planted = plant("pair", "mixtral")
    >>> found = mt.trace_coalitions(planted.model, planted.cases, layer=planted.layer, sets="all")
    >>> found.shapley(), planted.truth.shapley

    Attributes:
        kind, family: as given. cases: a CaseSet; all pass :func:`moetrace.select_cases`.
        model: a transformers model on the CPU, float32, in evaluation mode.
        layer: where the fact is carried. experts: by which of its experts, the star first.
        truth: a :class:`Truth` under the default noise.
    """

    kind: str
    family: str
    model: Any = field(repr=False)
    cases: CaseSet = field(repr=False)
    layer: int
    experts: tuple[int, ...]
    truth: Truth = field(repr=False)
    design: Design = field(repr=False)
    prompts: Prompts = field(repr=False)

    @property
    def star(self) -> Expert:
        """The carrier, or the first of them."""
        return Expert(self.layer, self.experts[0])

    @property
    def direct_experts(self) -> np.ndarray:
        """float64 (n, L, E): what of ``truth.experts`` goes straight to the logits.

        >>> found = mt.trace_experts(planted.model, planted.cases)
        >>> abs(found.direct.reshape(planted.direct_experts.shape) - planted.direct_experts).max() < 1e-4
        True

        All of it, but what later layers' readers make of the pair.
        """
        found = self.truth.experts.copy()
        found[:, self.layer] = np.where(self.truth.clean_active, self.truth.linear, 0.0)
        return found

    @property
    def direct_layers(self) -> np.ndarray:
        """float64 (n, L): what of ``truth.layers`` goes straight to the logits."""
        found = self.truth.layers.copy()
        found[:, self.layer] = self.truth.linear.sum(axis=1)
        return found

    @cached_property
    def necessity(self) -> Necessity:
        """The answer of a knock-out, and of noised values in the clean run under the default noise."""
        signals = (self.prompts.signal(EPS), self.prompts.signal(EPS, SubjectNoise()))
        return necessity_of(self.design, self.prompts.relation, *signals)

    def truth_under(self, noise: NoiseLike) -> Truth:
        """The answer under another noise.

        >>> planted.truth_under(mt.SubjectNoise(scale=1.0)).experts

        The formula holds for every draw; what a kind says of its routing and of its pair holds for scales of
        about 2 and more, where noise takes most of the signal away.
        """
        return _truth(self.design, self.prompts, as_subject_noise(noise))


def plant(
    kind: str,
    family: str = "qwen3_moe",
    *,
    n: int = 12,
    layers: int = 5,
    layer: int = 2,
    shares: Sequence[float] | None = None,
    seed: int = 0,
) -> Planted:
    """Make a small MoE model in which known experts carry a known share of a fact.

    >>> planted = plant("single", "mixtral")
    >>> mt.trace_layers(planted.model, planted.cases).best == planted.layer
    True
    >>> experts = mt.trace_experts(planted.model, planted.cases, layer=planted.layer)
    >>> abs(experts.effects - planted.truth.experts[:, planted.layer]).max() < 1e-4
    True

    Run any pipeline on ``planted.model`` and ``planted.cases`` and compare with ``planted.truth``. ``kind``:

    - "single": one expert carries ``shares`` = (0.8,) of the drop; it hasn't the highest routing weight.
    - "pair": two carry it together; either alone rescues nothing. 0.8 is their part at a clean signal of 1.
    - "set": the routed experts carry 0.5, 0.4, 0.15 and -0.1 of it, additively (with top-2 routing the first
      two shares).
    - "decoy": as "single", and an expert that is routed always, with the highest weight and a patch vector
      some 20 times as long as the carrier's, has no effect.
    - "clean_only": the carrier is routed in the clean run only, so that its patch vector is its clean
      contribution; the expert in its place in the noised run works against the fact.
    - "rare": as "single", and an expert of a quarter of the cases rescues so much more that it has the higher
      mean (zero rows count): recurrence-first selection takes the carrier.

    ``family``: "qwen3_moe" (16 experts, top-4) or "mixtral" (8, top-2). ``n``: cases, of unequal lengths,
    with subjects of 1 to 3 tokens; every fourth is of relation P1, the others of P0. ``layers``, ``layer``:
    decoder layers, and which is planted (it needs two behind it for "pair"). ``shares``: of the carriers, in
    "set" one for each of 1 to k. ``seed``: says which experts, fillers and exact signals.

    **Closed form.** Attention is uniform in layer 0 and absent later, so the final token receives the signal
    z = 5.5 / T * sum over subject tokens of x_s / |x|: T tokens in the prompt, x an embedding (noised: with
    its draw, equation 2), x_s its subject coordinate. Clean it is 0.95 to 1.05, and noise leaves about 0.15.
    The final token's norm is constant to 1e-6, gates are fully open, and routing weights are known numbers
    that the experts' own weights divide out, so that c_e of equation 5 is share_e * z on the one coordinate
    that the objects' logits differ in. With d = 5 * (z_clean - z_noised),

        clean, noised = 5 * (-0.2 + sum of share_e * z),  Rescue(S) = sum over e in S of share_e * d

    for any set S of experts; the rescue of a block is that of all its experts, Shapley values are the single
    rescues and interactions are 0. Shares sum to 1: what the carriers leave is carried by other experts of
    the layer and by other layers.
    In "pair" the two write z / 2 each, and the layers behind read max(their sum - 0.88, 0): the noised sum,
    and the sum with one of the two restored, lie below 0.88. With s the rescue of both, Shapley values are
    s / 2 each and their interaction is s. In "clean_only" the carrier and its substitute write constants, and
    the router's logits depend on z: weights are the softmax that the closed form writes out.

    Errors: ArgumentError for unknown names and numbers out of range. Needs transformers; takes well under a
    second, and leaves the global random state alone.
    """
    layers, layer = as_count(layers, "layers", 1, MOST_LAYERS), as_count(layer, "layer", 0, MOST_LAYERS)
    n, seed = as_count(n, "n", 1, MOST_CASES), as_seed(seed)
    design = make_design(kind, family, layer, layers, shares, seed)
    prompts = make_prompts(n, BASE, seed)
    truth = _truth(design, prompts, SubjectNoise())
    model = build_model(design, prompts)
    return Planted(kind, family, model, prompts.cases, layer, design.experts, truth, design, prompts)


def _truth(design: Design, prompts: Prompts, noise: SubjectNoise) -> Truth:
    return truth_of(design, prompts.relation, prompts.signal(EPS), prompts.signal(EPS, noise))
