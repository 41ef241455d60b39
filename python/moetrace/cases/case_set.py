"""An immutable sequence of cases that knows where they came from."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, overload

from moetrace.arguments import as_count, as_integer, as_list, as_seed, is_integer, shown
from moetrace.cases.case import Case, fingerprint, refuse_duplicates
from moetrace.cases.case_display import SHOWN, case_set_html
from moetrace.cases.case_files import Origin, case_frame, read_case_set, write_case_set
from moetrace.cases.folds import groups_of
from moetrace.cases.positions import fold_positions, split_positions
from moetrace.errors import ArgumentError, ArgumentTypeError, CaseError, CaseIndexError

if TYPE_CHECKING:
    import pandas as pd


class CaseSet(Sequence[Case]):
    """Cases in order, how many fell at which filter, and which record each was made from.

    >>> cases = CaseSet([Case([5, 6, 7], (0, 1), 8, 9, case_id=0)])
    >>> discovery, validation = cases.split(seed=0)
    >>> cases[:10].frame()

    A slice, a list of positions or a boolean mask gives a CaseSet with the same funnel; ``+`` joins two.
    Two sets are equal where their cases are, in order.

    Args:
        cases: The cases; their ids differ.
        funnel: Filter name -> cases left after it, in the order of the filters.
        dropped: Reason -> cases that fell for it.
        record_indices: For each case, the index of its record; its own position by default.
        n_records: How many records there were. Record order shuffles *all* of them (Table 2), so the
            number belongs to the set; by default the largest record index plus one.

    Raises:
        DuplicateCaseError: Two cases share an id.
        CaseError: An item isn't a Case, or ``record_indices`` doesn't fit.
    """

    __slots__ = ("_cases", "_dropped", "_funnel", "_n_records", "_record_indices")

    def __init__(
        self,
        cases: Iterable[Case],
        funnel: Mapping[str, int] | None = None,
        dropped: Mapping[str, int] | None = None,
        record_indices: Sequence[int] | None = None,
        n_records: int | None = None,
    ) -> None:
        if isinstance(cases, Case):
            raise CaseError("cases is one Case; expected a list of them: [case]")
        self._cases = tuple(as_list(cases, "cases", "a list of moetrace.Case"))
        for place, case in enumerate(self._cases):
            if not isinstance(case, Case):
                raise CaseError(f"item {place} is a {type(case).__name__}; expected a moetrace.Case")
        refuse_duplicates(self._cases)
        indices = range(len(self._cases)) if record_indices is None else record_indices
        indices = as_list(indices, "record_indices", "a list of integers")
        self._record_indices = tuple(as_count(index, "record_indices", 0) for index in indices)
        least = max(self._record_indices, default=-1) + 1
        self._n_records = least if n_records is None else as_count(n_records, "n_records", 0)
        if len(self._record_indices) != len(self._cases) or self._n_records < least:
            raise CaseError(
                f"{len(self._record_indices)} record indices, the largest {least - 1}, were given for"
                f" {len(self._cases)} cases of {self._n_records} records; expected one each, below n_records"
            )
        self._funnel = _counts(funnel, "funnel")
        self._dropped = Counter(_counts(dropped, "dropped"))

    @property
    def funnel(self) -> dict[str, int]:
        """Filter name -> cases left after it, in the order of the filters (a copy)."""
        return dict(self._funnel)

    @property
    def dropped(self) -> Counter[str]:
        """Reason -> number of records or cases that fell for it (a copy)."""
        return Counter(self._dropped)

    @property
    def record_indices(self) -> tuple[int, ...]:
        """For each case, the index of the record that it was made from."""
        return self._record_indices

    @property
    def n_records(self) -> int:
        """How many records the cases were made from, the dropped ones included."""
        return self._n_records

    def __len__(self) -> int:
        return len(self._cases)

    @overload
    def __getitem__(self, item: int) -> Case: ...
    @overload
    def __getitem__(self, item: slice | Sequence[int] | Sequence[bool]) -> CaseSet: ...
    def __getitem__(self, item: Any) -> Case | CaseSet:
        if isinstance(item, slice):
            return self.take(_slice(item, len(self)))
        return self._cases[self._position(item)] if is_integer(item) else self.take(item)

    def __add__(self, other: object) -> CaseSet:
        """The cases of both, in order; of the same records the funnel stays, else the joined set has none."""
        if not isinstance(other, CaseSet):
            return NotImplemented
        cases = [*self._cases, *other._cases]
        if (self._n_records, self._funnel) != (other._n_records, other._funnel):
            return CaseSet(cases)
        indices = [*self._record_indices, *other._record_indices]
        return CaseSet(cases, self._funnel, self._dropped, indices, self._n_records)

    def _position(self, value: Any) -> int:
        """A position of this set, from the end where negative."""
        position = as_integer(value, "a position")
        if not -len(self) <= position < len(self):
            raise CaseIndexError(f"position {shown(position)} is outside this set of {len(self)} cases")
        return position % len(self)

    def __eq__(self, other: object) -> bool:
        return self._cases == other._cases if isinstance(other, CaseSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._cases)

    def take(
        self,
        positions: Iterable[int],
        funnel: Mapping[str, int] | None = None,
        dropped: Mapping[str, int] | None = None,
    ) -> CaseSet:
        """The cases at these positions, in this order; the funnel stays unless another is given.

        >>> cases.take([3, 1])
        >>> cases.take(cases.frame().relation_id == "P103")

        ``positions``: integers, from the end where negative, or a boolean for each case.

        Raises:
            CaseIndexError: A position that the set hasn't.
            DuplicateCaseError: A position that stands twice.
            ArgumentError: Neither of the two.
        """
        wanted = as_list(positions, "positions", "a list of positions, or a boolean for each case")
        if wanted and all(isinstance(item, bool) for item in wanted):
            if len(wanted) != len(self):
                raise ArgumentError(
                    f"positions are {len(wanted)} booleans; expected one for each of {len(self)} cases"
                )
            wanted = [place for place, chosen in enumerate(wanted) if chosen]
        places = [self._position(item) for item in wanted]
        return CaseSet(
            [self._cases[place] for place in places],
            funnel=self._funnel if funnel is None else funnel,
            dropped=self._dropped if dropped is None else dropped,
            record_indices=[self._record_indices[place] for place in places],
            n_records=self._n_records,
        )

    def record_order(self, seed: int | None = 0) -> list[int]:
        """Positions of the cases in the paper's record order (Table 2).

        >>> cases.take(cases.record_order(seed=0))

        All ``n_records`` indices are shuffled by Python's ``random.Random(seed)``, before any filter, and
        the cases follow in that order. ``seed=None`` is the order of the set.
        """
        ranks = self.record_ranks(seed)
        return sorted(range(len(self)), key=ranks.__getitem__)

    def record_ranks(self, seed: int | None = 0) -> list[int]:
        """For each case, how many records a scan in record order passes before the case's own.

        >>> max(usable.record_ranks(seed=0)) + 1     # records scanned until the last usable case

        Records without a case in this set, those that :func:`make_cases` dropped among them, have their
        places in the order and count. With ``seed=None`` a rank is the record's index; where the cases
        don't stand in their records' order, the others have no place among them, and it is the position.
        """
        if seed is not None:
            seed = as_seed(seed)
            order = list(range(self._n_records))
            random.Random(seed).shuffle(order)
            rank = {record: place for place, record in enumerate(order)}
            return [rank[record] for record in self._record_indices]
        ascending = all(one <= other for one, other in pairwise(self._record_indices))
        return list(self._record_indices if ascending else range(len(self)))

    def split(
        self, seed: int = 0, fraction: float = 0.5, order: Literal["shuffle", "scan"] = "shuffle"
    ) -> tuple[CaseSet, CaseSet]:
        """Discovery and validation cases, as the paper splits them (Tables 2 and 8).

        >>> discovery, validation = usable.split(seed=0)
        >>> discovery, validation = relaxed.split(order="scan")

        The first ``round(n * fraction)`` cases are for discovery, the others for validation.

        Args:
            seed: For ``order="shuffle"``.
            fraction: Share of the cases that are for discovery.
            order: ``"shuffle"``: the cases, in the order they have, are shuffled by ``random.Random(seed)``;
                this gives Table 8 to the letter. ``"scan"``: the order they have, for cases of
                :func:`moetrace.select_cases` that of the scan. Appendix F doesn't say how its 512 cases
                were split; that only 15 of its 256 validation cases are among the 256 strict ones, which
                the scan meets early, speaks for halves in scan order (Tables 14 and 15).

        Raises:
            ArgumentError: ``fraction`` isn't strictly between 0 and 1, or ``order`` is neither word.
        """
        discovery, validation = split_positions(len(self), seed, fraction, order)
        return self.take(discovery), self.take(validation)

    def folds(
        self, by: str | Callable[[Case], Hashable] = "relation_id", k: int = 5, seed: int = 0
    ) -> list[tuple[CaseSet, CaseSet]]:
        """``k`` pairs ``(rest, held_out)``: each group of cases is held out whole, exactly once (Table 12).

        >>> for rest, held_out in usable.folds(k=5):
        ...     star = trace_experts(model, rest, layer=44).select()

        Args:
            by: An attribute of Case, or a function of a case, that names its group.
            k: Number of folds, at least 2 and at most the number of groups.
            seed: Shuffles the groups before they are dealt out, largest first, each to the smallest fold.

        Raises:
            ArgumentError: ``k`` doesn't fit the groups, or Case has no such attribute.
        """
        held = fold_positions(groups_of(self._cases, by), k, seed, by)
        everything = range(len(self))
        return [
            (self.take(place for place in everything if place not in out), self.take(sorted(out)))
            for out in held
        ]

    def fingerprint(self) -> str:
        """Hex SHA-256 of the cases and their order: equal for equal sets, in any process and version.

        >>> usable.fingerprint()[:8]
        """
        return fingerprint(self)

    def frame(self) -> pd.DataFrame:
        """One row per case: ids, relation, prompt, token counts and positions, objects.

        >>> cases.frame().groupby("relation_id").size()
        """
        return case_frame(self, self._record_indices)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set, atomically: Parquet where the path ends in ``.parquet``, JSON otherwise.

        >>> usable.save("usable.json")
        """
        origin = Origin(
            funnel=self._funnel,
            dropped=dict(self._dropped),
            record_indices=self._record_indices,
            n_records=self._n_records,
        )
        write_case_set(self, origin, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CaseSet:
        """Read what :meth:`save` wrote, with its funnel and record order.

        >>> CaseSet.load("usable.json") == usable

        Raises:
            RecordError: There is no such file, it is truncated, changed, or of another kind.
        """
        return read_case_set(path, cls)

    def __repr__(self) -> str:
        steps = ", ".join(f"{name} {left:,}" for name, left in self._funnel.items())
        return f"CaseSet({len(self):,} cases{': ' + steps if steps else ''})"

    def _repr_html_(self) -> str:
        return case_set_html(self[:SHOWN].frame(), len(self), self._funnel, self._dropped)


def _counts(given: Any, name: str) -> dict[str, int]:
    """Filter or reason -> how many."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(f"{name} is {shown(given)}; expected a mapping of names to counts")
    return {str(key): as_count(value, f"{name}[{key!r}]", 0) for key, value in given.items()}


def _slice(item: slice, length: int) -> range:
    """The positions of a slice."""
    try:
        return range(length)[item]
    except (TypeError, ValueError) as failure:
        raise ArgumentTypeError(f"cases can't be sliced by {shown(item)}: {failure}") from None


def as_case_set(cases: Sequence[Case] | CaseSet) -> CaseSet:
    """A case set from any sequence of cases; DuplicateCaseError where two share an id."""
    return cases if isinstance(cases, CaseSet) else CaseSet(cases)
