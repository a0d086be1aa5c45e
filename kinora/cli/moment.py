"""`--at` and `--at-position`: what every `show` takes to look back."""

from typing import Annotated

import typer

At = Annotated[
    str | None, typer.Option("--at", metavar="TIME", help="As it was then, such as 2026-01-31T12:00:00Z.")
]
AtPosition = Annotated[
    int | None, typer.Option("--at-position", min=1, help="As it was at this position of the log.")
]
