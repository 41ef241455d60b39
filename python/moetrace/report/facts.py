"""What was asked, the answer in a few numbers, the settings, and how to cite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from moetrace import __version__
from moetrace.report.controls import specificity_of
from moetrace.report.parts import Section, Table, counted, interval, number, p_text
from moetrace.report.source import Source

PAPER = """@misc{lu2026expertaware,
  title         = {Expert-Aware Causal Tracing of Factual Recall in Sparse {MoE} Language Models},
  author        = {Yuetian Lu and Ali Modarressi and Yihong Liu and Hinrich Sch{\\"u}tze},
  year          = {2026},
  eprint        = {2606.03780},
  archivePrefix = {arXiv},
  primaryClass  = {cs.CL}
}"""
SOFTWARE = f"""@software{{moetrace,
  title   = {{moetrace: causal tracing of facts in Mixture-of-Experts language models}},
  author  = {{{{The moetrace authors}}}},
  version = {{{__version__}}},
  year    = {{2026}}
}}"""
TERMS = {
    "logit difference": "logit of the true object minus logit of the foil, at the last token.",
    "rescue": "logit difference of the restored run minus that of the noised run, in logits. Above zero, "
    "the part carries something of the fact.",
    "clean-active": "the router takes the expert in the clean run. Where it doesn't, the expert's rescue is "
    "exactly zero, and the case still counts.",
    "specificity": "rescue of an expert minus the mean rescue of other active experts of its layer.",
    "discovery, validation": "the halves of the cases: what is selected on one is tested on the other.",
}
TITLES = {
    "1": "Main validation results",
    "2": "Protocol",
    "3": "Activity of the selected expert, and rows with zero rescue",
    "4": "Most frequent relations",
    "5": "By relation",
    "6": "Sharpness of the layer sweep",
    "7": "Relative to the layer's rescue",
    "8": "Case ids",
    "9": "Gate-weight-matched and equal-norm control",
    "10": "Rank among the active experts",
    "11": "Active pair at equal norm",
    "12": "Relations held out",
    "13": "Noise scales",
    "14": "Relaxed filters",
    "15": "Relaxed filters, by overlap with the strict set",
    "16": "Coalitions",
}
BEYOND = {
    "clustered": "intervals over cases beside intervals over whole relations",
    "floor": "the numerical floor of each trace",
}
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def cards(source: Source) -> list[dict[str, str]]:
    """The answer in a few numbers: name, value, note."""
    found = []
    if source.usable:
        relations = len({case.relation_id for case in source.usable})
        note = f"facts of {counted(relations, 'relation')}"
        found.append({"name": "Usable cases", "value": f"{len(source.usable):,}", "note": note})
    sweeps, layer = source.sweeps(), source.layer
    if sweeps and layer is not None:
        half, trace = next(iter(sweeps.items()))
        own = trace.summary(**source.statistics)
        own = own[own.layer == layer]
        if len(own):
            row = own.iloc[0]
            note = f"{number(row['mean'], sign=True)} logits on {half} ({interval(row.ci_low, row.ci_high)})"
            found.append({"name": "Selected layer", "value": f"L{layer}", "note": note})
    contrast = specificity_of(source)
    if not isinstance(contrast, str):
        half, _, spec = contrast
        table = spec.summary(**source.statistics).set_index("quantity")
        for name, quantity in (("Selected expert", "rescue"), ("Its specificity", "specificity")):
            row = table.loc[quantity]
            value = str(spec.star) if quantity == "rescue" else number(row["mean"], sign=True)
            lead = f"{number(row['mean'], sign=True)} logits" if quantity == "rescue" else "logits"
            note = f"{lead} on {half} ({interval(row.ci_low, row.ci_high)}), {p_text(row.p_value)}"
            found.append({"name": name, "value": value, "note": note})
    return found


def asked_section(source: Source) -> Section:
    """The question and how it is put, for a reader who doesn't know the paper."""
    lead = [
        f"A Mixture-of-Experts model, {source.model_name}, reads the start of a fact and should continue it "
        "with the true object rather than a foil. Which of its layers, and which of the experts that its "
        "routers choose, carry that recall?",
        f"The prompt runs twice: clean, and {_corrupted(source)}, which makes the model lose the fact. Then "
        "one internal part of the noised run gets its clean value back, at the last token alone, and the "
        "model runs on.",
    ]
    return Section("asked", "What was asked", lead, extra={"terms": TERMS})


def _corrupted(source: Source) -> str:
    """What happens to the subject's tokens, for a reader who doesn't know the paper."""
    noise = source.provenance.get("noise", {})
    scale = noise.get("scale", 3) if isinstance(noise, dict) else 3
    scale = source.setting("noise_scale", scale)
    return {
        "noise": f"with Gaussian noise of {scale} standard deviations of the embedding on the subject's "
        "tokens",
        "uniform": f"with uniform noise of up to {scale} standard deviations of the embedding on the "
        "subject's tokens",
        "mean": "with the vocabulary's mean embedding in the place of the subject's tokens",
        "zero": "with zeros in the place of the embeddings of the subject's tokens",
        "swap": "with another subject of the same relation in the place of its own",
    }.get(source.setting("corruption", "noise"), "with a corruption of the user's on the subject's tokens")


def settings_section(source: Source) -> Section:
    """Settings, what it cost, and where it comes from."""
    title = "Settings and provenance"
    # Ids are in Table 8, settings in a table of their own.
    elsewhere = ("case_ids", "failed_case_ids", "settings")
    provenance = {name: value for name, value in source.provenance.items() if name not in elsewhere}
    tables = []
    settings, counts = source.named("settings"), source.named("counts")
    if counts:
        tables.append(Table.pairs(_readable(counts), "What it cost", open=True))
    stages = source.get("stages")
    if isinstance(stages, pd.DataFrame) and len(stages):
        tables.append(Table.of(stages, "What each stage cost: bytes of weights, seconds"))
    if settings:
        tables.append(Table.pairs(settings, "Settings of the run"))
    if provenance:
        tables.append(Table.pairs(provenance, "Where the numbers come from"))
    if not tables:
        return Section.without("settings", title, "The run names neither settings nor provenance.")
    missing = [name for name, known in (("settings", settings), ("counts", counts)) if not known]
    lead = [f"Not in this run: {', '.join(missing)}."] if missing else []
    return Section("settings", title, lead, tables=tables)


def tables_section(source: Source) -> Section:
    """The paper's tables, as this run fills them, and what the run has beyond them."""
    title = "The paper's tables"
    tables = source.get("tables") or {}
    if not tables:
        return Section.without("tables", title, "The run holds no tables.")
    order = sorted(map(str, tables), key=lambda name: (not name.isdigit(), name.zfill(3)))
    named = {str(name): table for name, table in tables.items()}
    shown = [_table(named[name], name) for name in order]
    beyond = source.get("beyond") or {}
    shown += [_beyond(beyond[name], text) for name, text in BEYOND.items() if name in beyond]
    lead = ["Numbered as in the paper. A head sorts its column; the files of the run hold every digit."]
    return Section("tables", title, lead, tables=shown)


def _table(frame: pd.DataFrame, name: str) -> Table:
    """One of the paper's, with its caption and note where it brings them."""
    title = frame.attrs.get("caption") or TITLES.get(name, "")
    note = frame.attrs.get("note") or ("" if len(frame) else "This run has nothing for it.")
    return replace(Table.of(frame, f"Table {name}. {title}".strip(". "), plain=False), note=str(note))


def _beyond(frame: pd.DataFrame, text: str) -> Table:
    return Table.of(frame, f"Beyond the paper: {text}")


def cite_section(_: Source) -> Section:
    """How to cite the method and the program."""
    return Section("cite", "How to cite", extra={"entries": {"The method": PAPER, "The program": SOFTWARE}})


def _readable(counts: dict[str, Any]) -> dict[str, Any]:
    """Counts with units; what isn't a number stays."""
    found: dict[str, Any] = {}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            found[name] = value
        elif "bytes" in name:
            factor, unit = next(((size, word) for size, word in _UNITS if value >= size), (1, "bytes"))
            found[name] = f"{value / factor:.3g} {unit}"
        elif "seconds" in name:
            found[name] = f"{value:,.1f} s"
        else:
            found[name] = f"{value:,}"
    return found
