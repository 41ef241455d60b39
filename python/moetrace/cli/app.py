"""The commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moetrace import __version__
from moetrace.cli.console import Command, Commands, plain_errors, rank, say, wrong_use
from moetrace.cli.options import ProtocolCommand, chosen, read_layers, takes_settings

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which layers and experts of a Mixture-of-Experts language model carry a fact?",
    epilog="""\b
Examples:
  moetrace demo
  moetrace plan Qwen/Qwen3-30B-A3B-Base --cases counterfact
  moetrace run Qwen/Qwen3-30B-A3B-Base --cases counterfact --out runs/qwen3
  moetrace report runs/qwen3
  moetrace show runs/qwen3

\b
Exit codes: 0 done, 1 an error that the message explains, 2 the command was
not understood, 130 stopped with Ctrl-C: the same command goes on.""",
)

_RUN_EXAMPLES = """\b
Examples:
  moetrace run Qwen/Qwen3-30B-A3B-Base --cases counterfact --out runs/qwen3
  moetrace run ./model --cases facts.csv --out runs/mine --preset quick
  moetrace run ./model --cases runs/mine/usable.json --out runs/again \\
      --noise-scale 2 --scales 1,2,3 --set min_active=0.25
  moetrace run ./model --cases facts.csv --out runs/swapped --corruption swap

The same command goes on with a run that was stopped."""

_PLAN_EXAMPLES = """\b
Examples:
  moetrace plan Qwen/Qwen3-30B-A3B-Base --cases counterfact
  moetrace plan ./model --cases facts.csv --stream --dtype bfloat16
  moetrace plan ./model --cases runs/mine/usable.json --what experts --json"""

_Preset = Annotated[str, typer.Option(metavar="paper|relaxed|quick", help="Where settings begin.")]
_Pairs = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting by name; may be given again."),
]
_Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="auto, float32, bfloat16 or float16.")]
_Progress = Annotated[
    bool,
    typer.Option("--progress/--no-progress", help="A bar in a terminal, else a line now and then."),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"moetrace {__version__}")
        raise typer.Exit


@app.callback()
def _moetrace(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The command without a subcommand."""


@app.command(
    cls=Command, epilog="\b\nExamples:\n  moetrace demo\n  moetrace demo --n 64 --out runs/demo --no-progress"
)
def demo(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the tables and the picture.")
    ] = Path("moetrace-demo"),
    n: Annotated[int, typer.Option(metavar="N", help="Usable cases to collect, 4 or more.")] = 256,
    progress: _Progress = True,
) -> None:
    """Trace the layers of the bundled model.

    Selects cases, sweeps the layers on one half, validates them on the other, prints the table and draws it.
    """
    with plain_errors(ctx, "What was traced is kept, and the same command goes on: "):
        from moetrace.cli.inputs import check_folder
        from moetrace.demo import demo_records, load_demo
        from moetrace.protocol.layers import as_enough, layer_protocol
        from moetrace.ranks.start import started

        with wrong_use():
            n = as_enough(n)
        with started("moetrace demo"):
            check_folder(out)
            model, tokenizer = load_demo()
            layer_protocol(model, tokenizer, demo_records(), out=out, n=n, progress=progress, echo=say)


@app.command(cls=ProtocolCommand, epilog=_RUN_EXAMPLES)
@takes_settings
def run(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id or folder of a causal language model.")
    ],
    cases: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Records (JSON, JSONL, CSV, Parquet, a hub data set, or counterfact), or cases that "
            "a run or CaseSet.save wrote.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the run.")],
    preset: _Preset = "paper",
    pairs: _Pairs = None,
    dtype: _Dtype = "auto",
    device_map: Annotated[
        str | None, typer.Option(metavar="MAP", help="As in transformers, for instance auto.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub.")
    ] = None,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Leave weights on disk and read them layer by layer."),
    ] = False,
    progress: _Progress = True,
    **settings: Any,
) -> None:
    """Everything that the paper reports, for a model.

    Selects cases, a layer and an expert, validates them on other cases, holds them against controls, and
    tabulates. Settings are the paper's (Table 2) unless a preset or an option says otherwise.
    """
    with plain_errors(ctx, "What was traced is kept; to go on: "):
        given = chosen(preset, settings, pairs or [])  # before seconds go into imports and loading

        from moetrace.cli.inputs import check_folder, loading_bars, read_cases
        from moetrace.models.load import load_model
        from moetrace.protocol.run import run_protocol
        from moetrace.ranks.start import started

        with started("moetrace run"):
            check_folder(out, protocol=True)
            source = read_cases(cases, given)
            with loading_bars(progress and rank() == 0):
                loaded, tokenizer = load_model(
                    model, dtype=dtype, device_map=device_map, revision=revision, stream=stream
                )
            report = run_protocol(
                loaded, tokenizer, source, preset, out=out, progress=progress, echo=say, **given
            )
            say(f"\n{report.markdown(1).rstrip()}\n\ntables: {out / 'tables'}")


@app.command(cls=ProtocolCommand, epilog=_PLAN_EXAMPLES)
@takes_settings
def plan(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id or folder; its config alone is read, no weights.")
    ],
    cases: Annotated[str, typer.Option(metavar="FILE", help="As of moetrace run.")],
    what: Annotated[
        str, typer.Option(metavar="protocol|layers|experts|knockout|select", help="What is planned.")
    ] = "protocol",
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Of layers, experts, knockout: which; all by default."),
    ] = None,
    usable: Annotated[float, typer.Option(metavar="X", help="Share of scanned cases that is usable.")] = 0.5,
    stream: Annotated[
        bool, typer.Option("--stream", help="Weights stay on disk, read layer by layer.")
    ] = False,
    timed: Annotated[
        bool, typer.Option("--timed/--no-timed", help="Time a micro-batch in one layer of this shape.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    preset: _Preset = "paper",
    pairs: _Pairs = None,
    dtype: _Dtype = "auto",
    **settings: Any,
) -> None:
    """What a run will cost, before it costs it.

    Token rows, operations, bytes read, peak memory and time of the protocol, or of one kind of trace, from
    the model's config and the cases alone. Settings are those of moetrace run.
    """
    with plain_errors(ctx):
        given = chosen(preset, settings, pairs or [])
        with wrong_use():
            asked = read_layers(layers)

        from moetrace.cli.planning import planned

        found = planned(
            model, cases, what, preset, given, layers=asked, usable=usable, dtype=dtype, stream=stream,
            timed=timed,
        )  # fmt: skip
        typer.echo(json.dumps(found.json(), indent=2) if as_json else found.text())


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  moetrace report runs/qwen3\n"
    "  moetrace report runs/qwen3 --out qwen3.html --compare qwen3-30b-a3b",
)
def report(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a finished run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file; report.html in the folder by default.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="qwen3-30b-a3b|mixtral-8x7b", help="The paper's model to compare with."),
    ] = None,
) -> None:
    """Write a run's report: one HTML file that opens without network."""
    with plain_errors(ctx):
        from moetrace.cli.reading import write_report

        typer.echo(f"report: {write_report(folder, out, compare)}")


@app.command(
    cls=Command,
    epilog="\b\nExamples:\n  moetrace show runs/qwen3 --table 13\n"
    "  moetrace show moetrace-demo/validation --correction max_t --cluster relation_id",
)
def show(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of a saved trace or of a finished run.")
    ],
    table: Annotated[
        str | None, typer.Option(metavar="N", help="Of a run: which of the paper's tables, 1 to 16.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Of a trace: at most so many rows.")] = 60,
    correction: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a trace: adjust p-values, by max_t, holm or bh.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="relation_id", help="Of a trace: resample relations.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="relation_id", help="Of a trace: a table of each relation.")
    ] = None,
) -> None:
    """Print the summary table of a saved trace or a run."""
    with plain_errors(ctx):
        from moetrace.cli.reading import told

        asked = {"correction": correction, "cluster": cluster, "by": by}
        options = {name: value for name, value in asked.items() if value is not None}
        typer.echo(told(folder, table, rows, options))


@app.command(cls=Command)
def version() -> None:
    """Print the versions of moetrace and of what its numbers depend on."""
    from moetrace.cli.versions import versions

    for name, found in versions().items():
        typer.echo(f"{name} {found}")


def main() -> None:
    """Entry point."""
    app()
