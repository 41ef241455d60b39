"""What a person at a shell sees: one line for an error or a warning, and help in groups."""

from __future__ import annotations

import errno
import os
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from moetrace.errors import ArgumentError, MoetraceError

FAILED, STOPPED = 1, 130  # 128 + SIGINT, as shells have it
_WORDS = "moetrace.words"
_TO_SPEAK = 3.0  # seconds in which the rank that speaks has started, too


class Commands(TyperGroup):
    """Remembers what was typed, so that it can be said how to go on."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words as they came."""
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """A command that isn't understood is said to be so by one rank."""
        try:
            return super().invoke(ctx)
        except Exception as failure:
            if rank() and getattr(failure, "exit_code", 0) == 2:  # a usage error of typer's click
                time.sleep(_TO_SPEAK)  # a launcher ends the others with the first that ends
                raise typer.Exit(2) from None
            raise


class Command(TyperCommand):
    """Its help has a heading for each group of options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, then options by their group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            line = self.line(ctx, parameter)
            if line is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(line)
        for heading, lines in groups.items():
            with formatter.section(heading):
                formatter.write_dl(lines)

    def line(self, ctx: Any, parameter: Any) -> tuple[str, str] | None:
        """An option and its help; None where it is hidden."""
        found: tuple[str, str] | None = parameter.get_help_record(ctx)
        return found


def typed(ctx: typer.Context) -> str:
    """The command as it was typed, quoted for a shell."""
    root = ctx.find_root()
    return shlex.join([*str(root.info_name).split(), *root.meta[_WORDS]])


def rank() -> int:
    """Which of the processes that torchrun started this is; 0 where there is no other."""
    found = os.environ.get("RANK", "")
    return int(found) if found.isdigit() and os.environ.get("WORLD_SIZE", "1") != "1" else 0


def say(text: str) -> None:
    """A line of results on standard output, from one rank."""
    if not rank():
        typer.echo(text)


def tell(text: str) -> None:
    """One line on standard error, from one rank; from another where it knows what the first doesn't."""
    if rank():
        from moetrace.ranks.call import told_by_first

        if told_by_first():
            return
        text = f"rank {rank()}: {text}"
    typer.echo(f"moetrace: {' '.join(text.split())}", err=True)


@contextmanager
def plain_errors(ctx: typer.Context, after_stop: str = "") -> Iterator[None]:
    """Errors that are expected, warnings and Ctrl-C are one line each, without source or traceback.

    ``after_stop``: what to say of the command that was stopped; it stands before the command itself.
    """
    shows = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        yield
    except KeyboardInterrupt:
        tell(f"stopped. {after_stop}{typed(ctx)}" if after_stop else "stopped")
        raise typer.Exit(STOPPED) from None
    except MoetraceError as failure:
        tell(str(failure))
        raise typer.Exit(FAILED) from None
    except OSError as failure:
        if failure.errno == errno.EPIPE:  # the reader of a pipe left: typer ends quietly
            raise
        name = f"{failure.filename}: " if failure.filename else ""
        tell(f"{name}{failure.strerror or failure}")
        raise typer.Exit(FAILED) from None
    except (MemoryError, RuntimeError) as failure:
        if not isinstance(failure, MemoryError) and type(failure).__name__ != "OutOfMemoryError":  # torch's
            raise
        less = "a smaller --batch-tokens needs less. " if "batch_tokens" in ctx.params else ""
        tell(f"out of memory ({failure}); {less}{after_stop}{typed(ctx)}")
        raise typer.Exit(FAILED) from None
    finally:
        warnings.showwarning = shows


@contextmanager
def wrong_use() -> Iterator[None]:
    """An argument that was refused here is one that the user typed: exit code 2, with a hint at the help."""
    try:
        yield
    except ArgumentError as failure:
        raise typer.BadParameter(str(failure)) from None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if not rank():
        tell(f"warning: {message}")
