"""The command line: ``moetrace demo`` and ``moetrace run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moetrace.errors import MoetraceError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which layers of a Mixture-of-Experts language model carry a fact?",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the tables and the picture.")] = Path("moetrace-demo"),
    n: Annotated[int, typer.Option(help="Usable cases to collect.")] = 256,
) -> None:
    """Trace the bundled model end to end: select cases, sweep layers, validate, draw."""
    from moetrace.demo import demo_records, load_demo
    from moetrace.protocol.layers import layer_protocol

    model, tokenizer = load_demo()
    layer_protocol(model, tokenizer, demo_records(), out=out, n=n, echo=typer.echo)


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a causal language model.")],
    cases: Annotated[
        str, typer.Option(help="Records: a JSON, JSONL, CSV or Parquet file, or a hub data set.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run; the same command resumes it.")],
    preset: Annotated[str, typer.Option(help="paper, relaxed or quick.")] = "paper",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as name=value; may be given again.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Usable cases to collect.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="As in transformers, for instance auto.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of record order, split and folds.")] = None,
) -> None:
    """Everything that the paper reports: select cases, layer and expert, validate, compare, tabulate."""
    from moetrace.cases import load_records
    from moetrace.models.load import load_model
    from moetrace.protocol.run import run_protocol
    from moetrace.protocol.settings import Settings, parse_settings

    given: dict[str, Any] = {"n": n, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    given |= parse_settings(settings or [])
    Settings.of(preset, **given)  # what is wrong with them is said before a model is loaded
    records = load_records(cases)
    loaded, tokenizer = load_model(model, dtype=dtype, device_map=device_map)
    report = run_protocol(loaded, tokenizer, records, preset, out=out, echo=typer.echo, **given)
    typer.echo(f"\n{report.markdown(1)}")
    typer.echo(f"tables: {out / 'tables'}")


def main() -> None:
    """Entry point: an expected error is one line, not a traceback."""
    try:
        app()
    except MoetraceError as failure:
        typer.echo(f"moetrace: {failure}", err=True)
        sys.exit(1)
