"""What public functions do with their arguments: take them over, or say what is wrong with them.

Each function returns the argument in its plain Python form and raises ArgumentError where it can't: the
message names the argument, what was given, what was expected, and the nearest valid name. Integers of numpy
and zero-dimensional integer tensors are integers here; booleans and floats aren't.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from moetrace.errors import ArgumentError, ArgumentTypeError

LARGEST_SEED = 2**64 - 1
_SHOWN = 80  # characters of a value that a message shows
_Word = TypeVar("_Word")


def shown(value: Any) -> str:
    """A value as a message shows it: cut short, on one line, and never an error itself.

    >>> shown([1] * 1000)
    '[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, …'
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:
        return f"a {type(value).__name__} that can't be shown"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def refuse_type(value: Any, name: str, expected: str) -> NoReturn:
    """Raise ArgumentTypeError for a value of the wrong kind."""
    raise ArgumentTypeError(f"{name} is {shown(value)} ({type(value).__name__}); expected {expected}")


def is_integer(value: Any) -> bool:
    """Whether a value counts as an integer: Python's, numpy's, or a tensor's without dimensions."""
    if isinstance(value, numbers.Integral):
        return not isinstance(value, bool)
    if getattr(value, "shape", None) != () or "bool" in str(getattr(value, "dtype", "bool")):
        return False
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def as_integer(value: Any, name: str, expected: str = "an integer") -> int:
    """An integer, whatever its size.

    >>> as_integer(np.int64(7), "layer")
    7
    """
    if not is_integer(value):
        refuse_type(value, name, expected)
    return operator.index(value)


def as_count(value: Any, name: str, least: int = 1, most: int | None = None) -> int:
    """An integer from ``least`` to ``most``.

    >>> as_count(256, "n")
    256
    """
    expected = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
    number = as_integer(value, name, expected)
    if number < least or (most is not None and number > most):
        raise ArgumentError(f"{name} is {shown(number)}; expected {expected}")
    return number


def as_seed(value: Any, name: str = "seed") -> int:
    """A seed: 64 bits.

    >>> as_seed(0)
    0
    """
    return as_count(value, name, 0, LARGEST_SEED)


def as_number(
    value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, ends: bool = True
) -> float:
    """A finite real number from ``low`` to ``high``, without the ends where ``ends`` is off.

    >>> as_number(3, "scale", low=0)
    3.0
    """
    expected = _between(low, high, ends)
    scalar = isinstance(value, numbers.Real) or (
        getattr(value, "shape", None) == () and hasattr(value, "dtype") and hasattr(value, "__float__")
    )
    if not scalar or isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        refuse_type(value, name, expected)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        refuse_type(value, name, expected)
    inside = low <= number <= high if ends else low < number < high
    if not math.isfinite(number) or not inside:
        raise ArgumentError(f"{name} is {shown(value)}; expected {expected}")
    return number


def as_fraction(value: Any, name: str) -> float:
    """A number strictly between 0 and 1.

    >>> as_fraction(0.5, "fraction")
    0.5
    """
    return as_number(value, name, 0, 1, ends=False)


def as_flag(value: Any, name: str) -> bool:
    """True or False, numpy's too.

    >>> as_flag(True, "union")
    True
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    refuse_type(value, name, "True or False")


def as_choice(value: Any, name: str, allowed: Sequence[_Word]) -> _Word:
    """One of some words.

    >>> as_choice("auto", "engine", ("auto", "tree", "reference"))
    'auto'
    """
    for word in allowed:
        if type(value) is type(word) and value == word:
            return word
    words = [repr(word) for word in allowed]
    expected = " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
    if value is None or not any(isinstance(value, type(word)) for word in allowed):
        refuse_type(value, name, expected)
    near = nearest(value, [word for word in allowed if isinstance(word, str)])
    raise ArgumentError(f"{name} is {shown(value)}{near}; expected {expected}")


def nearest(value: Any, names: Iterable[str]) -> str:
    """What a message says of the valid name that is nearest; empty where none is near.

    >>> nearest("three", ["tree", "reference"])
    " (did you mean 'tree'?)"
    """
    if not isinstance(value, str):
        return ""
    found = difflib.get_close_matches(value[:_SHOWN], list(names), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def as_path(value: Any, name: str) -> Path:
    """A path that a file or folder can have.

    >>> as_path("runs/layers", "folder")
    PosixPath('runs/layers')
    """
    if not isinstance(value, str | os.PathLike):
        refuse_type(value, name, "a path, as a string or a pathlib.Path")
    text = os.fspath(value)
    if not isinstance(text, str):
        refuse_type(value, name, "a path of characters, not of bytes")
    try:
        os.fsencode(text)
        good = bool(text.strip()) and "\0" not in text
    except UnicodeEncodeError:  # half a character
        good = False
    if not good:
        raise ArgumentError(f"{name} is {shown(text)}; expected the path of a file or folder")
    return Path(text)


def as_folder(value: Any, name: str) -> Path:
    """The path of a folder that is there or can be made.

    >>> as_folder("runs/layers", "out")
    PosixPath('runs/layers')
    """
    path = as_path(value, name)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ArgumentError(f"{name} is {shown(str(path))}, but {part} is a file; expected a folder")
    return path


def as_list(value: Any, name: str, expected: str) -> list[Any]:
    """The items of a sequence, an array or another iterable that ends; not those of a text or a mapping.

    >>> as_list((1, 2), "scales", "numbers")
    [1, 2]
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        refuse_type(value, name, expected)
    try:
        plain = value.tolist() if hasattr(value, "tolist") else list(value)
    except Exception as failure:
        raise ArgumentTypeError(
            f"{name} is {shown(value)}, whose items can't be listed ({failure}); expected {expected}"
        ) from failure
    return plain if isinstance(plain, list) else refuse_type(value, name, expected)


def known_names(given: Iterable[str], allowed: Sequence[str], function: str) -> None:
    """Refuse keyword arguments that a function doesn't have.

    >>> known_names({"engine": "tree"}, ["engine", "noise"], "trace_layers")
    """
    for name in given:
        if name not in allowed:
            raise ArgumentTypeError(
                f"{function} has no argument {name!r}{nearest(name, allowed)}; it takes {', '.join(allowed)}"
            )


def _between(low: float, high: float, ends: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "a finite number"
    if high == math.inf:
        return f"a finite number {'of at least' if ends else 'above'} {low:g}"
    if ends:
        return f"a number from {low:g} to {high:g}"
    return f"a number strictly between {low:g} and {high:g}"
