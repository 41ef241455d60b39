"""The protocol, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moetrace import __version__
from moetrace.arguments import refuse_type
from moetrace.cases import CaseSet, make_cases, refuse_several_tokens
from moetrace.corruptions import Corruption
from moetrace.counts import counting
from moetrace.errors import MissingPackageError, NoCasesError, RunFolderError
from moetrace.files import write_atomically, write_json
from moetrace.models.anatomy import find_anatomy
from moetrace.progress import Progress
from moetrace.protocol.corruption import corruption_of, record_of
from moetrace.protocol.evidence import Evidence, expert_of, layer_of, relaxed_layers
from moetrace.protocol.folder import FORMAT, Folder
from moetrace.protocol.lengths import within_positions
from moetrace.protocol.report import Report
from moetrace.protocol.scan import Scan, told
from moetrace.protocol.settings import NOISE, Settings
from moetrace.protocol.texts import texts_of
from moetrace.ranks import here, on_all_ranks
from moetrace.results.expert_name import Expert
from moetrace.trace.experts import trace_experts
from moetrace.trace.layers import trace_layers
from moetrace.trace.options import as_progress
from moetrace.trace.provenance import model_facts, versions
from moetrace.trace.scales import trace_noise_scales
from moetrace.trace.together import trace_around


@on_all_ranks
def run_protocol(
    model: torch.nn.Module,
    tokenizer: Any,
    records: Any,
    preset: str = "paper",
    *,
    out: str | Path | None = None,
    progress: Progress = None,
    echo: Callable[[str], None] | None = None,
    **overrides: Any,
) -> Report:
    """Everything that the paper reports for one model, from records to tables.

    >>> report = mt.run_protocol(model, tokenizer, records, preset="paper", out="runs/qwen3")
    >>> report.tables["1"], report.star, report.figure()
    >>> mt.run_protocol(model, tokenizer, records, "quick", min_active=0.25, noise=2.0)
    >>> mt.run_protocol(model, tokenizer, records, corruption="swap")     # not noise, but another subject

    Layer and expert are selected on discovery cases and fixed on validation cases (sections 3.3 and 3.4).

    Args:
        model: As :func:`moetrace.trace_layers` takes it.
        tokenizer: Its tokenizer; None serves where ``records`` is a CaseSet.
        records: What :func:`moetrace.load_records` takes, or a CaseSet of :func:`moetrace.make_cases`.
        preset: ``"paper"`` (Table 2, with the relaxed scale-up of appendix F), ``"relaxed"`` (its thresholds,
            512 cases, halves in scan order) or ``"quick"`` (64 cases).
        out: A run folder, written as it goes; the same call goes on with it, and :func:`moetrace.load` reads
            it once it is finished. None keeps nothing. Several ranks share one, in a place that all see.
        progress: A bar for each trace; see :func:`moetrace.trace_layers`.
        echo: Is told, a line at a time, what was found.
        **overrides: Any of :class:`moetrace.protocol.settings.Settings`, by name; ``noise=`` sets its scale,
            seed and draws. ``corruption=`` in its place, for every stage from the selection on: "mean",
            "zero", "uniform", "swap" (partners within the records; cases without one are dropped as
            ``no_swap_partner``), or what :func:`moetrace.trace_layers` takes. Table 13 is of noise alone.

    Raises:
        ArgumentError: An unknown preset or setting, or one out of its range.
        TooFewCasesError: Fewer than 4 cases are usable; says which filter took the others.
        RunFolderError: ``out`` is of another run, is in use, or can't be written; what is there stays.
        Others: Those of :func:`moetrace.make_cases` and :func:`moetrace.trace_experts`.

    Warns:
        FewCasesWarning: Fewer cases than asked for are usable; says which setting would admit more.
    """
    settings = Settings.of(preset, **overrides)
    progress = as_progress(progress)
    if echo is not None and not callable(echo):
        refuse_type(echo, "echo", "a function of a line of text, or None")
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "decode")):
        refuse_type(tokenizer, "tokenizer", "a tokenizer of transformers, or None beside a CaseSet")
    anatomy = find_anatomy(model)
    made = records if isinstance(records, CaseSet) else made_cases(records, tokenizer, settings)
    refuse_several_tokens(made, "run_protocol")
    cases = within_positions(made, anatomy.positions)
    if not cases:
        raise NoCasesError(f"there are no cases to select from ({cases!r}); look at .dropped for the reasons")
    corruption = corruption_of(settings, overrides.get("corruption"), cases, anatomy.model)
    config = {
        "format": FORMAT,
        "moetrace": __version__,
        "settings": settings.json(),
        "model": {**model_facts(anatomy.model), "bytes": _bytes(anatomy.model)},
        "attention": str(getattr(anatomy.config, "_attn_implementation", "")),
        "cases": {"count": len(cases), "digest": cases.fingerprint(), "records": cases.n_records},
        "versions": versions(),
        **record_of(settings, corruption),
    }
    ranks = here()
    ranks.agree("run_protocol", lambda: {**config, "out": str(out)})
    tell = echo if echo is not None and ranks.first else _silent
    try:
        with Folder.open(out, config) as folder:
            run = _Run(model, tokenizer, settings, corruption, folder, progress, tell)
            return run.report(cases, config)
    except OSError as failure:
        raise RunFolderError(
            f"{failure.filename or out} can't be written ({failure.strerror or failure}); what was there "
            "stays readable: make room or give another folder, and make the same call again to go on"
        ) from failure


def made_cases(records: Any, tokenizer: Any, settings: Settings) -> CaseSet:
    """Cases of records, as the settings ask for them."""
    final: Any = settings.final_subject
    foil: Any = settings.foil
    return make_cases(records, tokenizer, final_subject=final, foil=foil, seed=settings.seed)


def _bytes(model: torch.nn.Module) -> int:
    """Size of the weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _silent(_: str) -> None:
    """For nobody."""


class _Run:
    """One run: each method is a stage, and gives what is on disk where the stage is finished."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: Settings,
        corruption: Corruption,
        folder: Folder,
        progress: Progress,
        echo: Callable[[str], None],
    ) -> None:
        self.model, self.tokenizer, self.settings, self.folder = model, tokenizer, settings, folder
        self.echo, self.corruption = echo, corruption
        self.options: dict[str, Any] = {
            "engine": settings.engine, "readout": settings.readout, "batch_tokens": settings.batch_tokens,
            "compute_dtype": settings.compute_dtype, "progress": progress,
            "final_subject": "keep" if settings.final_subject == "keep" else "refuse",
        }  # fmt: skip
        self.noised = {**self.options, "corruption": corruption}

    def report(self, cases: CaseSet, config: dict[str, Any]) -> Report:
        """All stages, then what they found."""
        s, folder = self.settings, self.folder
        usable = self.selected("usable", cases, s.n, s.margin, s.drop)
        self.echo(f"usable cases: {told(usable)}")
        found = Evidence(s, usable, None, {}, folder.stages, config, {}, folder.path)
        traces = found.traces
        traces |= folder.stage(
            "layers", lambda out: {"layers": trace_layers(self.model, usable, **self.noised, out=out)}
        )
        layer = layer_of(found)
        self.echo(f"layer selected on {len(found.discovery)} discovery cases: L{layer}")
        if find_anatomy(self.model).sparse_layers:
            self.experts(found, layer)
        if s.relaxed:
            self.relaxed(found, cases)
        everything = usable if found.relaxed is None else usable + found.fresh
        found.texts.update(texts_of(everything, self.tokenizer))
        return self.finished(found)

    def selected(self, name: str, cases: CaseSet, n: int, margin: float, drop: float) -> CaseSet:
        """Usable cases; a finished selection scans nothing."""
        place = self.folder.place(f"{name}.json")
        if name in self.folder.stages and place is not None:
            return CaseSet.load(place)
        scan = Scan(self.folder.place("scan.json"), self.corruption)
        start = time.perf_counter()
        with counting() as counted:
            progress = self.options["progress"]
            usable = scan.select(self.model, cases, self.settings, n, margin, drop, progress)
        if place is not None and self.folder.writes:
            usable.save(place)
        self.folder.finish(name, counted, time.perf_counter() - start)
        return usable

    def experts(self, found: Evidence, layer: int) -> None:
        """Select an expert on discovery cases, and hold everything against it on validation cases."""
        traces, folder, s = found.traces, self.folder, self.settings
        traces |= folder.stage(
            "experts_discovery",
            lambda out: {
                "experts_discovery": trace_experts(
                    self.model, found.discovery, layer=layer, **self.noised, out=out
                )
            },
        )
        star, refusal = expert_of(found)
        if star is None:
            self.echo(f"no expert selected: {refusal}")
        else:
            self.echo(f"expert selected on {len(found.discovery)} discovery cases: {star}")
            traces |= folder.stage("around", lambda out: self.around(found, star, out))
            if s.corruption == NOISE:
                traces |= folder.stage("scales", lambda out: self.scales(found, star, out))
        if s.expert_map:
            traces |= folder.stage(
                "map",
                lambda out: {"map": trace_experts(self.model, found.validation, **self.noised, out=out)},
            )

    def scales(self, found: Evidence, star: Expert, out: Path | None) -> dict[str, Any]:
        """The expert at several noise scales."""
        s = self.settings
        own = trace_noise_scales(
            self.model, found.validation, star, s.scales, seed=s.noise_seed, **self.options, out=out
        )
        return {"scales": own}

    def around(self, found: Evidence, star: Expert, out: Path | None) -> dict[str, Any]:
        """Validation rows, matched controls and coalitions of one expert."""
        own = trace_around(
            self.model, found.validation, star, shapley=self.settings.shapley,
            seed=self.settings.controls_seed, **self.noised, out=out,
        )  # fmt: skip
        results = {
            "experts_validation": own.experts, "matched": own.matched, "coalitions": own.coalitions,
            "shapley": own.shapley,
        }  # fmt: skip
        return {name: result for name, result in results.items() if result is not None}

    def relaxed(self, found: Evidence, cases: CaseSet) -> None:
        """Appendix F: more cases at lower thresholds; those of the strict set aren't traced again."""
        s, traces, folder = self.settings, found.traces, self.folder
        found.relaxed = self.selected("relaxed", cases, s.relaxed_n, s.relaxed_margin, s.relaxed_drop)
        self.echo(f"relaxed cases: {told(found.relaxed)}")
        fresh = found.fresh
        if len(fresh):
            traces |= folder.stage(
                "relaxed_layers",
                lambda out: {"relaxed_layers": trace_layers(self.model, fresh, **self.noised, out=out)},
            )
        layer = relaxed_layers(found).subset(found.relaxed_discovery).best
        if "experts_discovery" not in traces:
            return
        known = found.known_experts(layer)
        missing = CaseSet([case for case in found.relaxed if case.case_id not in known])
        if len(missing):
            traces |= folder.stage(
                "relaxed_experts",
                lambda out: {
                    "relaxed_experts": trace_experts(self.model, missing, layer=layer, **self.noised, out=out)
                },
            )

    def draw(self, report: Report, path: Path) -> None:
        """Figure 1; says where it is, or how to get it. All the work is done by then."""
        try:
            drawn = report.figure()
        except MissingPackageError as missing:
            self.echo(f"no picture: {missing}")
            return
        from matplotlib import pyplot

        drawn.savefig(path, dpi=150)
        pyplot.close(drawn)
        self.echo(f"picture: {path}")

    def finished(self, found: Evidence) -> Report:
        """The report; its tables and picture go into the folder."""
        report = Report(found)
        path = self.folder.path
        if path is not None and self.folder.writes and "finished" not in self.folder.stages:
            write_json(path / "texts.json", {str(i): text for i, text in found.texts.items()})
            (path / "tables").mkdir(exist_ok=True)
            for number, table in report.tables.items():
                for suffix, text in (
                    ("csv", table.to_csv(index=False)),
                    ("tex", report.latex(number)),
                    ("md", report.markdown(number)),
                ):
                    write_atomically(path / "tables" / f"{number}.{suffix}", _writes(text))
            self.draw(report, path / "figure.png")
        if path is not None and "finished" not in self.folder.stages:
            self.folder.finish("finished")
        return report


def _writes(text: str) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        place.write_text(text, encoding="utf-8")

    return write
