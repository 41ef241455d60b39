from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moetrace.cases import Case, CaseSet
from moetrace.errors import ArgumentError, MoetraceWarning, NoCasesError, NonFiniteWarning
from moetrace.trace import select_cases as home
from moetrace.trace.select_cases import FewCasesWarning, select_cases


def case_set(n: int, n_records: int | None = None) -> CaseSet:
    """Cases of every third record, as if the others had been dropped."""
    return CaseSet(
        [Case([1, 2, 3], (0, 1), 4, 5, case_id) for case_id in range(100, 100 + n)],
        funnel={"records": 3 * n, "single_token": n},
        dropped={"no_foil": 2 * n},
        record_indices=[3 * index for index in range(n)],
        n_records=n_records or 3 * n,
    )


class Scorer:
    """Scores drawn by case id, and what was asked for."""

    def __init__(self, non_finite: Sequence[int] = ()) -> None:
        self.asked: list[int] = []
        self.options: dict[str, Any] = {}
        self.non_finite = non_finite

    def scores(self, case: Case) -> tuple[float, float]:
        if case.case_id in self.non_finite:
            return (float("nan"), 0.0) if case.case_id % 2 else (3.0, float("-inf"))
        clean, fall = np.random.default_rng(case.case_id).normal([1.5, 1.0], 1.0)
        return clean, clean - fall

    def __call__(self, model: object, cases: Sequence[Case], **options: Any) -> pd.DataFrame:
        self.asked += [case.case_id for case in cases]
        self.options = {"model": model, **options}
        rows = [(case.case_id, *self.scores(case)) for case in cases]
        return pd.DataFrame(rows[::-1], columns=["case_id", "clean", "noised"])  # in an order of its own


def one_by_one(cases: CaseSet, scorer: Scorer, n: int, margin: float, drop: float, seed: int | None) -> Any:
    """The scan as the paper words it: shuffle records, scan records until n usable cases are collected."""
    records = list(range(cases.n_records))
    if seed is not None:
        random.Random(seed).shuffle(records)
    case_of = dict(zip(cases.record_indices, cases, strict=True))
    usable: list[Case] = []
    counts = Counter(scanned=0, cases=0, finite=0, clean_margin=0, noise_drop=0)
    for record in records:
        if len(usable) == n:
            break
        counts["scanned"] += 1
        if record not in case_of:
            continue
        counts["cases"] += 1
        clean, noised = scorer.scores(case_of[record])
        if not np.isfinite([clean, noised]).all():
            continue
        counts["finite"] += 1
        if clean < margin:
            continue
        counts["clean_margin"] += 1
        if clean - noised < drop:
            continue
        counts["noise_drop"] += 1
        usable.append(case_of[record])
    return usable, dict(counts)


@pytest.mark.parametrize("seed", [0, 4, None])
@pytest.mark.parametrize(
    ("n", "margin", "drop"), [(1, 1.0, 0.5), (40, 1.0, 0.5), (60, 0.5, 0.25), (7, 3.0, 2.0)]
)
@pytest.mark.parametrize("first", [1, 5, 1000])
def test_batches_give_what_a_scan_one_by_one_gives(
    seed: int | None, n: int, margin: float, drop: float, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "FIRST_BATCH", first)
    cases, scorer = case_set(300), Scorer(non_finite=range(100, 400, 11))
    expected, counts = one_by_one(cases, scorer, n, margin, drop, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)
        warnings.simplefilter("ignore", FewCasesWarning)
        found = select_cases(None, cases, n, margin, drop, seed, progress=False, _score=scorer)
    assert list(found) == expected
    n_cases = counts.pop("cases")
    assert found.funnel == {"records": 900, "single_token": 300, **counts}
    assert found.dropped == Counter(
        no_foil=600,
        non_finite=n_cases - counts["finite"],
        clean_margin=counts["finite"] - counts["clean_margin"],
        noise_drop=counts["clean_margin"] - counts["noise_drop"],
    )
    assert found.n_records == 900
    assert [index // 3 + 100 for index in found.record_indices] == [case.case_id for case in found]


def test_it_stops_soon_after_enough_are_found() -> None:
    cases, scorer = case_set(5000), Scorer()
    found = select_cases(None, cases, n=64, progress=False, _score=scorer)
    assert len(found) == 64
    assert len(set(scorer.asked)) == len(scorer.asked) < 1.5 * found.funnel["finite"]


def everything_is_usable(model: object, cases: Sequence[Case], **_: Any) -> pd.DataFrame:
    return pd.DataFrame([(c.case_id, 9.0, 0.0) for c in cases], columns=["case_id", "clean", "noised"])


@pytest.mark.parametrize(
    ("n", "scanned"),
    [(1, 3), (2, 4), (3, 8), (4, 10)],  # 2 dropped records before the first, 1 after the last
)
def test_records_dropped_in_between_are_scanned_too(n: int, scanned: int) -> None:
    cases = CaseSet(
        [Case([1, 2, 3], (0, 1), 4, 5, i) for i in range(4)], record_indices=[2, 3, 7, 9], n_records=11
    )
    found = select_cases(None, cases, n, seed=None, progress=False, _score=everything_is_usable)
    assert [case.case_id for case in found] == list(range(n))
    assert found.funnel == {"scanned": scanned, "finite": n, "clean_margin": n, "noise_drop": n}


def test_a_scan_that_finds_too_few_has_passed_every_record() -> None:
    cases = CaseSet([Case([1, 2, 3], (0, 1), 4, 5, 0)], record_indices=[2], n_records=11)
    with pytest.warns(FewCasesWarning, match=r"only 1 of the 2 cases .* \(scanned 11, finite 1"):
        found = select_cases(None, cases, 2, progress=False, _score=everything_is_usable)
    assert found.funnel["scanned"] == 11


def test_in_an_order_of_their_own_the_cases_alone_are_counted() -> None:
    cases = case_set(40).take([7, 3, 31, 2])
    found = select_cases(None, cases, 2, seed=None, progress=False, _score=everything_is_usable)
    assert [case.case_id for case in found] == [107, 103]
    assert found.funnel["scanned"] == 2


def test_thresholds_themselves_are_usable() -> None:
    table = {100: (1.0, 0.5), 101: (0.999, -5.0), 102: (9.0, 8.501), 103: (2.0, 1.5)}

    def scorer(model: object, cases: Sequence[Case], **_: Any) -> pd.DataFrame:
        return pd.DataFrame(
            [(c.case_id, *table[c.case_id]) for c in cases], columns=["case_id", "clean", "noised"]
        )

    found = select_cases(None, case_set(4), n=2, seed=None, progress=False, _score=scorer)
    assert [case.case_id for case in found] == [100, 103]


def test_what_is_passed_on() -> None:
    scorer = Scorer()
    select_cases(
        "model", case_set(50), 2, noise="noise", batch_tokens=64, engine="tree", progress=False,
        compute_dtype="float32", _score=scorer,
    )  # fmt: skip
    assert scorer.options == {
        "model": "model", "noise": "noise", "batch_tokens": 64, "engine": "tree", "compute_dtype": "float32",
        "corruption": None,
    }  # fmt: skip


def test_the_engines_score_where_no_scorer_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer()
    monkeypatch.setattr(home, "score_cases", scorer)
    found = select_cases("model", case_set(50), n=2, progress=False)
    assert len(found) == 2
    assert scorer.options == {
        "model": "model", "noise": None, "batch_tokens": "auto", "engine": "auto", "compute_dtype": None,
        "corruption": None,
    }  # fmt: skip


def test_progress_tells_of_usable_cases() -> None:
    calls: list[tuple[int, int]] = []
    select_cases(None, case_set(300), n=40, progress=lambda *call: calls.append(call), _score=Scorer())
    assert calls[-1] == (40, 40)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_too_few_usable_cases_are_returned_with_a_warning() -> None:
    assert issubclass(FewCasesWarning, MoetraceWarning)
    with pytest.warns(
        FewCasesWarning, match=r"of the 256 cases asked for are usable \(records 90, .*scanned 90"
    ):
        found = select_cases(None, case_set(30), progress=False, _score=Scorer())
    assert 0 < len(found) < 30
    assert found.funnel["scanned"] == 90


def test_cases_that_are_not_finite_are_named() -> None:
    with pytest.warns(NonFiniteWarning, match=r"2 of \d+ scanned cases gave NaN.*case ids 10[36], 10[36]"):
        found = select_cases(
            None,
            case_set(30),
            n=28,
            margin=-99,
            drop=-99,
            progress=False,
            _score=Scorer(non_finite=[103, 106]),
        )
    assert found.dropped["non_finite"] == 2
    assert {103, 106}.isdisjoint(case.case_id for case in found)


def test_a_plain_list_of_cases() -> None:
    cases = list(case_set(40))
    found = select_cases(None, cases, n=5, seed=None, progress=False, _score=Scorer())
    assert [case.case_id for case in found] == sorted(case.case_id for case in found)
    assert list(found.funnel) == ["scanned", "finite", "clean_margin", "noise_drop"]


def test_bad_arguments() -> None:
    with pytest.raises(NoCasesError, match=r"no cases to select from \(CaseSet\(0 cases: records 4"):
        select_cases(None, CaseSet([], {"records": 4}), progress=False, _score=Scorer())
    with pytest.raises(ArgumentError, match="n is 0; expected an integer of at least 1"):
        select_cases(None, case_set(3), n=0, progress=False, _score=Scorer())
    for name in ("margin", "drop"):
        with pytest.raises(ArgumentError, match=f"{name} is nan; expected a finite number"):
            select_cases(None, case_set(3), progress=False, _score=Scorer(), **{name: float("nan")})
