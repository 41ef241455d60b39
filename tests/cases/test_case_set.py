from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetrace.cases import Case, CaseSet
from moetrace.errors import ArgumentError, CaseError, DuplicateCaseError


def a_case(case_id: int, relation_id: str = "P1") -> Case:
    return Case([case_id % 7, 1, 2], (0, 1), 3, 4, case_id, relation_id, f"prompt {case_id}")


def a_set(n: int, **options: object) -> CaseSet:
    return CaseSet([a_case(case_id) for case_id in range(n)], **options)


def test_it_is_a_sequence_whose_slices_are_case_sets() -> None:
    cases = CaseSet(
        [a_case(i) for i in (5, 3, 8)],
        {"records": 9, "x": 3},
        {"why": 6},
        record_indices=[4, 2, 7],
        n_records=9,
    )
    assert [case.case_id for case in cases] == [5, 3, 8]
    assert cases[-1].case_id == 8
    tail = cases[1:]
    assert isinstance(tail, CaseSet)
    assert tail.record_indices == (2, 7)
    assert (tail.n_records, tail.funnel, tail.dropped) == (9, {"records": 9, "x": 3}, Counter(why=6))
    assert a_case(3) in cases
    assert a_case(4) not in cases


def test_it_cannot_be_changed() -> None:
    cases = a_set(3, funnel={"records": 3}, dropped={"why": 1})
    cases.funnel["records"] = 99
    cases.dropped["why"] = 99
    assert (cases.funnel, cases.dropped) == ({"records": 3}, Counter(why=1))
    with pytest.raises(TypeError):
        cases[0] = a_case(1)
    with pytest.raises(AttributeError):
        cases.n_records = 5


def test_equality_and_pickling() -> None:
    assert a_set(3) == a_set(3)
    assert a_set(3) != a_set(2)
    assert a_set(3) != list(a_set(3))
    assert hash(a_set(3)) == hash(a_set(3))
    twin = pickle.loads(pickle.dumps(a_set(3, dropped={"why": 2}, n_records=8)))
    assert (twin, twin.dropped, twin.n_records) == (a_set(3), Counter(why=2), 8)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(DuplicateCaseError, match="case id 1 appears twice"):
        CaseSet([a_case(1), a_case(2), a_case(1)])


@pytest.mark.parametrize(
    ("cases", "options", "message"),
    [
        ([a_case(1), {"case_id": 2}], {}, "item 1 is a dict; expected a moetrace.Case"),
        ([a_case(1)], {"record_indices": [0, 1]}, "2 record indices"),
        ([a_case(1)], {"record_indices": [5], "n_records": 5}, "below n_records"),
    ],
)
def test_what_does_not_fit_is_refused(cases: list[object], options: dict[str, object], message: str) -> None:
    with pytest.raises(CaseError, match=message):
        CaseSet(cases, **options)


@given(st.integers(0, 60), st.integers(0, 5), st.floats(0.05, 0.95))
def test_a_split_is_the_seeded_shuffle_cut_in_two(n: int, seed: int, fraction: float) -> None:
    cases = a_set(n)
    discovery, validation = cases.split(seed, fraction)
    shuffled = list(cases)
    random.Random(seed).shuffle(shuffled)
    assert list(discovery) + list(validation) == shuffled
    assert len(discovery) == round(n * fraction)


@given(st.integers(0, 60), st.integers(0, 5), st.floats(0.05, 0.95))
def test_a_split_in_scan_order_cuts_the_cases_as_they_stand(n: int, seed: int, fraction: float) -> None:
    cases = a_set(n)[::-1]
    discovery, validation = cases.split(seed, fraction, order="scan")
    assert list(discovery) + list(validation) == list(cases)
    assert len(discovery) == round(n * fraction)


def test_an_unknown_order_is_refused_with_both_that_there_are() -> None:
    with pytest.raises(ArgumentError, match="order is 'record'; expected 'shuffle' or 'scan'"):
        a_set(4).split(order="record")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ArgumentError, match="strictly between 0 and 1"):
        a_set(4).split(fraction=fraction)


def test_record_order_shuffles_all_records_and_not_just_the_cases_left() -> None:
    kept = [4, 17, 30, 33, 71]
    cases = CaseSet([a_case(i) for i in kept], record_indices=kept, n_records=100)
    order = list(range(100))
    random.Random(3).shuffle(order)
    expected = [index for index in order if index in kept]
    assert [cases[place].case_id for place in cases.record_order(seed=3)] == expected
    assert cases.record_order(seed=None) == [0, 1, 2, 3, 4]


def test_the_rank_of_a_case_is_the_place_of_its_record_among_all() -> None:
    kept = [4, 17, 30, 33, 71]
    cases = CaseSet([a_case(i) for i in kept], record_indices=kept, n_records=100)
    order = list(range(100))
    random.Random(3).shuffle(order)
    assert [order[rank] for rank in cases.record_ranks(seed=3)] == kept
    assert cases.record_ranks(seed=None) == kept
    assert cases[::-1].record_ranks(seed=None) == [0, 1, 2, 3, 4]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=60), st.integers(2, 5), st.integers(0, 3))
def test_folds_hold_every_group_out_whole_and_once(letters: list[str], k: int, seed: int) -> None:
    cases = CaseSet([a_case(i, letter) for i, letter in enumerate(letters)])
    groups = Counter(letters)
    if len(groups) < k:
        with pytest.raises(ArgumentError, match=f"at most {len(groups)}, the number of groups"):
            cases.folds(k=k, seed=seed)
        return
    folds = cases.folds(k=k, seed=seed)
    assert folds == cases.folds(k=k, seed=seed)
    assert len(folds) == k
    assert sorted(case.case_id for _, out in folds for case in out) == list(range(len(letters)))
    for rest, out in folds:
        assert len(out) > 0
        assert {case.relation_id for case in rest}.isdisjoint(case.relation_id for case in out)
        assert sorted([*rest, *out], key=lambda case: case.case_id) == list(cases)
        assert [case.case_id for case in out] == sorted(case.case_id for case in out)
    sizes = [len(out) for _, out in folds]
    assert max(sizes) - min(sizes) <= max(groups.values())


@pytest.mark.parametrize("seed", range(10))
def test_large_groups_are_dealt_first_so_that_folds_come_out_even(seed: int) -> None:
    letters = "".join(letter * size for letter, size in zip("abcdef", (1, 2, 3, 4, 5, 6), strict=True))
    cases = CaseSet([a_case(i, letter) for i, letter in enumerate(letters)])
    assert [len(out) for _, out in cases.folds(k=3, seed=seed)] == [7, 7, 7]


def test_folds_by_another_attribute_or_a_function_and_other_seeds() -> None:
    cases = a_set(20)
    folds = cases.folds(by=lambda case: case.case_id // 4, k=5, seed=1)
    assert {tuple(sorted(case.case_id for case in out)) for _, out in folds} == {
        tuple(range(i, i + 4)) for i in range(0, 20, 4)
    }
    one, other = (cases.folds(by="case_id", k=4, seed=seed) for seed in (0, 1))
    assert [out for _, out in one] != [out for _, out in other]
    with pytest.raises(ArgumentError, match="by is 'relation'"):
        cases.folds(by="relation")
    with pytest.raises(ArgumentError, match="k is 1"):
        cases.folds(by="case_id", k=1)


def test_the_fingerprint_tells_content_and_order() -> None:
    cases = a_set(4)
    assert cases.fingerprint() == a_set(4, funnel={"records": 9}, n_records=12).fingerprint()
    others = [cases[:3], cases[::-1], CaseSet([*cases[:3], a_case(3, "P2")])]
    assert len({cases.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    assert len(cases.fingerprint()) == 64


def test_the_frame_has_a_row_for_each_case() -> None:
    frame = CaseSet([a_case(5, "P7"), a_case(2)], record_indices=[9, 4]).frame()
    assert frame.to_dict("records")[0] == {
        "case_id": 5,
        "relation_id": "P7",
        "prompt": "prompt 5",
        "n_tokens": 3,
        "subject_start": 0,
        "subject_stop": 1,
        "true_id": 3,
        "foil_id": 4,
        "record_index": 9,
    }
    assert len(frame) == 2
    assert list(CaseSet([]).frame().columns) == list(frame.columns)


def test_objects_as_text_are_shown_where_they_are_known_and_decide_nothing() -> None:
    told = CaseSet([Case([1, 2], (0, 1), 3, 4, 0, true="Paris", foil="<b>Rome")])
    plain = CaseSet([Case([1, 2], (0, 1), 3, 4, 0)])
    assert told == plain
    assert hash(told) == hash(plain)
    assert told.fingerprint() == plain.fingerprint()
    assert told.frame()[["true", "foil"]].values.tolist() == [["Paris", "<b>Rome"]]
    assert "true" not in plain.frame()
    html = told._repr_html_()
    assert "Paris" in html
    assert "&lt;b&gt;Rome" in html
    assert "true_id" not in html
    assert "true_id" in plain._repr_html_()


def test_how_it_shows_itself() -> None:
    cases = CaseSet([Case([1, 2], (0, 1), 3, 4, 0, prompt="<b>R&D</b>")], {"records": 1234}, {"why": 2})
    assert repr(cases) == "CaseSet(1 cases: records 1,234)"
    html = cases._repr_html_()
    assert "<b>R&D</b>" not in html
    assert "&lt;b&gt;R&amp;D" in html
    assert "1,234" in html
    assert "why" in html
    assert "0 cases" in CaseSet([])._repr_html_()


def test_reading_cases_imports_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util, pathlib, types\n"
        "top = types.ModuleType('moetrace')\n"
        "top.__path__ = importlib.util.find_spec('moetrace').submodule_search_locations\n"
        "sys.modules['moetrace'] = top\n"
        "import moetrace.cases\n"
        "moetrace.cases.load_records([dict(prompt='{} is', subject='a', target_true='b', target_new='c')])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))}
    )
