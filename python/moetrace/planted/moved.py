"""What a planted map of tokens is made of: what the writer adds to tokens, and what attention then reads."""

from __future__ import annotations

import numpy as np

from moetrace.planted.design import GAIN, Design
from moetrace.planted.signal import CONST, PAIR, SPAN, SUBJECT, WIDTH, Prompts
from moetrace.planted.weights import EPS, NEVER, OPEN

ROUTES = 40.0  # slope of the writer's router logit in the subject's cosine
STRENGTH = 25.0  # of what is written, in norms of a subject token: noise adds some 7 of them


def strength_of(prompts: Prompts) -> float:
    """In units of the residual stream; the subjects' last tokens have one norm."""
    case = prompts.cases[0]
    return STRENGTH * float(np.linalg.norm(prompts.embedding[case.input_ids[case.subject[1] - 1]]))


def gain_of(tokens: int) -> float:
    """Logits of a moved coordinate of 1, in a prompt of so many tokens."""
    return GAIN * SPAN / tokens


def written(design: Design, x: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """What the writer adds to tokens with embeddings x (..., width), and whether they are routed to it."""
    length = np.sqrt((x**2).sum(axis=-1) + WIDTH * EPS)
    s, c = x[..., SUBJECT] / length, x[..., CONST] / length
    slopes = np.full(design.family.experts, NEVER)
    for role in design.roles[design.layer]:
        slopes[role.expert] = np.log(role.weight)
    logits = slopes * c[..., None]
    logits[..., design.experts[0]] += ROUTES * s
    best = np.sort(logits, axis=-1)[..., -design.family.top_k :]
    own = logits[..., design.experts[0]]
    routed = own >= best[..., 0]
    weight = np.where(routed, np.exp(own - np.logaddexp.reduce(best, axis=-1)), 0.0)
    return weight * strength * s * s / (1.0 + np.exp(-OPEN * s)), routed


def moved(x: np.ndarray, added: np.ndarray) -> np.ndarray:
    """The coordinate that attention reads, of normed tokens; ``added``: what the writer adds."""
    own = x[..., PAIR] + added
    length = np.sqrt((x**2).sum(axis=-1) - x[..., PAIR] ** 2 + own**2 + WIDTH * EPS)
    found: np.ndarray = own / length
    return found
