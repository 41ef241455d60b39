"""The prompts, their embeddings, and the fact's signal that attention brings to the final token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moetrace.cases import Case, CaseSet
from moetrace.corruptions import SubjectNoise

WIDTH = 128
# Coordinates of the residual stream; those from FREE on tell tokens apart and nothing reads them.
CONST, SUBJECT, SIGNAL, LOGIT, PAIR, SCRATCH, RELATION, FREE = range(8)
# The final token's constant is so much larger than all else there that its norm is constant to 1e-6.
HEIGHT = 2.0**14
SPAN = 5.5  # a signal of 1 is a subject coordinate of T / (SPAN x subject tokens), below 1 at T = 5 a token
FILLERS = 8
OBJECTS = 4


@dataclass(frozen=True)
class Prompts:
    """Cases and the embedding matrix (float64, vocabulary x width) that they are made for."""

    cases: CaseSet
    embedding: np.ndarray
    true_ids: tuple[int, ...]
    foil_ids: tuple[int, ...]

    @property
    def relation(self) -> np.ndarray:
        """int (cases,): 0 or 1."""
        return np.array([int(case.relation_id[1:]) for case in self.cases])

    def signal(self, eps: float, noise: SubjectNoise | None = None) -> np.ndarray:
        """float64 (draws, cases): the signal z at the final token, clean (one draw) or under noise.

        Uniform attention averages the normed subject coordinate over a prompt of T tokens, so
        z = SPAN / T * sum over subject tokens of x[SUBJECT] / sqrt(|x|^2 + width * eps), where x is the
        embedding, and under noise the embedding plus the draw (equation 2).
        """
        found = []
        for case, x in zip(self.cases, self.subjects(noise), strict=True):
            length = np.sqrt((x**2).sum(axis=2) + WIDTH * eps)
            found.append((x[:, :, SUBJECT] / length).sum(axis=1) * SPAN / len(case.input_ids))
        return np.stack(found, axis=1)

    def subjects(self, noise: SubjectNoise | None = None) -> Iterator[np.ndarray]:
        """Of each case, float64 (draws, subject tokens, width): embeddings, clean (one draw) or noised."""
        std = float(np.std(self.embedding, ddof=1))
        for case in self.cases:
            x = self.embedding[list(case.input_ids[slice(*case.subject)])][None]
            if noise is not None:
                drawn = noise.sample(case, WIDTH) * (noise.scale * std)
                x = x + drawn.numpy().astype(np.float64)
            yield x


def make_prompts(n: int, base: float, seed: int) -> Prompts:
    """``n`` cases of 4 to 15 tokens with subjects of 1 to 3 tokens and a clean signal of 0.95 to 1.05.

    Every fourth case is of relation P1, the others of P0: the final token is the relation's.
    """
    rng = np.random.default_rng([seed, 1])
    first_subject = 1 + FILLERS + 2 + 2 * OBJECTS
    finals = (1 + FILLERS, 2 + FILLERS)
    true_ids = tuple(range(finals[1] + 1, finals[1] + 1 + OBJECTS))
    foil_ids = tuple(range(true_ids[-1] + 1, first_subject))
    counts = [1 + index % 3 for index in range(n)]
    vocabulary = first_subject + sum(counts)
    # Half the noise's unit for each entry, so that the noised subject is mostly noise.
    size = HEIGHT / np.sqrt(2 * vocabulary)
    rows = np.zeros((vocabulary, WIDTH))
    rows[:, FREE:] = rng.standard_normal((vocabulary, WIDTH - FREE))
    rows *= size / np.linalg.norm(rows, axis=1, keepdims=True)
    for relation, token in enumerate(finals):
        rows[token] = 0.0
        rows[token, [CONST, LOGIT, RELATION]] = HEIGHT, base, relation
    cases, next_subject = [], first_subject
    for index, count in enumerate(counts):
        length = 4 * count + index % (count + 1)
        subject = range(next_subject, next_subject + count)
        next_subject += count
        cosine = rng.uniform(0.95, 1.05) * length / (count * SPAN)
        rows[subject] *= np.sqrt(1 - cosine**2)
        rows[subject, SUBJECT] = size * cosine
        relation = int(index % 4 == 3)
        fillers = rng.integers(1, 1 + FILLERS, length - count - 1).tolist()
        start = index % min(4, len(fillers) + 1)
        ids = [*fillers[:start], *subject, *fillers[start:], finals[relation]]
        true_id, foil_id = true_ids[index % OBJECTS], foil_ids[index // 2 % OBJECTS]
        text = f"planted case {index}"
        cases.append(Case(tuple(ids), (start, start + count), true_id, foil_id, index, f"P{relation}", text))
    # What the model holds: its weights are float32.
    held = rows.astype(np.float32).astype(np.float64)
    return Prompts(CaseSet(cases), held, true_ids, foil_ids)
