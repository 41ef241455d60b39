"""Symmetric token replacement: against plain runs of the swapped prompt, and which partners there are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace.corruptions import Embedding
from moetrace.errors import ArgumentTypeError, NoPartnerError, TokenizerError
from tests.engines import oracle
from tests.engines.tiny import make_model


def fact(
    case_id: int, subject: list[int], true: int, relation: str = "P0", before: tuple = (1, 7)
) -> mt.Case:
    ids = [*before, *subject, 20 + len(relation), 21, 22]
    return mt.Case(ids, (len(before), len(before) + len(subject)), true, 90, case_id, relation)


POOL = [
    fact(0, [30, 31], 80), fact(1, [32, 33], 81), fact(2, [34, 35], 82), fact(3, [36, 37], 80),
    fact(4, [40], 83), fact(5, [41], 84), fact(6, [42, 43], 85, "P1"), fact(7, [44, 45], 86, "P1"),
]  # fmt: skip


def swapped(case: mt.Case, ids: tuple[int, ...]) -> mt.Case:
    start, stop = case.subject
    return replace(case, input_ids=(*case.input_ids[:start], *ids, *case.input_ids[stop:]))


@pytest.mark.parametrize("engine", ["tree", "reference"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3", "granitemoe"])
def test_the_corrupted_run_is_the_plain_run_of_the_other_prompt(family, engine):
    model, swap = make_model(family), mt.SwapSubject(POOL)
    found = mt.trace_layers(model, POOL, corruption=swap, engine=engine)
    for index, case in enumerate(POOL):
        other, clean = swapped(case, swap.partners(case)[0]), {}
        oracle.run(model, case, keep=clean)
        noised = oracle.run(model, other)
        assert found.cases.noised[index] == pytest.approx(noised, abs=2e-4)
        for column, layer in enumerate(found.layers):
            patched = oracle.run(model, other, patch=(layer, clean[layer][-1], -1))
            assert found.effects[index, column] == pytest.approx(patched - noised, abs=2e-4)
    assert np.abs(found.effects).max() > 1e-2


def test_partners_share_relation_and_length_and_not_the_object():
    swap = mt.SwapSubject(POOL)
    assert set(swap.partners(POOL[0])) == {(32, 33), (34, 35)}  # not its own, nor (36, 37) of the same object
    assert set(swap.partners(POOL[1])) == {(30, 31), (34, 35), (36, 37)}
    assert swap.partners(POOL[4]) == [(41,)]
    assert swap.partners(POOL[6]) == [(44, 45)]
    first_word = fact(9, [30, 31], 87, before=(1,))  # written otherwise where a prompt begins with it
    assert mt.SwapSubject([*POOL, first_word]).partners(first_word) == []


def test_partners_depend_on_case_and_subjects_alone():
    swap = mt.SwapSubject(POOL, seed=4)
    turned = mt.SwapSubject(list(reversed(POOL)), seed=4)
    assert [swap.partners(case) for case in POOL] == [turned.partners(case) for case in POOL]
    assert swap.facts() == turned.facts()
    assert swap.facts() != mt.SwapSubject(POOL[1:], seed=4).facts()
    drawn = {seed: tuple(map(tuple, mt.SwapSubject(POOL, seed).partners(POOL[1]))) for seed in range(20)}
    assert len(set(drawn.values())) > 2


def test_every_draw_is_another_partner():
    swap, embedding = mt.SwapSubject(POOL, draws=2), Embedding(torch.nn.Embedding(97, 8), 97, 8, "cpu")
    values = swap.values(POOL[1], embedding)
    assert values.shape == (2, 2, 8)
    for draw, ids in enumerate(swap.partners(POOL[1])[:2]):
        torch.testing.assert_close(values[draw], embedding.module.weight[list(ids)].detach())
    torch.testing.assert_close(swap.first_draw().values(POOL[1], embedding), values[:1])
    model = make_model("qwen3_moe")
    both = mt.trace_layers(model, POOL[1:3], corruption=swap)
    singles = [
        mt.trace_layers(
            model,
            POOL[1:3],
            corruption=lambda case, _, at=draw: model.get_input_embeddings()(
                torch.tensor(swap.partners(case)[at])
            ),
        ).effects
        for draw in range(2)
    ]
    np.testing.assert_allclose(both.effects, np.mean(singles, axis=0), atol=1e-5)


def test_cases_without_a_partner_are_named_and_can_be_left_out():
    model, lonely = make_model("qwen3_moe"), fact(50, [60, 61, 62], 70)
    swap = mt.SwapSubject([*POOL, lonely])
    with pytest.raises(NoPartnerError, match=r"1 of 9 cases .* case ids 50;.*swap\.usable"):
        mt.trace_layers(model, [*POOL, lonely], corruption=swap)
    kept = swap.usable([*POOL, lonely])
    assert [case.case_id for case in kept] == [case.case_id for case in POOL]
    assert kept.dropped["no_swap_partner"] == 1
    with pytest.raises(NoPartnerError, match="2 partners, one for each draw"):
        mt.trace_layers(model, POOL, corruption=mt.SwapSubject(POOL, draws=2))
    chosen = mt.select_cases(model, [*POOL, lonely], n=8, margin=-99, drop=-99, corruption=swap)
    assert chosen.dropped["no_swap_partner"] == 1
    assert 50 not in {case.case_id for case in chosen}


def test_records_are_tokenised_with_the_tokenizer_given_or_that_of_the_model():
    model, tokenizer = mt.load_demo()
    records = mt.demo_records()
    cases = mt.make_cases(records, tokenizer)
    by_cases = mt.SwapSubject(cases)
    some = by_cases.usable(cases)[:6]
    expected = mt.trace_layers(model, some, layers=[3], corruption=by_cases)
    named = mt.SwapSubject(records, tokenizer=tokenizer)
    assert all(named.partners(case) for case in some)
    found = mt.trace_layers(model, some, layers=[3], corruption=mt.SwapSubject(records))
    assert np.abs(found.effects).max() > 0
    np.testing.assert_allclose(
        found.effects, mt.trace_layers(model, some, layers=[3], corruption=named).effects, atol=1e-6
    )
    assert expected.effects.shape == found.effects.shape
    with pytest.raises(TokenizerError, match="tokenizer=tokenizer"):
        mt.SwapSubject(records).partners(some[0])
    with pytest.raises(TokenizerError, match="none lies beside the model"):
        mt.trace_layers(make_model("qwen3_moe"), POOL, corruption=mt.SwapSubject(records))


def test_what_is_no_pool_is_refused():
    with pytest.raises(ArgumentTypeError):
        mt.SwapSubject(POOL, seed="a")
    with pytest.raises(mt.errors.MoetraceError):
        mt.SwapSubject(3)
