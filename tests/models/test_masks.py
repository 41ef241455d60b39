"""The masks of a tree are there for a pass, and gone after it, wherever Ctrl-C falls."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import pytest
import torch
from transformers import masking_utils

from moetrace.models import masks
from moetrace.models.masks import TreeMask, tree_masks
from moetrace.models.state import _marked_as_trace, is_tracing

TREE = TreeMask(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, 2, dtype=torch.bool), (2,))


def registered() -> tuple[Any, ...]:
    interface = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    return interface["sdpa"], interface["eager"], dict(interface._local_mapping)


def in_a_pass() -> None:
    with tree_masks(TREE), _marked_as_trace():
        assert masks._current.get() is TREE
        assert is_tracing()


def interrupted_at(step: int) -> bool:
    """Run with Ctrl-C at one bytecode of the files that change something; whether it ran that far."""
    left = [step]

    def watch(frame: Any, event: str, _arg: Any) -> Any:
        if frame.f_code.co_filename.endswith(("masks.py", "state.py", "changes.py")):
            frame.f_trace_opcodes = True
            if event == "opcode":
                left[0] -= 1
                if left[0] == 0:
                    signal.raise_signal(signal.SIGINT)
        return watch

    sys.settrace(watch)
    try:
        in_a_pass()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return left[0] <= 0


@pytest.mark.skipif(sys.gettrace() is not None, reason="another tool traces this process")
def test_ctrl_c_anywhere_leaves_nothing_behind() -> None:
    before, handler = registered(), signal.getsignal(signal.SIGINT)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        step = 1
        while interrupted_at(step):
            assert registered() == before, step
            assert masks._current.get() is None, step
            assert not masks._users, step
            assert not is_tracing(), step
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, step
            step += 1
        assert step > 100
        in_a_pass()
        assert registered() == before
    finally:
        signal.signal(signal.SIGINT, previous)
    assert signal.getsignal(signal.SIGINT) is handler


def test_another_thread_keeps_its_own() -> None:
    before, seen = registered(), []
    with tree_masks(TREE):
        other = threading.Thread(target=lambda: seen.append((masks._current.get(), registered()[0])))
        other.start()
        other.join()
        with tree_masks(TREE):
            assert len(masks._users) == 2
        assert registered()[0] is not before[0]
    assert seen[0][0] is None
    assert registered() == before
