"""Where some cases stand in a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from moetrace.arguments import as_integer, as_list
from moetrace.cases import CaseSet
from moetrace.errors import ArgumentError, DuplicateCaseError


class CaseMismatchError(ArgumentError):
    """Traces that must share their cases don't, or a trace hasn't the cases that are asked for."""


def positions_of(
    wanted: Iterable[int] | CaseSet, traced: list[int], left_out: Collection[int]
) -> tuple[list[int], set[int]]:
    """Positions of the wanted cases among the traced ones, and which of them were left out of the rows.

    ``left_out``: ids of cases that were traced and have no row. CaseMismatchError for any other id.
    """
    if isinstance(wanted, CaseSet):
        ids = [case.case_id for case in wanted]
    else:
        given = as_list(wanted, "case_ids", "a list of case ids, or a CaseSet")
        ids = [as_integer(case_id, "case_ids") for case_id in given]
    twice = [case_id for case_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise DuplicateCaseError(f"case_ids has {twice[:20]} more than once; expected each case once")
    place = {case_id: position for position, case_id in enumerate(traced)}
    absent = [case_id for case_id in ids if case_id not in place and case_id not in left_out]
    if absent:
        raise CaseMismatchError(
            f"{len(absent)} of the {len(ids)} cases asked for aren't in this trace of {len(traced)} cases: "
            f"ids {absent[:20]}; .cases.case_id lists those that are"
        )
    return [place[case_id] for case_id in ids if case_id in place], {i for i in ids if i in left_out}
