"""What a view is to the machinery that keeps it: a name, a version, tables, and a fold in two forms.

Every row of a view belongs to one stream. That is why one bad event holds up its own aggregate alone, why a
rebuild may fold stream by stream, on several cores, and why any stream can be folded again to check its rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, Protocol

from psycopg import AsyncCursor

from schemas.envelope import Recorded

Census = tuple[tuple[str, tuple[str, ...] | None], ...]
"""Pairs of a table and event types: a row per stream that begins with one, or with None per event."""

Row = tuple[Any, ...]
Rows = Mapping[str, Sequence[Row]]
"""Rows by table, each in the order of the table's columns."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a view; its keys and indexes can be made after it was filled."""

    name: LiteralString
    stream: LiteralString
    """The column that names the stream to which a row belongs."""
    columns: tuple[LiteralString, ...]
    """Each as in CREATE TABLE: name, type, constraints."""
    key: LiteralString
    indexes: tuple[LiteralString, ...] = ()
    """Whole statements."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.split()[0].strip('"') for column in self.columns)

    @property
    def create(self) -> LiteralString:
        return f"CREATE TABLE {self.name} ({', '.join(self.columns)})"

    @property
    def finish(self) -> tuple[LiteralString, ...]:
        """What a filled table lacks."""
        return (f"ALTER TABLE {self.name} ADD PRIMARY KEY ({self.key})", *self.indexes)


class StreamFold(Protocol):
    """One stream, folded from its first event on in memory; pure."""

    def add(self, recorded: Recorded) -> None:
        """Fold the next event. One that raises leaves everything as it was before."""

    def rows(self) -> Rows:
        """What the view's tables hold of the stream now."""


class View(Protocol):
    """One read model. Its tables live in their own PostgreSQL schema, ``view_<name>``.

    `tables` and `apply` name tables without a schema: the caller sets the search path, so that the same
    statements fill the active tables and the ones being built beside them. Queries say ``view_<name>.``.
    """

    @property
    def name(self) -> str:
        """Lower-case word; names schema, position and rebuild."""

    @property
    def version(self) -> int:
        """Raised with every change of tables or fold; a rebuild follows at the next start."""

    @property
    def tables(self) -> Sequence[Table]:
        """What it fills."""

    @property
    def types(self) -> tuple[str, ...] | None:
        """Event types of interest; None for all. Others only move the position."""

    @property
    def census(self) -> Census:
        """How many rows tables must hold after a rebuild."""

    def begin(self) -> StreamFold:
        """A stream before its first event: how a rebuild folds."""

    async def apply(self, cursor: AsyncCursor[Any], events: Sequence[Recorded]) -> None:
        """Fold events, in log order, into the tables; a whole page, or one after a page has failed."""


def active_schema(view: str) -> str:
    """Where queries read; the swap of a rebuild renames another schema to it."""
    return f"view_{view}"


def next_schema(view: str) -> str:
    """Where a rebuild builds."""
    return f"view_{view}_next"


def check_schema(view: str) -> str:
    """Where a rebuild folds a sample a second time."""
    return f"view_{view}_check"


def retired_schema(view: str) -> str:
    """Where the former tables wait to be dropped."""
    return f"view_{view}_retired"
