"""Functions of a user's: called with an error that says which failed, and told apart in records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import CodeType
from typing import Any

from moetrace.errors import ArgumentError, MoetraceError


def function_name(function: Callable[..., Any]) -> str:
    """A name for tables: the function's own, "function" for a lambda, the class of a callable object.

    >>> function_name(lambda logits, case: logits[:, 0])
    'function'
    """
    name = getattr(function, "__name__", None) or type(function).__name__
    return "function" if name == "<lambda>" else str(name)


def call_for_case(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    case_id: int,
    error: type[ArgumentError],
    what: str,
    expected: str,
) -> Any:
    """What a user's function gives; where it fails an ``error`` that names it and says what is expected."""
    try:
        return function(*arguments)
    except MoetraceError:
        raise
    except Exception as failure:
        raise error(
            f"{what} failed for case {case_id} ({type(failure).__name__}: {failure}); expected {expected}"
        ) from failure


def function_digest(function: Callable[..., Any]) -> str:
    """A digest of what a function does, as far as its code says: values that it captures don't enter."""
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    digest = hashlib.sha256(str(getattr(function, "__qualname__", type(function).__qualname__)).encode())
    if isinstance(code, CodeType):
        _add(digest, code)
    return digest.hexdigest()[:16]


def _add(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add(digest, constant)
        else:
            digest.update(repr(constant).encode())
