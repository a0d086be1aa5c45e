"""`kinora demo`."""

from pathlib import Path
from typing import Annotated

import typer

from kinora.cli.output import EXIT_JOB_FAILED, door, out, talk


@door
def demo(
    videos: Annotated[
        Path | None,
        typer.Option(help="Folder with your own clips and captions.jsonl, .json, .csv or .parquet."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where results and the demo's data folder go.")] = Path(
        "demo-output"
    ),
) -> None:
    """Fine-tune a tiny video model end to end and show what happened."""
    # matplotlib takes a second to import, which no other command should pay.
    from kinora.demo.story import run_demo

    try:
        result = run_demo(output, videos, out)
    except KeyboardInterrupt:
        talk.print("interrupted; everything that was started is stopped")
        raise typer.Exit(130) from None
    if not result.succeeded:
        raise typer.Exit(EXIT_JOB_FAILED)
