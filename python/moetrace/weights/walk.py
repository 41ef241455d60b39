"""The modules of a model in one loop: a trace looks at all of them several times."""

from __future__ import annotations

from torch import nn


def walk(root: nn.Module) -> dict[nn.Module, str]:
    """Every module with its dotted name, parents first and each once, as ``named_modules`` has them.

    >>> names = walk(model)

    torch's own goes through a generator for each level above a module, and takes several times as long.
    """
    found: dict[nn.Module, str] = {}
    waiting: list[tuple[str, nn.Module]] = [("", root)]
    while waiting:
        name, module = waiting.pop()
        if module in found:
            continue
        found[module] = name
        head = f"{name}." if name else ""
        children = reversed(module._modules.items())
        waiting += [(head + own, child) for own, child in children if child is not None]
    return found
