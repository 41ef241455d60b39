"""Compiled hook sites against numpy, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moetrace._native import _core


@pytest.fixture
def value():
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def index(*rows):
    return torch.tensor(rows, dtype=torch.long)


@pytest.mark.parametrize("shape", [(2, 5, 3), (10, 3)])
def test_overwrite_rows(value, shape):
    site = _core.OverwriteRows("block", 10, index(4, 9), index(1, 6))
    before = value.clone()
    found = site.fire(value.reshape(shape))
    expected = before.numpy().reshape(10, 3).copy()
    expected[[4, 9]] = expected[[1, 6]]
    assert found.shape == shape
    np.testing.assert_array_equal(found.numpy().reshape(10, 3), expected)
    torch.testing.assert_close(value, before, rtol=0, atol=0)  # the model's own value is never written to
    assert site.fired == 1


def test_a_tuple_keeps_its_other_items(value):
    site = _core.OverwriteRows("block", 10, index(0), index(1))
    extra = object()
    hidden, other = site(None, (), (value, extra))
    assert other is extra
    assert torch.equal(hidden[0, 0], value[0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_rows_adds_in_float32(value, dtype):
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    found = _core.AddRows("noise", 10, index(2, 7), noise).fire(value.to(dtype))
    expected = value.to(dtype).reshape(10, 3).clone()
    expected[[2, 7]] = (expected[[2, 7]].float() + noise).to(dtype)
    assert torch.equal(found.reshape(10, 3), expected)


def test_grow_and_gather_rows(value):
    sources = torch.tensor([[4, 0], [3, 3]])
    grown = _core.GrowRows("born", sources).fire(value)
    expected = np.concatenate(
        [value.numpy(), np.stack([value[b, sources[b]].numpy() for b in range(2)])], axis=1
    )
    np.testing.assert_array_equal(grown.numpy(), expected)
    flat = _core.gather_rows(torch.arange(10).reshape(2, 5), sources)
    assert flat.tolist() == [[4, 0], [8, 8]]


def born_site():
    sources = torch.tensor([[4, 0, 4], [3, 3, 2]])
    # new rows 1 and 3 of the batch go on from rows 0 and 8 of the value
    return _core.BirthRows("born behind", sources, index(1, 3), index(0, 8)), sources


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_birth_rows(value, dtype):
    generator = torch.Generator().manual_seed(2)
    stream = value.to(dtype)
    block = torch.randn(10, 3, generator=generator).to(dtype)  # as flat as some blocks leave it
    own = torch.randn(2, 3, generator=generator).to(dtype)
    output = stream + block.reshape(2, 5, 3)
    site, sources = born_site()
    site.tell(stream, block, own)
    assert site.adds_up(output)
    found = site.fire(output)
    copies = np.stack([output[b, sources[b]].float().numpy() for b in range(2)]).reshape(6, 3)
    copies[[1, 3]] = (stream.reshape(10, 3)[[0, 8]] + own).float().numpy()
    expected = np.concatenate([output.float().numpy(), copies.reshape(2, 3, 3)], axis=1)
    np.testing.assert_array_equal(found.float().numpy(), expected)
    assert found.dtype == dtype


def test_birth_rows_see_what_does_not_add_up(value):
    site, _ = born_site()
    block = torch.ones(2, 5, 3)
    with pytest.raises(RuntimeError, match="born behind: the stream must be told"):
        site.fire(value)
    site.tell(value, block, torch.zeros(2, 3))
    output = value + block
    assert not site.adds_up(value + 1.5 * block)
    assert not site.adds_up(output.bfloat16())
    assert not site.adds_up(output * float("nan"))
    assert site.adds_up(output)
    with pytest.raises(RuntimeError, match="born behind: one block output for each written row"):
        site.tell(value, block, torch.zeros(3, 3))
    with pytest.raises(RuntimeError, match=r"born behind: expected hidden states of \(batch, rows, width\)"):
        site.fire(output.reshape(10, 3))


def test_the_table_names_sites_that_did_not_fire_once(value):
    table = _core.HookTable()
    silent, busy, good = (
        _core.GrowRows(name, torch.tensor([[0], [0]])) for name in ("silent", "busy", "good")
    )
    for site in (silent, busy, good):
        table.add(site)
    busy.fire(value)
    busy.fire(value)
    good.fire(value)
    with pytest.raises(RuntimeError, match=r"never fired: silent; fired repeatedly: busy \(2 times\)"):
        table.check_fired()
    table.reset()
    assert [site.fired for site in (silent, busy, good)] == [0, 0, 0]
    for site in (silent, busy, good):
        site.fire(value)
    table.check_fired()
    assert len(table) == 3


def test_shapes_that_do_not_fit_are_named(value):
    with pytest.raises(RuntimeError, match=r"block: expected 11 rows .* shape \(2, 5, 3\)"):
        _core.OverwriteRows("block", 11, index(0), index(1)).fire(value)
    with pytest.raises(Exception, match="as many rows"):
        _core.OverwriteRows("block", 10, index(0, 1), index(1))
    with pytest.raises(Exception, match="one vector for each row"):
        _core.AddRows("noise", 10, index(0, 1), torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="same batch"):
        _core.gather_rows(value, torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="not null"):
        _core.HookTable().add(None)
