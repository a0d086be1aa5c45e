"""The CLI's two voices (data on stdout, talk on stderr) and the one place where errors become exit codes."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kinora.client import ApiError, Client, Credentials, Json, NoCredentials, Unreachable
from kinora.settings import data_folder
from schemas.errors import KinoraError

out = Console()
talk = Console(stderr=True)

P = ParamSpec("P")
R = TypeVar("R")

EXIT_USAGE, EXIT_AUTH, EXIT_NOT_FOUND, EXIT_CONFLICT, EXIT_JOB_FAILED, EXIT_UNREACHABLE = 2, 3, 4, 5, 6, 7
_BY_STATUS = {401: EXIT_AUTH, 403: EXIT_AUTH, 404: EXIT_NOT_FOUND, 409: EXIT_CONFLICT, 422: EXIT_USAGE}


def exit_code(error: KinoraError) -> int:
    """The documented exit code of an error."""
    match error:
        case ApiError():
            return _BY_STATUS.get(error.status, 1)
        case Unreachable():
            return EXIT_UNREACHABLE
        case NoCredentials():
            return EXIT_AUTH
        case _:
            return EXIT_USAGE


def fail(error: KinoraError) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    talk.print(f"[bold red]error[/] [dim]{escape(error.code)}[/]: {escape(error.message)}", highlight=False)
    for detail in error.errors:
        talk.print(f"  [bold]{escape(detail.pointer)}[/] {escape(detail.message)}", highlight=False)
    if isinstance(error, ApiError) and error.problem.get("request_id"):
        talk.print(f"  [dim]request {escape(str(error.problem['request_id']))}[/]")
    raise typer.Exit(exit_code(error))


def door(function: Callable[P, R]) -> Callable[P, R]:
    """A command whose `KinoraError`s end in a clear message instead of a traceback."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except KinoraError as error:
            fail(error)

    return guarded


def connect() -> Client:
    """A client of the service that this person's data folder or environment names."""
    return Client(Credentials.find(data_folder()))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_lines(values: Iterable[Any]) -> None:
    """NDJSON on stdout, each line at once."""
    for value in values:
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def print_table(rows: Sequence[Json], columns: dict[str, Callable[[Json], str]], empty: str) -> None:
    """A table on stdout; a hint on stderr when there is nothing to show."""
    if not rows:
        talk.print(empty, style="dim")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell(row)) for cell in columns.values()))
    out.print(table)


def print_facts(facts: dict[str, object]) -> None:
    """Name and value pairs, one a line; None is left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value is not None:
            table.add_row(f"[dim]{escape(name)}[/]", escape(str(value)))
    out.print(table)


def size(count: float | None) -> str:
    """Bytes in powers of 1024."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
