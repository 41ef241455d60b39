"""Forwards of one model side by side: all pass through a decoder layer before the next one is touched.

Each piece of code that calls the model runs in a greenlet of its own, which stands still whenever the model
is about to enter a layer. So a layer's weights are read once for all of them, however many batches, checks
and plain forwards there are, and the code in them is the same that runs alone. A greenlet isn't a thread:
one runs at a time, where it was told to, and products use the same worker threads throughout.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from moetrace.models.float32 import held_wide
from moetrace.weights.heap import give_back_freed

if TYPE_CHECKING:
    from moetrace.models.anatomy import Anatomy
    from moetrace.weights import LayerSource

_REGISTRIES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_running: contextvars.ContextVar[Lockstep | None] = contextvars.ContextVar("moetrace_lockstep", default=None)


def gather(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call functions, side by side where this code runs in lockstep, else one after another."""
    lockstep = _running.get()
    return [function() for function in functions] if lockstep is None else lockstep.gather(functions)


class _Task:
    """A function that may call the model, and how far it is."""

    def __init__(self, function: Callable[[], Any], lockstep: Lockstep, parent: _Task | None) -> None:
        self.parent, self.children = parent, list[_Task]()
        self.hooks: list[tuple[dict[int, Any], list[tuple[int, Any]]]] = []
        self.result: Any = None
        self.failure: Exception | None = None
        self._function = function
        self.greenlet = greenlet(self._run, lockstep.scheduler)
        context = contextvars.copy_context()
        context.run(_running.set, lockstep)
        self.greenlet.gr_context = context

    def _run(self) -> None:
        try:
            self.result = self._function()
        except Exception as failure:
            self.failure = failure


class Lockstep:
    """Runs functions side by side, layer by layer.

    ``source``: where layers' weights come from; None where they are in memory. ``passed``: called with the
    number of a layer when all have passed it.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        source: LayerSource | None = None,
        passed: Callable[[int], None] = lambda layer: None,
    ) -> None:
        self._model, self._layers = anatomy.model, anatomy.layers
        self._source, self._passed = source, passed
        # The first two of a module's registries hold its hooks, the others say of them how they are called.
        self._registries = [
            cast("dict[int, Any]", getattr(module, name))
            for module in anatomy.model.modules()
            for name in _REGISTRIES
        ]
        self._own = {id(own): list(own.items()) for own in self._registries if own}  # the model's hooks
        self.scheduler = getcurrent()
        self._current: _Task | None = None
        self._ready: deque[_Task] = deque()
        self._standing: list[tuple[int, _Task]] = []
        self._begun = False
        self.sweeps = 0

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """What the functions return, in their order. The first failure ends all of them, and is raised."""
        self.scheduler = getcurrent()
        tasks = [_Task(function, self, None) for function in functions]
        self._ready.extend(tasks)
        with self._stopping_at_layers():
            try:
                self._begin()  # the first layer is read while tasks come to it
                self._loop()
            finally:
                try:
                    self._end(tasks)
                finally:
                    self._leave_off()
        return [task.result for task in tasks]

    def gather(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """The same, called by one of the functions that run. They run under the hooks that it has hung."""
        task = self._current
        assert task is not None
        children = [_Task(function, self, task) for function in functions]
        if children:
            task.children = children
            self._ready.extend(children)
            self._wait()
            task.children = []
        failure = next((child.failure for child in children if child.failure is not None), None)
        if failure is not None:
            raise failure
        return [child.result for child in children]

    def _wait(self) -> None:
        """Give way to the scheduler until it comes back."""
        self.scheduler.switch()

    def _loop(self) -> None:
        while self._ready or self._standing:
            while self._ready:
                self._resume(self._ready.popleft())
            if self._standing:
                self._sweep()

    def _sweep(self) -> None:
        """From the lowest layer that anyone waits for up to the last."""
        self._begin()
        self.sweeps += 1
        try:
            reached = 0
            while waited := [layer for layer, _ in self._standing if layer >= reached]:
                reached = min(waited)
                self._pass(reached)
        finally:
            self._leave_off()

    def _begin(self) -> None:
        if self._source is not None and not self._begun:
            self._source.begin()
            self._begun = True

    def _leave_off(self) -> None:
        if self._source is not None and self._begun:
            self._begun = False
            self._source.end()
            give_back_freed()

    def _pass(self, layer: int) -> None:
        """Let everyone who stands at a layer go through it."""
        here = [task for where, task in self._standing if where == layer]
        self._standing = [(where, task) for where, task in self._standing if where != layer]
        if self._source is not None:
            self._source.enter(layer)
        try:
            with held_wide(self._model, self._layers[layer]):
                self._ready.extendleft(reversed(here))
                while self._ready:
                    self._resume(self._ready.popleft())
        finally:
            if self._source is not None:
                self._source.leave(layer)
        self._passed(layer)

    def _resume(self, task: _Task) -> None:
        self._switch(task)
        if not task.greenlet.dead:
            return
        parent = task.parent
        if parent is None:
            if task.failure is not None:
                raise task.failure
        elif task.failure is not None:
            self._end([child for child in parent.children if child is not task])
            self._ready.append(parent)
        elif all(child.greenlet.dead for child in parent.children):
            self._ready.append(parent)

    def _switch(self, task: _Task, *thrown: Any) -> None:
        """Run a task with its own hooks on the model, until it waits or ends."""
        before, self._current = self._current, task
        if task.parent is not None and not task.greenlet:  # it begins
            task.hooks = task.parent.hooks
        self._put_on(task.hooks)
        try:
            if thrown:
                task.greenlet.throw(*thrown)
            else:
                task.greenlet.switch()
        finally:
            task.hooks = self._take_off()
            self._current = before

    def _end(self, tasks: Sequence[_Task]) -> None:
        """Stop tasks where they stand; what they hold open is closed."""
        for task in tasks:
            self._end(task.children)
            self._standing = [(where, own) for where, own in self._standing if own is not task]
            if task in self._ready:
                self._ready.remove(task)
            if task.greenlet and not task.greenlet.dead:
                self._switch(task, GreenletExit)

    def _put_on(self, hooks: list[tuple[dict[int, Any], list[tuple[int, Any]]]]) -> None:
        for registry, items in hooks:
            registry.clear()
            registry.update(items)

    def _take_off(self) -> list[tuple[dict[int, Any], list[tuple[int, Any]]]]:
        """Leave the model its own hooks. Returns what there was, in its order."""
        found = []
        for registry in self._registries:
            own = self._own.get(id(registry), [])
            if len(registry) == len(own):  # tasks add hooks and take none away
                continue
            found.append((registry, list(registry.items())))
            registry.clear()
            registry.update(own)
        return found

    @contextmanager
    def _stopping_at_layers(self) -> Iterator[None]:
        """Have every call of a layer wait for its turn, before its hooks are looked up."""
        for index, layer in enumerate(self._layers):
            # Where module.compile() puts what is called in the module's place.
            vars(layer)["_compiled_call_impl"] = partial(self._call, index, layer)
        try:
            yield
        finally:
            for layer in self._layers:
                vars(layer).pop("_compiled_call_impl", None)

    def _call(self, index: int, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        task = self._current
        if task is not None and getcurrent() is task.greenlet:
            self._standing.append((index, task))
            self._wait()
        return layer._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
