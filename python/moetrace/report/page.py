"""From a report to one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moetrace.arguments import as_choice, as_path
from moetrace.errors import ArgumentError, MissingPackageError
from moetrace.files import write_atomically
from moetrace.report.cases import cases_section
from moetrace.report.checks import checks_section
from moetrace.report.coalitions import coalitions_section
from moetrace.report.comparison import MODELS, comparison_section
from moetrace.report.controls import controls_section
from moetrace.report.embed import asset, content_policy, packed_text, plotly_script, script_json
from moetrace.report.experts import experts_section
from moetrace.report.explorer import explorer_section
from moetrace.report.facts import asked_section, cards, cite_section, settings_section, tables_section
from moetrace.report.layers import layers_section
from moetrace.report.parts import Section
from moetrace.report.source import Source


def write_html(report: Any, path: str | Path, *, compare: str | None = None) -> Path:
    """Write a run's report as one HTML file that opens anywhere, without network.

    >>> write_html(report, "report.html")

    ``report``: what :func:`moetrace.run_protocol` gives. Of its attributes settings, cases, traces, tables,
    star, layer, counts, stability, held_out, compare, provenance and texts any may be missing or None: its
    section then says so. ``compare``: the paper's model beside which the run is put, "qwen3-30b-a3b" or
    "mixtral-8x7b"; by default found by the model's name. Returns the path. The file is replaced whole or not
    at all. Means, intervals and tests are worked out here with the defaults of :meth:`TraceResult.summary`.

    Raises:
        MissingPackageError: plotly or jinja2 isn't installed (``pip install "moetrace[report]"``).
        ArgumentError: ``path`` is no path of a file, or ``compare`` none of the paper's models.
    """
    target = as_path(path, "path")
    as_choice(compare, "compare", (None, *MODELS))
    if target.is_dir():
        raise ArgumentError(f"path is {str(target)!r}, a folder; expected the path of a file")
    text = render(Source(report), compare)
    # Half of a surrogate pair can't be sent to a browser.
    write_atomically(target, lambda beside: _write(beside, text.encode("utf-8", "replace")))
    return target


def write_folder(folder: str | Path, path: str | Path | None = None, *, compare: str | None = None) -> Path:
    """Load a finished run and write its report; by default to ``report.html`` in its folder.

    >>> write_folder("runs/qwen3")

    Raises:
        RunFolderError: the folder holds no finished run.
        Others: see :func:`write_html`.
    """
    import moetrace

    home = as_path(folder, "folder")
    return write_html(moetrace.load(home), home / "report.html" if path is None else path, compare=compare)


def sections(source: Source, compare: str | None = None) -> list[Section]:
    """All sections, in the order of the page."""
    return [
        asked_section(source),
        cases_section(source),
        layers_section(source),
        experts_section(source),
        controls_section(source),
        coalitions_section(source),
        checks_section(source),
        explorer_section(source),
        comparison_section(source, compare),
        tables_section(source),
        settings_section(source),
        cite_section(source),
    ]


def render(source: Source, compare: str | None = None) -> str:
    """The page as text. What comes from data is escaped, in markup by jinja2 and in JSON as ``<`` is."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as failure:
        raise MissingPackageError(
            f'a report needs jinja2 ({failure}): pip install "moetrace[report]"'
        ) from failure
    theme = asset("theme.js")
    scripts = [asset(name) for name in ("look.js", "charts.js", "draw.js", "page.js")]
    library = plotly_script()
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(asset("page.html"))
    parts = sections(source, compare)
    data: dict[str, Any] = {part.id: part.data for part in parts if part.data}
    data["level"] = source.level
    return template.render(
        title=f"{source.model_name} – moetrace",
        model=source.model_name,
        cards=cards(source),
        notes=[str(note) for note in source.named("notes").values()],
        sections=parts,
        versions=source.provenance.get("versions", {}),
        # Our own files and JSON that can't end its element; nothing else is passed unescaped.
        css=_markup(asset("page.css")),
        theme=_markup(theme),
        library=packed_text(library),
        scripts=[_markup(script) for script in scripts],
        data=_markup(script_json(data)),
        policy=content_policy((theme, *scripts, library)),
    )


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
