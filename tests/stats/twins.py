"""Every compiled routine once more, in plain numpy and as plainly as possible."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

RESAMPLE, WITHIN_CLUSTER, FLIP, SAMPLE = 1, 2, 3, 4
_WORD = 2**32


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    c, k = list(counter), list(key)
    for _ in range(10):
        even, odd = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [odd // _WORD ^ c[1] ^ k[0], odd % _WORD, even // _WORD ^ c[3] ^ k[1], even % _WORD]
        k = [(k[0] + 0x9E3779B9) % _WORD, (k[1] + 0xBB67AE85) % _WORD]
    return tuple(c)


def word(seed: int, purpose: int, stream: int, index: int, attempt: int = 0) -> int:
    counter = (index // 4, stream % _WORD, stream // _WORD, purpose + 256 * attempt)
    return philox4x32(counter, (seed % _WORD, seed // _WORD))[index % 4]


def below(n: int, seed: int, purpose: int, stream: int, index: int) -> int:
    attempt = 0
    while True:
        product = word(seed, purpose, stream, index, attempt) * n
        if product % _WORD >= _WORD % n:
            return product // _WORD
        attempt += 1


def sample_without_replacement(n: int, k: int, seed: int, stream: int) -> list[int]:
    items = list(range(n))
    for step in range(k):
        place = step + below(n - step, seed, SAMPLE, stream, step)
        items[step], items[place] = items[place], items[step]
    return items[:k]


def resample_counts(n: int, resamples: int, seed: int) -> np.ndarray:
    streams = np.arange(resamples, dtype=np.uint64)
    drawn = np.empty((resamples, n), int)
    for i in range(n):
        product = word(seed, RESAMPLE, streams, i) * n  # type: ignore[arg-type]
        drawn[:, i] = product // _WORD
        for b in np.flatnonzero(product % _WORD < _WORD % n):
            drawn[b, i] = below(n, seed, RESAMPLE, int(b), i)
    return np.array([np.bincount(row, minlength=n) for row in drawn])


def cluster_counts(labels: np.ndarray, resamples: int, seed: int, two_stage: bool) -> np.ndarray:
    clusters = int(labels.max()) + 1
    members = [np.flatnonzero(labels == g) for g in range(clusters)]
    counts = np.zeros((resamples, len(labels)), int)
    for b in range(resamples):
        position = 0
        for i in range(clusters):
            drawn = members[below(clusters, seed, RESAMPLE, b, i)]
            if not two_stage:
                counts[b, drawn] += 1
                continue
            for _ in drawn:
                counts[b, drawn[below(len(drawn), seed, WITHIN_CLUSTER, b, position)]] += 1
                position += 1
    return counts


def flip_signs(n: int, flips: int, seed: int) -> np.ndarray:
    words = [[word(seed, FLIP, b, k) for k in range(-(-n // 32))] for b in range(flips)]
    return np.array([[1 if row[i // 32] >> (i % 32) & 1 else -1 for i in range(n)] for row in words])


def all_signs(n: int) -> np.ndarray:
    return np.array([[1 if code >> i & 1 else -1 for i in range(n)] for code in range(2**n)])


def acceleration(leave_one_out: np.ndarray) -> np.ndarray:
    apart = leave_one_out.mean(axis=0) - leave_one_out
    squares = (apart**2).sum(axis=0)
    return np.divide((apart**3).sum(axis=0), 6 * squares**1.5, out=np.zeros_like(squares), where=squares > 0)


def interval(
    replicates: np.ndarray,
    estimate: float,
    ci: str,
    confidence: float,
    leave_one_out: np.ndarray,
) -> tuple[float, float]:
    outside = (1 - confidence) / 2
    levels = np.array([outside, 1 - outside])
    if ci == "bca":
        close = np.isclose(replicates, estimate, rtol=1e-13, atol=1e-13)
        share = np.where(close, 0.5, replicates < estimate).mean()
        bias = ndtri(np.clip(share, 0.5 / len(replicates), 1 - 0.5 / len(replicates)))
        shifted = bias + ndtri(levels)
        levels = ndtr(bias + shifted / (1 - acceleration(leave_one_out) * shifted))
    low, high = np.quantile(replicates, levels)
    return (2 * estimate - high, 2 * estimate - low) if ci == "basic" else (low, high)


def flip_p_values(x: np.ndarray, signs: np.ndarray, exact: bool) -> dict[str, np.ndarray]:
    observed = np.abs(x.sum(axis=0))
    found = np.abs(signs @ x)
    threshold = observed - 1e-12 * np.abs(x).sum(axis=0)
    identity = 0 if exact else 1

    def share(counts: np.ndarray) -> np.ndarray:
        return (counts + identity) / (len(signs) + identity)

    order = np.argsort(-observed, kind="stable")
    step_down = np.empty(len(order))
    largest = np.maximum.accumulate(found[:, order[::-1]], axis=1)[:, ::-1]
    step_down[order] = np.maximum.accumulate(share((largest >= threshold[order]).sum(axis=0)))
    return {
        "own": share((found >= threshold).sum(axis=0)),
        "max_t_single": share((found.max(axis=1)[:, None] >= threshold).sum(axis=0)),
        "max_t": step_down,
    }


def holm(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    for rank, at in enumerate(order):
        adjusted[at] = max(min(1.0, (len(p) - earlier) * p[order[earlier]]) for earlier in range(rank + 1))
    return adjusted


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    for rank, at in enumerate(order):
        later = range(rank, len(p))
        adjusted[at] = min(1.0, min(len(p) / (k + 1) * p[order[k]] for k in later))
    return adjusted
