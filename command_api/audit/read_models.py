"""Samples aggregates and compares the rows of every read model with their events, folded again.

Three samples a round: what changed last, some at random, and the next of a walk through all of them, which in
the end has seen every stream of the log and every row of every view.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection, errors

from command_api import metrics
from command_api.audit import sweeps
from command_api.audit.findings import Findings, Subject
from projections.audit import (
    Difference,
    any_streams,
    changed_streams,
    comparable,
    compare_streams,
    next_rows,
    next_streams,
)
from projections.reader import read_head
from projections.view import View

logger = logging.getLogger(__name__)

CHANGED = 50
RANDOM = 20
SWEPT = 50
"""Streams per round."""

SECOND_LOOK_SECONDS = 0.5
"""Until what differed is looked at again: a rebuild may have swapped the tables in between."""


@dataclass
class ReadModelAudit:
    """Compares round by round; each takes as long as it takes, and says so to whoever paces it."""

    connection: AsyncConnection[Any]
    views: Sequence[View]
    findings: Findings
    _seen: int = field(default=0, init=False)
    _incomparable: dict[str, str | None] = field(default_factory=dict, init=False)

    async def round(self) -> None:
        """Look at one sample in every view."""
        head = await read_head(self.connection)
        sample = set(await changed_streams(self.connection, self._seen, head, CHANGED))
        sample.update(await any_streams(self.connection, head, RANDOM))
        self._seen = head
        after = await sweeps.cursor_of(self.connection, sweeps.STREAMS)
        swept = await next_streams(self.connection, after, SWEPT)
        for view in self.views:
            await self._tell_whether_comparable(view)
            known = {each.about for each in self.findings.open if each.name == view.name}
            await self._look(view, sorted(sample | set(swept) | known))
        await self._note(sweeps.STREAMS, swept)
        for view in self.views:
            await self._sweep_rows(view)

    async def _tell_whether_comparable(self, view: View) -> None:
        """A view that nobody compares is one of which nobody knows whether it is right."""
        reason = await comparable(self.connection, view)
        metrics.AUDIT_INCOMPARABLE.labels(view.name).set(reason is not None)
        if reason != self._incomparable.get(view.name):
            if reason is not None:
                logger.warning("audit: %s cannot be compared now: %s", view.name, reason)
            self._incomparable[view.name] = reason

    async def _sweep_rows(self, view: View) -> None:
        """Rows that no stream of the log explains are found from their side only."""
        for table in view.tables:
            name = sweeps.rows_of(view.name, table.name)
            after = await sweeps.cursor_of(self.connection, name)
            try:
                ids = await next_rows(self.connection, view, table, after, SWEPT)
            except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName):
                continue  # not made yet, or another version's
            await self._look(view, ids)
            await self._note(name, ids)

    async def _note(self, sweep: str, ids: Sequence[str]) -> None:
        if len(ids) == SWEPT:
            await sweeps.go_on(self.connection, sweep, ids[-1], len(ids))
        else:
            await sweeps.finish(self.connection, sweep)

    async def _look(self, view: View, stream_ids: Sequence[str]) -> None:
        if not stream_ids:
            return
        differing = {each.stream_id: each for each in await self._differences(view, stream_ids)}
        if differing:
            await asyncio.sleep(SECOND_LOOK_SECONDS)
            again = await self._differences(view, list(differing))
            differing = {each.stream_id: each for each in again}
        for stream_id, difference in differing.items():
            await self.findings.found(
                Subject("read_model", view.name, stream_id),
                difference.detail,
                f"kinora projections rebuild {view.name}",
                difference.organization_id,
            )

    async def _differences(self, view: View, stream_ids: Sequence[str]) -> Sequence[Difference]:
        try:
            found = await compare_streams(self.connection, view, stream_ids)
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName):
            return ()  # a rebuild just swapped it; the next round tells if it stays so
        if found is None:
            return ()
        counts = {"same": found.same, "differs": len(found.differences), "parked": len(found.parked)}
        for outcome, number in counts.items():
            metrics.AUDITED_STREAMS.labels(view.name, outcome).inc(number)
        differing = {each.stream_id for each in found.differences}
        for each in self.findings.open:
            same = each.about in stream_ids and each.about not in differing | set(found.parked)
            if each.check == "read_model" and each.name == view.name and same:
                await self.findings.healed(each, f"compared at position {found.position}")
        return found.differences
