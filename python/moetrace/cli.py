"""The command line: ``moetrace demo`` and ``moetrace run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

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
    n: Annotated[int, typer.Option(help="Usable cases to collect.")] = 256,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="As in transformers, for instance auto.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of record order and split.")] = 0,
) -> None:
    """Select cases, sweep layers on the discovery half, validate the best layer on the other half."""
    from moetrace.cases import load_records
    from moetrace.models.load import load_model
    from moetrace.protocol.layers import layer_protocol

    records = load_records(cases)
    loaded, tokenizer = load_model(model, dtype=dtype, device_map=device_map)
    layer_protocol(loaded, tokenizer, records, out=out, n=n, seed=seed, echo=typer.echo)


def main() -> None:
    """Entry point: an expected error is one line, not a traceback."""
    try:
        app()
    except MoetraceError as failure:
        typer.echo(f"moetrace: {failure}", err=True)
        sys.exit(1)
