"""(e) pyvene: an ``IntervenableModel`` per patch.

After "Causal Tracing (ROME)" of its documentation
(https://stanfordnlp.github.io/pyvene/tutorials/advanced_tutorials/Causal_Tracing.html): a noise intervention
and a restoring one in one configuration, an ``IntervenableModel`` made for each layer. Components are named
by string access and clean activations are collected once, by ``CollectIntervention``, and handed over as
``source_representation``, as in "Introduction to pyvene"
(https://stanfordnlp.github.io/pyvene/tutorials/pyvene_101.html). The tutorial's own loop costs twice as many
forwards, since it runs the source prompt again for every patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import Case, logit_difference
from benchmarks.peers import Sweep

requirement = "pyvene"
EMBEDDING = "model.embed_tokens.output"


def prepare(model: Qwen3MoeForCausalLM) -> Sweep:
    """The measured function, on ``IntervenableModel`` wrappers of ``model``."""
    import pyvene as pv

    count = len(model.model.layers)
    width = model.config.hidden_size

    class NoiseIntervention(pv.ConstantSourceIntervention, pv.LocalistRepresentationIntervention):
        """Adds fixed noise at the positions that it is placed at."""

        def __init__(self, noise: Tensor, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.noise = noise

        def forward(self, base: Tensor, source: Any = None, subspaces: Any = None, **kwargs: Any) -> Tensor:
            return base + self.noise

    def block(layer: int) -> str:
        return f"model.layers[{layer}].mlp.output"

    def clean_outputs(ids: Tensor) -> list[Tensor]:
        collecting = [
            {"component": block(layer), "intervention": pv.CollectIntervention()} for layer in range(count)
        ]
        final = ids.shape[1] - 1
        (_, collected), _ = pv.IntervenableModel(collecting, model=model)(
            {"input_ids": ids}, unit_locations={"base": [[[final]]] * count}
        )
        return [value.reshape(width) for value in collected]

    @torch.no_grad()
    def sweep(cases: Sequence[Case], noise: Mapping[int, Tensor]) -> np.ndarray:
        rescue = np.empty((len(cases), count), dtype=np.float32)
        for row, case in enumerate(cases):
            ids = torch.tensor([case.input_ids])
            subject = list(range(*case.subject))
            noising = {"component": EMBEDDING, "intervention": NoiseIntervention(noise[case.case_id])}
            clean = clean_outputs(ids)
            _, output = pv.IntervenableModel([noising], model=model)(
                {"input_ids": ids}, unit_locations={"base": [[subject]]}
            )
            noised = logit_difference(output.logits[0, -1], case)
            for layer in range(count):
                restored = pv.VanillaIntervention(source_representation=clean[layer])
                restoring = {"component": block(layer), "intervention": restored}
                _, output = pv.IntervenableModel([noising, restoring], model=model)(
                    {"input_ids": ids}, unit_locations={"base": [[subject], [[len(case.input_ids) - 1]]]}
                )
                rescue[row, layer] = logit_difference(output.logits[0, -1], case) - noised
        return rescue

    return sweep
