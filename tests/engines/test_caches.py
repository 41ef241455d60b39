"""What is kept about a model is true for the weights and hooks that it was measured with, and no others."""

from __future__ import annotations

import copy

import pytest
import torch

from moetrace.corruptions import embedding_std
from moetrace.engines import engine_choice, tree
from moetrace.engines.job import Patch, make_job
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.experts import block_scale
from moetrace.models.state import prepared
from tests.engines.tiny import make_cases, make_model


@pytest.fixture
def model():
    return make_model("deepseek_v3")


def edit(weight):
    with torch.no_grad():
        weight.mul_(1.25)


def edit_data(weight):
    weight.data.mul_(1.25)


def replace_data(weight):
    weight.data = weight.data * 1.25


EDITS = [edit, edit_data, replace_data]


def load(module, assign):
    state = {name: value * 1.25 for name, value in copy.deepcopy(module.state_dict()).items()}
    module.load_state_dict(state, assign=assign)


def changes(module, weight):
    """Every way in which a module becomes another, each with its undoing or None."""
    for change in EDITS:
        yield change.__name__, lambda change=change: change(weight())
    for assign in (False, True):
        yield f"load_state_dict, assign={assign}", lambda assign=assign: load(module, assign)
    yield "forward hook", lambda: module.register_forward_hook(lambda *_: None)
    yield "pre-hook", lambda: module.register_forward_pre_hook(lambda *_: None)
    old = module.forward
    yield "forward", lambda: setattr(module, "forward", lambda *a, **k: old(*a, **k))


def test_the_noise_scale_follows_the_embedding(model):
    embedding = find_anatomy(model).embedding
    count = [0]

    def std():
        before = count[0]
        found = embedding_std(embedding, 97, torch.device("cpu"))
        return found, count[0] - before

    old = torch.nn.Embedding.forward

    def counting(self, ids):
        count[0] += 1
        return old(self, ids)

    embedding.__class__ = type("Counting", (type(embedding),), {"forward": counting})
    assert std() == (pytest.approx(float(embedding.weight.detach().std())), 1)
    for name, change in changes(embedding, lambda: embedding.weight):
        assert std()[1] == 0, name  # known
        change()
        assert std() == (pytest.approx(float(embedding.weight.detach().double().std())), 1), name
    with torch.no_grad():
        embedding.weight.data[41, 3] += 100.0  # a single entry
    assert std() == (pytest.approx(float(embedding.weight.detach().double().std())), 1)
    embedding.register_forward_hook(lambda _m, _a, output: 3 * output)
    assert std() == (pytest.approx(3 * float(embedding.weight.detach().double().std())), 1)


def test_a_verdict_is_of_the_model_as_it_was(model, monkeypatch):
    count = [0]
    old = engine_choice._examine

    def counting(*args):
        count[0] += 1
        return old(*args)

    monkeypatch.setattr(engine_choice, "_examine", counting)
    cases = make_cases(2)

    def examined():
        before = count[0]
        with prepared(model):
            engine_choice.choose_engine(make_job(find_anatomy(model), [Patch.block(2)], None), cases)
        return count[0] - before

    assert examined() == 1
    layer = model.model.layers[2]
    for name, change in changes(layer, lambda: layer.mlp.experts.down_proj):
        assert examined() == 0, name
        change()
        assert examined() == 1, name


def test_a_verdict_sees_a_hook_that_mixes_rows(model):
    """The tree served the model; a hook that counts its rows makes the tree's numbers wrong."""
    cases = make_cases(2)

    def choice():
        with prepared(model):
            return engine_choice.choose_engine(make_job(find_anatomy(model), [Patch.block(2)], None), cases)

    assert choice().engine.name == "tree"
    handle = model.model.layers[3].mlp.register_forward_hook(lambda _m, _a, out: out + 0.1 * out.shape[1])
    assert choice().engine.name == "reference"
    handle.remove()
    assert choice().engine.name == "tree"


def test_a_blocks_scale_is_measured_anew(model):
    site = find_anatomy(model).site(2)
    hidden, count = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)), [0]
    kind = type(site.experts)

    def counting(self, *args):
        count[0] += 1
        return kind.forward(self, *args)

    site.experts.__class__ = type("Counting", (kind,), {"forward": counting})

    def scale():
        before = count[0]
        with torch.no_grad():
            found = block_scale(site, hidden)
        return found, count[0] > before

    assert scale() == (pytest.approx(1.0, rel=1e-5), True)  # routed_scaling_factor is in the weights
    for name, change in changes(site.block, lambda: site.experts.down_proj):
        assert scale()[1] is False, name
        change()
        assert scale()[1] is True, name
    site.block.register_forward_hook(lambda _m, _a, output: 3 * output)
    assert scale() == (pytest.approx(3.0, rel=1e-5), True)


@pytest.mark.parametrize("kind", ["weights", "hooks"])
def test_the_fused_routine_is_compared_anew(kind, monkeypatch):
    monkeypatch.setattr(tree, "FUSED_FROM", 1)
    model, cases = make_model("qwen3_moe"), make_cases(3)
    module, seen = model.model.layers[1].mlp.experts, []
    own = type(module)

    def watched(self, hidden, index, weights):
        seen.append(len(hidden))
        return own.forward(self, hidden, index, weights)

    module.__class__ = type("Watched", (own,), {"forward": watched})

    def rows():
        seen.clear()
        with prepared(model):
            TreeEngine(make_job(find_anatomy(model), [Patch.block(0)], None)).run(cases)
        assert len(seen) == 1
        return seen[0]

    first, later = rows(), rows()
    assert later == tree.LATER_CHECK < first
    for name, change in changes(module, lambda: module.down_proj):
        hook = "hook" in name or name == "forward"
        if hook != (kind == "hooks"):
            continue
        assert kind == "hooks" or rows() == later, name
        change()
        # With a hook of its user's the module computes all rows itself.
        assert rows() > later if kind == "hooks" else rows() == first, name
