"""What a run is given, looked at before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from moetrace.arguments import as_folder
from moetrace.cases import CaseSet, load_records
from moetrace.cases.case_files import holds_case_set
from moetrace.errors import RunFolderError, TokenizerError
from moetrace.progress import somebody_watches
from moetrace.protocol.folder import refuse_other_files


def check_folder(out: Path, protocol: bool = False) -> None:
    """ArgumentError or RunFolderError where nothing can be written to ``out``.

    ``protocol``: it must also be empty or hold a run of the protocol.
    """
    path = as_folder(out, "out")
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunFolderError(f"{there} can't be written to (permission denied); give another folder as --out")
    if protocol:
        refuse_other_files(path)


def read_cases(source: str, settings: Mapping[str, Any]) -> Any:
    """Records, or the cases of a file that ``CaseSet.save`` wrote."""
    if not holds_case_set(source):
        return load_records(source)
    if settings.get("foil") is not None:
        raise typer.BadParameter(
            f"foil can't be chosen: {source} holds cases, whose foils are chosen already"
        )
    return CaseSet.load(source)


def read_tokenizer(model: str) -> Any:
    """The tokenizer of a folder or hub id, what is on this machine first; nothing else of it is loaded.

    TokenizerError where it has none.
    """
    from transformers import AutoTokenizer

    for offline in (True, False):
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=offline)
            if tokenizer("word")["input_ids"] and len(tokenizer) > 1:
                return tokenizer
            reason = "it knows no words"  # transformers makes an empty one of a config alone
        except Exception as failure:  # transformers and the hub raise dozens of kinds
            reason = " ".join(str(failure).split())[:200]
        if Path(model).exists():
            break
    raise TokenizerError(
        f"{model} has no tokenizer that can be read ({reason}), and records need one; give cases, as a run's "
        "usable.json or what CaseSet.save wrote"
    )


@contextmanager
def loading_bars(progress: bool) -> Iterator[None]:
    """The bars of transformers where somebody watches, and none in a log."""
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    hidden = logging.is_progress_bar_enabled() and not (progress and somebody_watches())
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()
