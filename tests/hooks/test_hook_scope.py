"""Hooks on a user's model: armed in order, removed in reverse, and gone whatever happened."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.job import Patch, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.tiny import make_cases, make_model


class Handle:
    """A handle that says when it is removed, and fails to be where it is told to."""

    def __init__(self, log, name, failure=None):
        self.log, self.name, self.failure = log, name, failure

    def remove(self):
        self.log.append(f"remove {self.name}")
        if self.failure:
            raise self.failure


class Module:
    """What a scope needs of a module: it logs who arms what."""

    def __init__(self, log, name, failure=None):
        self.log, self.name, self.failure = log, name, failure

    def _register(self, kind, with_kwargs):
        assert with_kwargs
        self.log.append(f"arm {kind} {self.name}")
        return Handle(self.log, f"{kind} {self.name}", self.failure)

    def register_forward_hook(self, _function, with_kwargs):
        return self._register("behind", with_kwargs)

    def register_forward_pre_hook(self, _function, with_kwargs):
        return self._register("before", with_kwargs)


ARMED = ["arm before a", "arm behind b", "arm behind a"]
REMOVED = ["remove behind a", "remove behind b", "remove before a"]


def arm(scope, first, second):
    scope.before(first, print)
    scope.behind(second, print)
    scope.behind(first, print)


def test_armed_in_order_and_removed_in_reverse():
    log = []
    with _core.HookScope() as scope:
        arm(scope, Module(log, "a"), Module(log, "b"))
        assert log == ARMED
    assert log == ARMED + REMOVED


def test_closed_twice_removes_once():
    log = []
    scope = _core.HookScope()
    scope.close()
    arm(scope, Module(log, "a"), Module(log, "b"))
    scope.close()
    scope.close()
    assert log == ARMED + REMOVED


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit()])
def test_removed_after_what_ends_the_scope(failure):
    log = []

    def leave():
        with _core.HookScope() as scope:
            arm(scope, Module(log, "a"), Module(log, "b"))
            raise failure

    with pytest.raises(type(failure)) as caught:
        leave()
    assert caught.value is failure
    assert log == ARMED + REMOVED


def test_a_hook_that_cannot_be_removed_does_not_keep_the_others():
    log = []
    scope = _core.HookScope()
    arm(scope, Module(log, "a"), Module(log, "b", ValueError("stuck")))
    with pytest.raises(ValueError, match="stuck"):
        scope.close()
    assert log == ARMED + REMOVED
    scope.close()
    assert log == ARMED + REMOVED


def test_what_cannot_be_armed_leaves_nothing_behind():
    module, log = nn.Linear(2, 2), []

    def arm_both():
        with _core.HookScope() as scope:
            scope.before(module, lambda *_: log.append("before"))
            scope.behind(object(), print)

    with pytest.raises(AttributeError):
        arm_both()
    assert not module._forward_pre_hooks
    module(torch.zeros(1, 2))
    assert log == []


def hooks_of(model):
    return {
        name: (tuple(module._forward_pre_hooks.items()), tuple(module._forward_hooks.items()))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["hook", "forward"])
@pytest.mark.parametrize("join", _core.Join)
def test_a_pass_that_fails_leaves_the_users_hooks_and_no_others(failure, where, join, monkeypatch):
    model, log = make_model("qwen3_moe"), []
    block, experts = model.model.layers[1].mlp, model.model.layers[2].mlp.experts
    block.register_forward_pre_hook(lambda *_: log.append("first"))
    block.register_forward_hook(lambda *_: log.append("third"))
    block.register_forward_pre_hook(lambda *_: log.append("second"))
    before = hooks_of(model)
    with prepared(model):
        engine = TreeEngine(make_job(find_anatomy(model), [Patch.block(1), Patch.block(3)], None), join)
        engine.run(make_cases(2))
        assert log == ["first", "second", "third"]
        assert hooks_of(model) == before

        def fail(*_args, **_kwargs):
            assert hooks_of(model) != before  # the trace's own are there
            raise failure

        if where == "hook":
            handle = experts.register_forward_pre_hook(fail)
        else:
            monkeypatch.setattr(experts, "forward", fail)
        with pytest.raises(type(failure)) as caught:
            engine.run(make_cases(2))
        assert caught.value is failure
        if where == "hook":
            handle.remove()
    assert hooks_of(model) == before


ENGINES = [*(pytest.param(join, id=f"tree-{join.name}") for join in _core.Join), None]


def run(model, join):
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(1), Patch.block(2)], None)
        return (ReferenceEngine(job) if join is None else TreeEngine(job, join)).run(make_cases(2))


def broken(model, forward):
    """The block of layer 1 with another forward, which is given the old one."""
    block = model.model.layers[1].mlp
    old = block.forward
    block.forward = lambda *args, **kwargs: forward(old, *args, **kwargs)


REMEDY = "remove hooks and wrappers"


@pytest.mark.parametrize("join", ENGINES)
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda value: value[:, 1:], r"tensor of shape \(\d+, \d+, 32\)"),
        (lambda value: {"hidden": value}, "a dict"),
    ],
)
def test_another_shape_is_a_hook_error_that_names_the_module(join, change, found):
    model = make_model("qwen3_moe")
    broken(model, lambda old, hidden: change(old(hidden)))
    with pytest.raises(mt.errors.HookError, match=found) as caught:
        run(model, join)
    assert "(module model.layers.1.mlp)" in str(caught.value)
    assert REMEDY in str(caught.value)


@pytest.mark.parametrize("join", ENGINES)
def test_a_site_that_is_never_called_is_a_hook_error(join):
    model = make_model("qwen3_moe")
    layer = model.model.layers[1]

    def forward(hidden_states, **_kwargs):
        return hidden_states + 1.0

    layer.forward = forward
    with pytest.raises(mt.errors.HookError, match=r"layers? \[?1\]?") as caught:
        run(model, join)
    assert "never" in str(caught.value)
    assert "model.layers.1.mlp" in str(caught.value)
    assert REMEDY in str(caught.value)


@pytest.mark.parametrize("join", ENGINES)
def test_a_site_that_is_called_twice_is_a_hook_error(join):
    model = make_model("qwen3_moe")
    layer = model.model.layers[1]
    old = layer.forward

    def forward(hidden_states, **kwargs):
        layer.mlp(layer.post_attention_layernorm(hidden_states))
        return old(hidden_states, **kwargs)

    layer.forward = forward
    with pytest.raises(mt.errors.HookError, match="layer 1") as caught:
        run(model, join)
    assert "repeatedly" in str(caught.value)
    assert "model.layers.1.mlp" in str(caught.value)
    assert REMEDY in str(caught.value)


@pytest.mark.parametrize("join", _core.Join)
def test_an_embedding_that_gives_other_rows_is_a_hook_error(join):
    model = make_model("qwen3_moe")
    embedding = model.model.embed_tokens
    old = embedding.forward
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(1)], None)
        embedding.forward = lambda ids: old(ids)[:, 1:]
        with pytest.raises(mt.errors.HookError, match=r"module model.embed_tokens") as caught:
            TreeEngine(job, join).run(make_cases(2))
    assert "rows of hidden states" in str(caught.value)


def test_a_trace_says_the_same():
    """A layer that copes with a block of fewer rows: the model itself runs."""
    model = make_model("qwen3_moe")
    layer = model.model.layers[1]

    def forward(hidden_states, **kwargs):
        hidden_states = (
            hidden_states + layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)[0]
        )
        output = layer.mlp(layer.post_attention_layernorm(hidden_states))
        return hidden_states + torch.cat([torch.zeros_like(hidden_states[:, :1]), output], dim=1)

    broken(model, lambda old, hidden: old(hidden)[:, 1:])
    layer.forward = forward
    for engine in ("auto", "reference"):
        with pytest.raises(mt.errors.HookError, match=r"module model\.layers\.1\.mlp"):
            mt.trace_layers(model, make_cases(2), layers=[0, 1, 2], engine=engine)
