"""How much of a model's behaviour a set of experts carries: faithfulness, its areas, and rankings.

Faithfulness, CPR and CMD are those of the MIB benchmark (Mueller et al. 2025, "MIB: A Mechanistic
Interpretability Benchmark", section 3), with routed experts in the place of its edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moetrace.arguments import as_choice, as_count, as_seed
from moetrace.effects.contrasts import Bools, Floats
from moetrace.errors import ArgumentError

Counts = npt.NDArray[np.int64]
ORDERS = ("effect", "absolute")
# Parts of all experts at which a circuit is measured, as MIB takes them of all edges.
SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def importance_order(effects: Floats, by: str = "effect") -> Counts:
    """Columns of knock-out effects, the most important expert first.

    >>> importance_order(trace.effects)[:8]

    ``effects``: (cases, experts), ablated minus clean. ``by``: "effect", the lowest mean first: what the
    model loses most without; or "absolute", the largest mean in size first, whichever its sign. Of equal
    ones the lower column.
    """
    by = as_choice(by, "by", ORDERS)
    mean = np.asarray(effects, np.float64).mean(axis=0)
    found: Counts = np.argsort(mean if by == "effect" else -np.abs(mean), kind="stable")
    return found


def faithfulness(value: npt.ArrayLike, empty: float, full: float) -> Floats:
    """f(C) = (m(C) - m(empty)) / (m(full) - m(empty)) of MIB, of one circuit or of many.

    >>> faithfulness([-1.0, 2.0, 3.0], empty=-1.0, full=3.0)
    array([0.  , 0.75, 1.  ])

    ``value``: the metric's mean over cases where only the circuit's experts are on; ``empty``: where none
    is; ``full``: of the model itself. NaN where the last two are the same: there is nothing to explain.
    """
    span = full - empty
    values = np.asarray(value, np.float64) - empty
    found: Floats = values / span if span != 0 else np.full(values.shape, np.nan)
    return found


def cpr(sizes: npt.ArrayLike, faithful: npt.ArrayLike) -> float:
    """Integrated circuit performance ratio (MIB): the area under f over the circuit's size.

    >>> cpr([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])
    0.75

    ``sizes``: parts of all experts, ascending from 0 to 1; ``faithful``: f at each. The area is that of the
    straight lines between them; above 1 where a circuit does better than the whole model.
    """
    return _area(sizes, np.asarray(faithful, np.float64))


def cmd(sizes: npt.ArrayLike, faithful: npt.ArrayLike) -> float:
    """Integrated circuit-model distance (MIB): the area between f and 1, 0 for a circuit that acts as the
    model does at any size.

    >>> cmd([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])
    0.25

    Arguments: as of :func:`cpr`. Of |1 - f| at the sizes given, by straight lines between them.
    """
    return _area(sizes, np.abs(1.0 - np.asarray(faithful, np.float64)))


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Area under the receiver's operating characteristic: how well scores rank positives above the others.

    >>> auroc([3.0, 2.0, 1.0], [True, False, False])
    1.0

    ``scores``: (n,), the higher the more important. ``positive``: bool (n,). The chance that a positive has
    the higher score of a random pair; ties count half. ArgumentError where there is no pair.
    """
    values, flags = np.asarray(scores, np.float64), np.asarray(positive, np.bool_)
    if values.shape != flags.shape or values.ndim != 1:
        raise ArgumentError(
            f"scores have shape {values.shape} and positive {flags.shape}; expected (n,) of both"
        )
    own, others = values[flags], np.sort(values[~flags])
    if not len(own) or not len(others):
        raise ArgumentError(
            f"{len(own)} of {len(flags)} are positive; expected at least one that is and one that isn't"
        )
    below, not_above = (np.searchsorted(others, own, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(others)))


def random_sets(columns: int, chosen: npt.ArrayLike, draws: int, seed: int = 0) -> Counts:
    """Random orders of experts beside a chosen order: (draws, n), without the chosen ones while others last.

    >>> random_sets(128, order[:8], draws=5, seed=0).shape
    (5, 8)

    Its first m are the control of the first m chosen ones. ArgumentError where there are fewer experts than
    chosen ones.
    """
    given, generator = _checked(columns, chosen, draws, seed)
    others = np.setdiff1d(np.arange(columns), given)
    found = [
        np.concatenate([generator.permutation(others), generator.permutation(given)])[: len(given)]
        for _ in range(draws)
    ]
    return np.array(found, np.int64).reshape(draws, len(given))


def frequency_matched_sets(active: Bools, chosen: npt.ArrayLike, draws: int, seed: int = 0) -> Counts:
    """Experts that are routed to as often as the chosen ones: (draws, n), the i-th beside the i-th chosen.

    >>> frequency_matched_sets(clean_active, order[:8], draws=5, seed=0).shape
    (5, 8)

    ``active``: bool (cases, experts). Of the experts that aren't chosen, and weren't drawn before, the one
    whose number of active cases is closest; of equally close ones a random one. Where no other is left, a
    chosen one. Routing frequency matters: an expert that is never routed to can't be missed.
    """
    frequency = np.asarray(active, np.bool_).sum(axis=0)
    given, generator = _checked(len(frequency), chosen, draws, seed)
    found = []
    for _ in range(draws):
        free = np.ones(len(frequency), np.bool_)
        free[given] = False
        spare = list(generator.permutation(given))
        line = []
        for column in given:
            candidates = np.flatnonzero(free)
            if not len(candidates):
                line.append(spare.pop())
                continue
            apart = np.abs(frequency[candidates] - frequency[column])
            pick = int(generator.choice(candidates[apart == apart.min()]))
            free[pick] = False
            line.append(pick)
        found.append(line)
    return np.array(found, np.int64).reshape(draws, len(given))


def _checked(
    columns: int, chosen: npt.ArrayLike, draws: int, seed: int
) -> tuple[Counts, np.random.Generator]:
    given = np.asarray(chosen, np.int64)
    if len(np.unique(given)) != len(given) or (len(given) and not 0 <= given.min() <= given.max() < columns):
        raise ArgumentError(f"chosen are {given.tolist()}; expected different experts of 0 to {columns - 1}")
    as_count(draws, "draws")
    return given, np.random.default_rng(as_seed(seed))


def _area(sizes: npt.ArrayLike, heights: Floats) -> float:
    """By trapezoids over sizes from 0 to 1."""
    places = np.asarray(sizes, np.float64)
    rising = places.ndim == 1 and len(places) > 1 and bool((np.diff(places) > 0).all())
    if not rising or places[0] != 0 or places[-1] != 1 or places.shape != heights.shape:
        raise ArgumentError(
            f"sizes are {places.tolist()} for {heights.shape} values; expected ascending parts from 0 to 1, "
            "a value for each"
        )
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(places)).sum())
