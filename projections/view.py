"""What a view is to the machinery that keeps it: a name, a version, tables, and a fold."""

from collections.abc import Sequence
from typing import Any, LiteralString, Protocol

from psycopg import AsyncCursor

from schemas.envelope import Recorded

Census = tuple[tuple[str, tuple[str, ...] | None], ...]
"""Pairs of a table and event types: one row per stream that has one of these, or with None per event."""


class View(Protocol):
    """One read model. Its tables live in their own PostgreSQL schema, ``view_<name>``.

    `ddl` and `apply` name tables without a schema: the caller sets the search path, so that the same
    statements fill the active tables and the ones being built beside them. Queries say ``view_<name>.``.
    """

    @property
    def name(self) -> str:
        """Lower-case word; names schema, position and rebuild."""

    @property
    def version(self) -> int:
        """Raised with every change of tables or fold; a rebuild follows at the next start."""

    @property
    def ddl(self) -> Sequence[LiteralString]:
        """Statements that make the empty tables."""

    @property
    def types(self) -> tuple[str, ...] | None:
        """Event types of interest; None for all. Others only move the position."""

    @property
    def census(self) -> Census:
        """How many rows tables must hold after a rebuild."""

    async def apply(self, cursor: AsyncCursor[Any], events: Sequence[Recorded]) -> None:
        """Fold events, in log order, into the tables; a whole page, or one after a page has failed."""


def active_schema(view: str) -> str:
    """Where queries read; the swap of a rebuild renames another schema to it."""
    return f"view_{view}"


def next_schema(view: str) -> str:
    """Where a rebuild builds."""
    return f"view_{view}_next"


def retired_schema(view: str) -> str:
    """Where the former tables wait to be dropped."""
    return f"view_{view}_retired"
