"""How an attempt's story reaches the control plane: numbered, in order, each part until it is stored."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog
from opentelemetry import trace

from schemas.subjects import REPORTS_STREAM, report_subject
from schemas.work import HeldItem, Report, ReportBody
from trainer_agent.connection import Connection
from trainer_agent.errors import NoAnswer, ReportTooLarge
from trainer_agent.metrics import SPOOL_REPORTS
from trainer_agent.outage import Outage
from trainer_agent.settings import AgentSettings
from trainer_agent.spool import Spool
from trainer_agent.tracing import traceparent_of
from trainer_agent.waiting import Backoff, running

log = structlog.get_logger()

LARGEST_REPORT_BYTES = 240 * 1024
"""A report becomes an event, and an event holds at most 256 KiB with its envelope."""


class Reporter:
    """Writes reports to the spool and sends them from there; see `reporting`."""

    def __init__(self, connection: Connection, settings: AgentSettings, held: HeldItem, spool: Spool) -> None:
        self._connection = connection
        self._held = held
        self._spool = spool
        self._subject = report_subject(settings.organization_id, settings.agent_id, held.item_id)
        self._traceparent = traceparent_of(trace.get_current_span())
        self._numbering = asyncio.Lock()
        self._changed = asyncio.Condition()

    async def report(self, body: ReportBody) -> int:
        """Give `body` the next number and keep it; it is sent in the background.

        Raises:
            ReportTooLarge: no event could carry it; nothing was numbered.
        """
        async with self._numbering:
            report = Report(
                item_id=self._held.item_id,
                attempt=self._held.attempt,
                sequence=self._spool.last_sequence + 1,
                occurred_at=datetime.now(UTC),
                body=body,
            )
            if (size := len(report.model_dump_json().encode())) > LARGEST_REPORT_BYTES:
                raise ReportTooLarge(
                    f"a {body.kind} report of {size} bytes is over {LARGEST_REPORT_BYTES}; store an object"
                )
            try:
                await asyncio.to_thread(self._spool.write, report)
            except OSError as error:
                # From memory it is still sent; only a crash of this agent would now lose it.
                log.warning("spool_unwritable", error=str(error))
            self._spool.add(report)
            SPOOL_REPORTS.set(self._spool.waiting)
        async with self._changed:
            self._changed.notify_all()
        return report.sequence

    async def drained(self) -> None:
        """Wait until everything reported so far is stored."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._spool.first_unacknowledged() is None)

    async def send(self) -> None:
        """Send what the spool holds, one after the other, for ever."""
        backoff, outage = Backoff(longest=2.0), Outage()
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._spool.first_unacknowledged() is not None)
            report = self._spool.first_unacknowledged()
            assert report is not None  # noqa: S101 - only this task takes reports away
            try:
                await self._publish(report)
            except NoAnswer as error:
                if outage.worth_saying(time.monotonic()):
                    log.warning("report_not_stored_yet", sequence=report.sequence, error=error.message)
                await backoff.wait()
                continue
            backoff.reset()
            if outage.over():
                log.info("reports_stored_again", sequence=report.sequence)
            self._spool.acknowledge(report.sequence)
            SPOOL_REPORTS.set(self._spool.waiting)
            async with self._changed:
                self._changed.notify_all()

    async def _publish(self, report: Report) -> None:
        message_id = f"{report.item_id}:{report.attempt}:{report.sequence}"
        await self._connection.publish_stored(
            self._subject,
            report,
            stream=REPORTS_STREAM,
            message_id=message_id,
            traceparent=self._traceparent,
        )


@asynccontextmanager
async def reporting(
    connection: Connection, settings: AgentSettings, held: HeldItem, spool: Spool
) -> AsyncIterator[Reporter]:
    """A reporter whose sending lives as long as the block; the spool's file stays until it is discarded."""
    reporter = Reporter(connection, settings, held, spool)
    SPOOL_REPORTS.set(spool.waiting)
    try:
        async with running(reporter.send()):
            yield reporter
    finally:
        SPOOL_REPORTS.set(0)
        spool.close()
