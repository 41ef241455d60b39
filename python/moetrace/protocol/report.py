"""What a run of the protocol found."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from moetrace.arguments import as_choice, as_path
from moetrace.errors import ArgumentError
from moetrace.protocol import beyond, tables
from moetrace.protocol.evidence import Evidence, expert_of, layer_of
from moetrace.protocol.halves import cases_of, failed_of, traces_of
from moetrace.protocol.layouts import LAYOUTS
from moetrace.protocol.scale_up import ScaleUp, scale_up
from moetrace.protocol.settings import Settings
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.comparisons import ActiveRanks, Specificity
from moetrace.results.controls import FewControlsWarning
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace
from moetrace.results.layers import LayerTrace
from moetrace.results.matched import MatchedTrace
from moetrace.results.resplit import HeldOut, Stability
from moetrace.results.scales import ScaleTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moetrace.protocol.compare import Comparison

Floats = tables.Floats
_Found = TypeVar("_Found")


class Report:
    """Everything that the paper reports, for one model.

    >>> report = mt.run_protocol(model, tokenizer, records, out="runs/qwen3")
    >>> report.star, report.tables["1"], report.figure(), report.compare("qwen3-30b-a3b")
    >>> print(report.latex(1), report.markdown(13))
    >>> mt.load("runs/qwen3").tables["1"]

    Attributes:
        settings: what was asked.
        cases: "all" (usable and relaxed), "usable", "discovery", "validation", and with the scale-up
            "relaxed", "relaxed_discovery", "relaxed_validation": CaseSets.
        traces: "layers", "experts" (on discovery cases), "layers_validation", "experts_validation",
            "layers_usable", "experts_usable", "matched", "coalitions", "shapley", "scales", "map",
            "relaxed_layers", "relaxed_experts" and their "_validation" parts: those that were made.
        layer: the selected layer. star: the selected expert, None where none is recurrent enough.
        counts: forwards, rows (token rows), bytes (of weights, that the forwards passed: an upper bound, for
            not every expert is read) and seconds of the whole run. stages: the same of each stage.
        texts: case id -> prompt, tokens, true, foil, subject as text.
        provenance: fingerprint of model and cases, versions, engines. folder: where it is kept, or None.
    """

    def __init__(self, found: Evidence) -> None:
        self.found = found
        self.settings: Settings = found.settings
        self.texts, self.folder = found.texts, found.folder
        self._notes: dict[str, str] = {}
        self.layer = layer_of(found)
        self.star, refusal = expert_of(found)
        if self.star is None:
            self._notes["expert"] = f"No expert was selected: {refusal}"
        if len(found.usable) < self.settings.n:
            self._notes["cases"] = f"{len(found.usable)} usable cases, of {self.settings.n} asked for."
        self.cases = cases_of(found)
        self.traces = traces_of(found, self.cases, self.failed)
        if len(self.failed):
            self._notes["failed"] = (
                f"{len(self.failed)} cases gave NaN or infinite logits and are left out of every figure: "
                f"{sorted(self.failed)[:20]}"
            )

    @property
    def notes(self) -> dict[str, str]:
        """What a reader should know, by the table or figure that it is about."""
        for made in (self.tables, self.stability):  # working them out may add a note
            del made
        return dict(self._notes)

    def why(self, name: str) -> str:
        """What there is to know of something; empty where nothing is."""
        return self._notes.get(name, "")

    @cached_property
    def failed(self) -> set[int]:
        """Ids of cases that some trace couldn't give finite logits for: they are in no figure."""
        return failed_of(self.found)

    def layers(self, name: str) -> LayerTrace:
        """A layer trace by name."""
        trace = self.traces[name]
        assert isinstance(trace, LayerTrace)
        return trace

    def experts(self, name: str) -> ExpertTrace:
        """An expert trace by name."""
        trace = self.traces[name]
        assert isinstance(trace, ExpertTrace)
        return trace

    @property
    def chosen(self) -> Expert:
        """The selected expert. ArgumentError where there is none."""
        if self.star is None:
            raise ArgumentError(self._notes["expert"])
        return self.star

    @property
    def label(self) -> str:
        """What tables call the model."""
        model = self.found.config["model"]
        return self.settings.label or Path(model["name"]).name or str(model["class"])

    @cached_property
    def top_k(self) -> int:
        """How many experts the router takes; 0 for a model without."""
        return self.experts("experts").top_k if "experts" in self.traces else 0

    @cached_property
    def layer_rescue(self) -> Floats:
        """Rescue of the selected layer's block in each validation case, logits."""
        own = self.layers("layers_validation")
        column: Floats = own.effects[:, own.layers.index(self.layer)]
        return column

    @cached_property
    def expert_rescue(self) -> Floats:
        """Rescue of the selected expert in each validation case, logits; 0 where it isn't clean-active."""
        if self.star is None:
            return np.array([])
        own = self.experts("experts_validation")
        column: Floats = own.effects[:, own.sites.expert.to_numpy() == self.star.expert][:, 0]
        return column

    @cached_property
    def specificity(self) -> Specificity | None:
        """The selected expert against its active-random controls on validation cases (equation 7)."""
        if self.star is None:
            return None
        s, own = self.settings, self.experts("experts_validation")
        controls: Any = s.controls
        return self._asked("spec", lambda: own.specificity(self.chosen, controls, s.controls_seed))

    @cached_property
    def spec_by_case(self) -> Floats:
        """Specificity in each validation case; NaN where it has no control."""
        if self.specificity is None:
            return np.full(len(self.expert_rescue), np.nan)
        ids = self.experts("experts_validation").cases.case_id
        rows = self.specificity.rows.set_index("case_id").specificity
        found: Floats = rows.reindex(ids).to_numpy(float)
        return found

    @property
    def spec(self) -> Floats:
        """Specificity in the validation cases that have a control."""
        known: Floats = self.spec_by_case[~np.isnan(self.spec_by_case)]
        return known

    @cached_property
    def ranks(self) -> ActiveRanks | None:
        """The selected expert's ranks on validation cases (Table 10)."""
        if self.star is None:
            return None
        return self._asked("ranks", lambda: self.experts("experts_validation").ranks(self.chosen))

    @cached_property
    def stability(self) -> Stability | None:
        """Selection under other splits and thresholds (appendix D)."""
        s = self.settings
        return self._of_usable(
            "stability",
            lambda usable, own: usable.stability(
                s.stability_seeds, s.stability_thresholds, seed=s.controls_seed, fraction=s.fraction, **own
            ),
        )

    @cached_property
    def held_out(self) -> HeldOut | None:
        """Selection with whole relations held out (Table 12)."""
        s = self.settings
        return self._of_usable(
            "held_out",
            lambda usable, own: usable.held_out(folds=s.folds, seed=s.seed, min_active=s.min_active, **own),
        )

    def _of_usable(self, name: str, ask: Callable[[ExpertTrace, dict[str, Any]], _Found]) -> _Found | None:
        """What the trace of all usable cases answers, given the layer, controls and mean of the run."""
        if "experts_usable" not in self.traces:
            return None
        own: dict[str, Any] = {
            "layer": self.layer,
            "controls": self.settings.controls,
            "mean": self.settings.mean,
        }
        return self._asked(name, lambda: ask(self.experts("experts_usable"), own))

    @cached_property
    def scale_up(self) -> Any:
        """The relaxed scale-up (Tables 14 and 15), a :class:`ScaleUp`, or None."""
        own: ScaleUp | None = self._asked("relaxed", lambda: scale_up(self.found))
        if own is not None:
            self._notes["15"] = (
                f"{own.overlap} of {len(own.new)} relaxed validation cases are in the strict set. n_E counts "
                "the cases of the expert's mean, zero rows included; the paper doesn't say what its 137 "
                "counts."
            )
            if own.star is None:
                self._notes["14"] = f"No expert was selected on the relaxed discovery cases: {own.refusal}"
        return own

    def _asked(self, name: str, ask: Callable[[], _Found]) -> _Found | None:
        """What a comparison gives, or None with a note where it can't be made; its warnings become notes."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = ask()
            except ArgumentError as refusal:
                self._notes[name] = str(refusal)
                return None
        for warning in caught:
            if issubclass(warning.category, FewControlsWarning):
                self._notes[name] = str(warning.message)
            else:
                warnings.warn(warning.message, stacklevel=3)
        return found

    @cached_property
    def matched_table(self) -> pd.DataFrame:
        """The matched control's summary (equations 8 to 10)."""
        trace = self.traces["matched"]
        assert isinstance(trace, MatchedTrace)
        return trace.table(**self.settings.statistics)

    @cached_property
    def scale_table(self) -> pd.DataFrame:
        """The expert at each noise scale."""
        trace = self.traces["scales"]
        assert isinstance(trace, ScaleTrace)
        return trace.table(**self.settings.statistics)

    @cached_property
    def coalition_table(self) -> pd.DataFrame:
        """The clean coalition and the routing union (equations 14 and 15)."""
        trace = self.traces["coalitions"]
        assert isinstance(trace, CoalitionTrace)
        return trace.summary(**self.settings.statistics)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The paper's tables, "1" to "16", as plain numbers.

        One that the model or the settings don't have is empty, and its ``.attrs["note"]`` says why.
        """
        return tables.all_tables(self)

    @cached_property
    def beyond(self) -> dict[str, pd.DataFrame]:
        """Tables that the paper doesn't have; see :mod:`moetrace.protocol.beyond`."""
        return beyond.all_tables(self)

    def latex(self, number: int | str) -> str:
        """One of the paper's tables in LaTeX (booktabs).

        >>> print(report.latex(1))
        """
        name = _number(number)
        return LAYOUTS[name].latex(self.tables[name])

    def markdown(self, number: int | str) -> str:
        """One of the paper's tables in Markdown.

        >>> print(report.markdown("13"))
        """
        name = _number(number)
        return LAYOUTS[name].markdown(self.tables[name])

    @property
    def noise_floor(self) -> float:
        """What numerics alone can give in any of the traces, logits."""
        return max(trace.noise_floor for trace in self.found.traces.values() if len(trace))

    @property
    def stages(self) -> pd.DataFrame:
        """What each stage took: stage, forwards, rows, bytes, seconds."""
        size = int(self.found.config["model"].get("bytes", 0))
        rows = [
            {
                "stage": name,
                "forwards": own["forwards"],
                "rows": own["rows"],
                "bytes": own["forwards"] * size,
                "seconds": own["seconds"],
            }
            for name, own in self.found.stages.items()
            if name != "finished"
        ]
        return pd.DataFrame(rows, columns=["stage", "forwards", "rows", "bytes", "seconds"])

    @property
    def counts(self) -> dict[str, float]:
        """forwards, rows, bytes and seconds of the whole run."""
        total = self.stages.drop(columns="stage").sum()
        return {
            "forwards": int(total.forwards),
            "rows": int(total.rows),
            "bytes": int(total.bytes),
            "seconds": float(total.seconds),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """Fingerprint of model and cases, versions, settings, and of each trace how it was made."""
        names = (
            "engine", "engine_reason", "attention", "readout", "readout_by", "compute_dtype", "self_check",
            "null_floor",
        )  # fmt: skip
        made = {
            name: {key: trace.provenance[key] for key in names if key in trace.provenance}
            for name, trace in self.found.traces.items()
        }
        return {**self.found.config, "traces": made}

    def figure(self) -> Figure:
        """The paper's Figure 1: rescue across layers, the selected expert, coalitions. Needs matplotlib.

        >>> report.figure().savefig("figure.pdf")
        """
        from moetrace.protocol.figure import figure

        return figure(self)

    def compare(self, name: str) -> Comparison:
        """The paper's printed figures of a model beside this run's.

        >>> report.compare("qwen3-30b-a3b").rows

        ``name``: "qwen3-30b-a3b" or "mixtral-8x7b".
        """
        from moetrace.protocol.compare import compare

        return compare(self, name)

    def html(self, path: str | Path) -> Path:
        """Write the report as one HTML file that opens without network.

        >>> report.html("report.html")
        """
        place = as_path(path, "path")
        import_module("moetrace.report").write_html(self, place)
        return place

    def __repr__(self) -> str:
        star = "no expert" if self.star is None else str(self.star)
        return (
            f"Report({self.label}: {len(self.found.usable)} usable cases, L{self.layer} with mean rescue "
            f"{float(np.mean(self.layer_rescue)):+.3f}, {star}"
            + ("" if self.star is None else f" {float(np.mean(self.expert_rescue)):+.3f}")
            + f", numerical floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        cells = LAYOUTS["1"].columns
        (row,) = self.tables["1"].to_dict("records")
        head = "".join(f"<th>{escape(column.heading)}</th>" for column in cells)
        body = "".join(f"<td>{escape(column.cell(row).text)}</td>" for column in cells)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes.values())
        return f"<p><b>{escape(repr(self))}</b></p><table><tr>{head}</tr><tr>{body}</tr></table>{notes}"


def _number(number: int | str) -> str:
    """The name of a table."""
    name = str(number) if isinstance(number, int) and not isinstance(number, bool) else number
    return as_choice(name, "number", tuple(LAYOUTS))
