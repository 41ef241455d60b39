"""The protocol's settings as options of a command, and as ``--set name=value``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from moetrace.arguments import nearest, shown
from moetrace.cli.console import Command, wrong_use
from moetrace.errors import ArgumentError

# For each setting what its value looks like ("" is a flag) and what it means.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Cases": {
        "n": ("N", "Usable cases to collect."),
        "margin": ("X", "Least clean logit difference of a usable case."),
        "drop": ("X", "Least clean minus noised logit difference."),
        "seed": ("N", "Seed of record order, split and folds."),
        "split": ("shuffle|scan", "Halves by a shuffle, or in scan order."),
        "fraction": ("X", "Share of the cases for discovery."),
        "final_subject": ("drop|keep", "Prompts that end with the subject."),
        "foil": ("none|relation", "The record's own foil, or another object of its relation."),
    },
    "Corruption": {
        "corruption": ("noise|mean|zero|uniform|swap", "What becomes of the subject in the noised run."),
        "noise_scale": ("X", "In standard deviations of the embeddings."),
        "noise_seed": ("N", "Seed; each case adds its id."),
        "noise_draws": ("N", "Draws of each case."),
        "scales": ("X,X,…", "Noise scales of Table 13."),
    },
    "Experts": {
        "min_active": ("X", "Share or number of cases in which an expert must be clean-active."),
        "mean": ("active|all", "Mean rescue over its active cases, or over all."),
        "controls": ("auto|N", "Active-random controls of a case."),
        "controls_seed": ("N", "Seed of the controls."),
        "stability_seeds": ("N,N,…", "Split seeds of the stability table."),
        "stability_thresholds": ("X,X,…", "Activity thresholds of the stability table."),
        "folds": ("N", "Folds of the selection with relations held out."),
        "shapley": ("", "Patch every subset of the routed experts too."),
        "expert_map": ("", "Trace the experts of every layer."),
    },
    "Relaxed scale-up": {
        "relaxed": ("", "Add it (appendix F)."),
        "relaxed_n": ("N", "Its cases."),
        "relaxed_margin": ("X", "Its margin."),
        "relaxed_drop": ("X", "Its drop."),
        "relaxed_split": ("shuffle|scan", "Its split."),
    },
    "Statistics": {
        "ci": ("percentile|bca|basic", "Kind of interval."),
        "confidence": ("X", "Level of intervals."),
        "n_resamples": ("N", "Bootstrap resamples."),
        "n_flips": ("N", "Sign flips of a test."),
        "statistics_seed": ("N", "Seed of both."),
    },
    "How it runs": {
        "label": ("TEXT", "What tables call the model; its own name by default."),
        "engine": ("auto|tree|reference", "One pass for all runs of a case, or one for each patch."),
        "readout": ("exact|model", "Logits in float64, or as the model rounds them."),
        "compute_dtype": ("none|float32", "Compute in float32 from half-precision weights."),
        "batch_tokens": ("auto|N", "Token rows of a batch."),
    },
}
_SETTINGS = {name: own for group in GROUPS.values() for name, own in group.items()}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes_settings(function: _Function) -> _Function:
    """Give a command an option for each setting, in place of its ``**settings``."""
    hints = get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    options = [_option(name, group) for group, names in GROUPS.items() for name in names]
    function.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return function


def _option(name: str, group: str) -> inspect.Parameter:
    (metavar, text), flag = _SETTINGS[name], f"--{name.replace('_', '-')}"
    if metavar:
        option = typer.Option(flag, metavar=metavar, help=text, rich_help_panel=group)
        annotation: Any = Annotated[str | None, option]
    else:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=text, rich_help_panel=group)
        annotation = Annotated[bool | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


class ProtocolCommand(Command):
    """Its help also says what each setting is by default."""

    def line(self, ctx: Any, parameter: Any) -> tuple[str, str] | None:
        """The help of an option, with the default of the paper and those of other presets."""
        found = super().line(ctx, parameter)
        if found is None or parameter.name not in _SETTINGS:
            return found
        return found[0], found[1] + _default(parameter.name)


def _default(name: str) -> str:
    from moetrace.protocol.settings import PRESETS, Settings

    values = {"": getattr(Settings(), name)}
    values |= {f"{preset}: ": own[name] for preset, own in PRESETS.items() if name in own}
    told = "; ".join(f"{preset}{_plain(value)}" for preset, value in values.items() if value != "")
    return f" [{told}]" if told else ""


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def chosen(preset: str, options: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """Settings that were given as options or as ``name=value``, checked. BadParameter where one is wrong."""
    from moetrace.protocol.settings import Settings

    found = {name: value for name, value in options.items() if value is not None}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            raise typer.BadParameter(f"--set {pair!r} sets nothing; expected name=value, as margin=0.5")
        name = name.replace("-", "_")
        if name not in Settings.names():
            raise typer.BadParameter(
                f"there is no setting {name!r}{nearest(name, Settings.names())}; --help lists them"
            )
        if name in found:
            raise typer.BadParameter(f"{name} is given twice")
        found[name] = text
    given = {name: read(name, value) for name, value in found.items()}
    with wrong_use():
        Settings.of(preset, **given)
    return given


def read(name: str, text: str | bool) -> Any:
    """A setting's value from its text: JSON, and more readable: ``1,3`` is a list, ``none`` is None.

    >>> read("scales", "1,3"), read("foil", "none"), read("label", "7")
    ([1, 3], None, '7')
    """
    metavar = _SETTINGS[name][0]
    if isinstance(text, bool) or metavar == "TEXT":
        return text
    if metavar.startswith("none") and text.lower() == "none":
        return None
    if not metavar:
        text = {"yes": "true", "no": "false"}.get(text.lower(), text.lower())
    if metavar.endswith("…") and not text.lstrip().startswith("["):
        return [_json(item) for item in text.split(",")]
    return _json(text)


def read_layers(text: str | None) -> list[int] | None:
    """Layers as typed; ArgumentError for what is no number.

    >>> read_layers("3,5"), read_layers(None)
    ([3, 5], None)
    """
    if text is None:
        return None
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise ArgumentError(f"layers is {shown(text)}; expected numbers, as 3,5") from None


def _json(text: str) -> Any:
    """A JSON value, or the text where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()
