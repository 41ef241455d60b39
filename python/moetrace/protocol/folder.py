"""A protocol's run folder: what it was asked for, what each stage found, one process at a time.

``config.json``: settings and a fingerprint of model, cases, attention and versions. ``usable.json`` and
``relaxed.json``: selected cases. ``scan.json``: scores of every case scanned. ``traces/``: a result for each
trace. ``stages.json``: what is finished, and what it took. ``tables/``, ``figure.png``: for the reader.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moetrace.arguments import as_folder
from moetrace.counts import Counted, counting
from moetrace.errors import RunFolderError
from moetrace.files import is_passing, write_json
from moetrace.integrity import json_digest
from moetrace.ranks import here
from moetrace.results.base import TraceResult
from moetrace.results.load import load as load_trace
from moetrace.results.saved import META

FORMAT = 1
CONFIG, STAGES, LOCK = "config.json", "stages.json", ".lock"
Traces = dict[str, TraceResult]
_REMEDY = "give another folder, or the same model, records and settings to go on with it"


class Folder:
    """A folder that this process alone writes to, or None: then nothing is kept.

    >>> with Folder.open("runs/qwen3", config) as folder:
    ...     found = folder.stage("layers", trace)
    """

    def __init__(self, path: Path | None, stages: dict[str, Any], lock: int | None = None) -> None:
        self.path, self.stages, self._lock = path, stages, lock
        self._ranks = here()

    @property
    def writes(self) -> bool:
        """Whether this process keeps what is found: one rank of several does."""
        return self.path is not None and self._ranks.first

    @classmethod
    def open(cls, out: Any, config: Mapping[str, Any]) -> Folder:
        """Begin a run or go on with it. Nothing is written before the folder is known to be this run's.

        RunFolderError: it holds something else, another run, or another process writes to it.
        """
        if out is None:
            return cls(None, {})
        path, ranks = as_folder(out, "out"), here()
        own = cls._opened(path, config) if ranks.first else None
        stages = ranks.of_first("run folder", lambda: {} if own is None else own.stages)
        return own or cls(path, stages)

    @classmethod
    def _opened(cls, path: Path, config: Mapping[str, Any]) -> Folder:
        refuse_other_files(path)
        lock = None
        try:
            wanted = dict(config)
            if (path / CONFIG).exists():
                refuse_other_run(path, read_sealed(path / CONFIG), wanted)
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path / LOCK)
            if (path / CONFIG).exists():  # another process may have begun meanwhile
                refuse_other_run(path, read_sealed(path / CONFIG), wanted)
            else:
                write_sealed(path / CONFIG, wanted)
            stages = read_sealed(path / STAGES) if (path / STAGES).exists() else {}
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        return cls(path, stages, lock)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def place(self, name: str) -> Path | None:
        """The path of one of its files; None where nothing is kept."""
        return None if self.path is None else self.path / name

    def stage(self, name: str, make: Callable[[Path | None], Mapping[str, TraceResult]]) -> Traces:
        """The results of a stage: those on disk where it is finished, else those that ``make`` gives.

        ``make`` gets the run folder of its trace. What it took is kept in ``stages``.
        """
        place = self.place(f"traces/{name}")
        if name in self.stages:
            own = self.stages[name]["results"]
            if self.writes:
                _tidy(place, name in own)
            return {} if self.path is None else read_traces(self.path, own)
        start = time.perf_counter()
        with counting() as counted:
            found = dict(make(place))
        seconds = time.perf_counter() - start
        if self.path is not None and self.writes:
            for own, trace in found.items():
                folder = self.path / "traces" / own
                if not (folder / META).exists():
                    trace.save(folder)
        self.finish(name, counted, seconds, list(found))
        if self.writes:
            _tidy(place, name in found)
        return found

    def finish(
        self, name: str, counted: Counted | None = None, seconds: float = 0.0, results: Any = ()
    ) -> None:
        """Keep that a stage is finished, and what it took on all ranks together."""
        own = (counted.forwards, counted.rows) if counted else (0, 0)
        each = self._ranks.share(f"the end of stage {name}", own)
        forwards, rows = (sum(column) for column in zip(*each, strict=True))
        self.stages[name] = {
            "forwards": forwards, "rows": rows, "seconds": round(seconds, 3), "results": list(results),
        }  # fmt: skip
        if self.path is not None and self.writes:
            write_sealed(self.path / STAGES, self.stages)


def _tidy(place: Path | None, is_result: bool) -> None:
    """Remove finished batches: the results hold all of them."""
    if place is not None:
        shutil.rmtree(place / "parts" if is_result else place, ignore_errors=True)


def read_traces(path: Path, names: list[str]) -> Traces:
    """Saved results by name, verified."""
    found = {name: load_trace(path / "traces" / name) for name in names}
    return {name: result for name, result in found.items() if isinstance(result, TraceResult)}


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with a digest of itself."""
    write_json(path, {**value, "sha256": json_digest(dict(value))})


def read_sealed(path: Path) -> dict[str, Any]:
    """What :func:`write_sealed` wrote. RunFolderError where it isn't that any more."""
    remedy = "restore it, or remove the folder to begin anew"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError, RecursionError) as failure:
        raise RunFolderError(f"{path} can't be read ({failure}); {remedy}") from None
    if not isinstance(found, dict):
        raise RunFolderError(f"{path} holds a JSON {type(found).__name__}; expected an object: {remedy}")
    digest = found.pop("sha256", None)
    if "format" in found and found["format"] != FORMAT:
        raise RunFolderError(
            f"{path}: format is {found['format']!r:.80}; this version of moetrace reads {FORMAT}. Give "
            "another folder, or read it with the version that wrote it"
        )
    try:
        same = digest == json_digest(found)
    except ValueError:  # NaN
        same = False
    if not same:
        raise RunFolderError(f"{path} isn't what was written; {remedy}")
    return found


def refuse_other_files(path: Path) -> None:
    """RunFolderError for a folder with files that are no protocol's."""
    try:
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    except OSError as failure:
        raise RunFolderError(f"{path} can't be read ({failure.strerror}); give another folder") from failure
    names = [name for name in names if not is_passing(name) and name != LOCK]
    if names and CONFIG not in names:
        few = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise RunFolderError(f"{path} isn't empty ({few}) and holds no {CONFIG}; give a new folder")


def refuse_other_run(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """RunFolderError that says what differs."""
    plain = json.loads(json.dumps(wanted))
    if differences := list(_differences(found, plain)):
        told = "; ".join(differences[:6]) + ("; …" if len(differences) > 6 else "")
        raise RunFolderError(f"{path} holds another run ({told}): {_REMEDY}")


def _differences(found: Any, wanted: Any, name: str = "") -> Any:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*wanted, *found]):
            yield from _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        yield f"{name} is {found!r:.60} there and {wanted!r:.60} here"


def _locked(path: Path) -> int:
    """A lock that goes when the process does, however it ends. RunFolderError where another holds it."""
    import fcntl

    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise RunFolderError(
            f"another process (id {holder}) writes to {path.parent}; wait for it, or give another folder"
        ) from None
    os.truncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle
