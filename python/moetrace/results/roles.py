"""Roles of a prompt's tokens, by which maps of prompts of other lengths are averaged.

As in the averaged causal traces of Meng et al. 2022 (Locating and Editing Factual Associations in GPT,
section 2.2): tokens before the subject, its first, its middle ones and its last, the first behind it, the
further ones, and the last of the prompt.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

ROLES = (
    "prefix",
    "first subject",
    "middle subject",
    "last subject",
    "first after",
    "further",
    "last token",
)
_Kind = TypeVar("_Kind", bound=np.generic)


def role_of(token: int, subject: tuple[int, int], length: int) -> str:
    """The role of a token.

    >>> role_of(4, (3, 5), 9)
    'last subject'

    A subject of one token has its last alone, one of two no middle. The first token behind the subject is
    "last token" where the prompt ends with it; a final token of the subject stays the subject's.
    """
    start, stop = subject
    if token < start:
        return "prefix"
    if token < stop:
        if token == stop - 1:
            return "last subject"
        return "first subject" if token == start else "middle subject"
    if token == length - 1:
        return "last token"
    return "first after" if token == stop else "further"


def roles_of(tokens: npt.NDArray[np.int64], cases: pd.DataFrame) -> npt.NDArray[np.int64]:
    """int64 (cases, sites): the number of each site's role in ROLES; -1 where a case has no such token."""
    found = np.full(tokens.shape, -1, dtype=np.int64)
    prompts = zip(cases.subject_start, cases.subject_stop, cases.input_ids, strict=True)
    for row, (start, stop, ids) in enumerate(prompts):
        own = [role_of(at, (start, stop), len(ids)) for at in range(len(ids))]
        known = tokens[row] >= 0
        found[row, known] = [ROLES.index(own[token]) for token in tokens[row, known]]
    return found


def by_role(
    values: npt.NDArray[np.float64], roles: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Of each case the mean over its tokens of one role: (cases, groups x roles), NaN where there is none.

    ``groups`` (sites,): which sites differ by the token alone, from 0.
    """
    count = int(groups.max(initial=-1)) + 1
    found = np.full((len(values), count * len(ROLES)), np.nan)
    for group in range(count):
        own = groups == group
        for role in range(len(ROLES)):
            there = (roles[:, own] == role) & ~np.isnan(values[:, own])
            n = there.sum(axis=1)
            sums = np.where(there, values[:, own], 0.0).sum(axis=1)
            some = n > 0
            found[some, group * len(ROLES) + role] = sums[some] / n[some]
    return found
