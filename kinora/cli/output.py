"""The CLI's two voices (data on stdout, talk on stderr) and the one place where errors become exit codes."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table

from kinora.client import ApiError, Client, Credentials, Json, NoCredentials, Unreachable
from kinora.settings import data_folder
from schemas.errors import KinoraError

TRACEBACK_VARIABLE = "KINORA_TRACEBACK"
"""Set to anything, faults of this program end in Python's traceback."""

out = Console()
talk = Console(stderr=True)

_GAP = 2
"""Columns are so far apart."""
_NARROWEST = 10
"""A last column folds down to this."""

P = ParamSpec("P")
R = TypeVar("R")

EXIT_FAULT = 1
EXIT_USAGE, EXIT_AUTH, EXIT_NOT_FOUND, EXIT_CONFLICT, EXIT_JOB_FAILED, EXIT_UNREACHABLE = 2, 3, 4, 5, 6, 7
_BY_STATUS = {401: EXIT_AUTH, 403: EXIT_AUTH, 404: EXIT_NOT_FOUND, 409: EXIT_CONFLICT} | {
    **dict.fromkeys((400, 408, 413, 415, 422), EXIT_USAGE),
    **dict.fromkeys((429, 502, 503, 504, 507), EXIT_UNREACHABLE),
}


class Unforeseen(KinoraError):
    """A fault of this program, not of its user."""

    code = "internal"


class LocalFileError(KinoraError):
    """A file or folder of this machine cannot be used."""

    code = "local_file"


def exit_code(error: KinoraError) -> int:
    """The documented exit code of an error."""
    match error:
        case ApiError():
            return _BY_STATUS.get(error.status, 1)
        case Unreachable():
            return EXIT_UNREACHABLE
        case NoCredentials():
            return EXIT_AUTH
        case Unforeseen():
            return EXIT_FAULT
        case _:
            return EXIT_USAGE


def fail(error: KinoraError) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    said = f"[bold red]error[/] [dim]{escape(error.code)}[/]: {escape(error.message)}"
    talk.print(said, highlight=False, soft_wrap=True)
    for detail in error.errors:
        line = f"  [bold]{escape(detail.pointer)}[/] {escape(detail.message)}"
        talk.print(line, highlight=False, soft_wrap=True)
    if isinstance(error, ApiError) and error.problem.get("request_id"):
        talk.print(f"  [dim]request {escape(str(error.problem['request_id']))}[/]")
    raise typer.Exit(exit_code(error))


def door(function: Callable[P, R]) -> Callable[P, R]:
    """A command whose `KinoraError`s end in a clear message instead of a traceback."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KinoraError as error:
            fail(error)
        except OSError as error:
            fail(LocalFileError(f"{error.filename or 'a local file'}: {error.strerror or error}"))
        except Exception as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            fail(Unforeseen(f"{type(error).__name__}: {error}; {TRACEBACK_VARIABLE}=1 shows where"))

    return guarded


def connect() -> Client:
    """A client of the service that this person's data folder or environment names."""
    home = data_folder()
    return Client(Credentials.find(home), session_file=home / "run" / "cli-session.json")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_lines(values: Iterable[Any]) -> None:
    """NDJSON on stdout, each line at once."""
    for value in values:
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def print_table(rows: Sequence[Json], columns: dict[str, Callable[[Json], str]], empty: str) -> None:
    """A table on stdout; a hint on stderr when there is nothing to show.

    No cell is ever cut. In a terminal too narrow for the table, the last column folds, and then columns
    between are left out, never the first two; anywhere else the table is as wide as it is.
    """
    if not rows:
        talk.print(empty, style="dim")
        return
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    widths = {name: max(map(cell_len, (name, *column))) for name, column in cells.items()}
    shown, last = fitting(widths, out.width) if out.is_terminal else (list(cells), None)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name in shown[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(shown[-1], max_width=last, overflow="fold")
    for row_cells in zip(*(cells[name] for name in shown), strict=True):
        table.add_row(*map(escape, row_cells))
    _print_whole(table)
    if left_out := [name for name in cells if name not in shown]:
        talk.print(f"left out in this width: {', '.join(left_out)}; --json prints all", style="dim")


def fitting(widths: Mapping[str, int], room: int) -> tuple[list[str], int | None]:
    """The columns that fit into `room` characters, and how wide the last one may be; None: as it is.

    Even when nothing else fits, the first two columns stay whole: what the next command needs.
    """
    *kept, last = widths
    fixed, narrowest = list(kept[:2]), min(widths[last], _NARROWEST)

    def taken() -> int:
        return sum(widths[name] + _GAP for name in kept)

    while taken() + narrowest > room and len(kept) > len(fixed):
        kept.remove(max(kept[2:], key=lambda name: widths[name]))
    left = max(room - taken(), narrowest)
    return [*kept, last], left if left < widths[last] else None


def _print_whole(table: Table) -> None:
    """Never cut: an id that does not fit wraps in the terminal, where it can still be copied."""
    wide = out.options.update(width=10_000)
    width = max(Measurement.get(out, wide, table).maximum, 1)
    # Printing the table itself would limit it to the console's width: of a pipe, 80.
    out.print(Segments(out.render(table, wide.update(width=width))), crop=False, end="")


def print_facts(facts: dict[str, object]) -> None:
    """Name and value pairs, one a line; None is left out."""
    table = Table.grid(padding=(0, _GAP))
    for name, value in facts.items():
        if value is not None:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(f"[dim]{escape(name)}[/]", escape(text))
    _print_whole(table)


def short(identifier: str) -> str:
    """Enough of an id to tell it apart where there is no room; actors without one stay whole."""
    prefix, _, rest = identifier.partition("_")
    return f"{prefix}_…{rest[-6:]}" if len(rest) == 32 else identifier


def age(timestamp: str) -> str:
    """How long ago, in its largest unit: ``12s``, ``3m``, ``5h``, ``9d``."""
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(count: float | None) -> str:
    """Bytes in powers of 1024."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
