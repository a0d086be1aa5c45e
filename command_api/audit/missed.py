"""Tells of NATS subscribers whose events made room for younger ones before they were taken.

EVENTS keeps so many bytes and no more. A consumer goes on with what is left and says nothing, so somebody has
to look: a subscriber that never learns of a gap would take what it has for everything.
"""

import asyncio
from collections.abc import Mapping

import psycopg

from command_api.audit.findings import Findings, Subject
from command_api.connected import connected
from command_api.eventlog.errors import LogUnavailable
from command_api.eventlog.log import EventLog
from command_api.messaging.subscription_board import Subscriber
from schemas.subjects import EVENTS_STREAM

PAGE = 500


class Missed:
    """Opens a finding per subscriber with a gap; it is resolved when the subscription ends.

    What was acknowledged in the last seconds before it made room is told, too: nobody knows its position any
    more, and a subscriber so close to the end of the stream's room should know.
    """

    def __init__(self, log: EventLog, findings: Findings, conninfo: str) -> None:
        self._log = log
        self._findings = findings
        self._conninfo = conninfo

    async def look(
        self, subscribers: Mapping[str, Subscriber], acknowledged: Mapping[str, int], dropped: int
    ) -> None:
        """Compare what everybody has acknowledged with the position up to which the stream dropped events.

        Raises:
            LogUnavailable: the database does not answer.
        """
        await self._learn()
        for subject in self._findings.open:
            if subject.about not in subscribers:
                await self._findings.healed(subject, "the subscription has ended")
        told = {subject.about for subject in self._findings.open}
        for subscriber in subscribers.values():
            position = max(subscriber.after, acknowledged.get(subscriber.subscription_id, 0))
            if position >= dropped or subscriber.subscription_id in told:
                continue
            if await asyncio.to_thread(self._wanted_any, subscriber, position, dropped):
                await self._findings.found(
                    Subject("subscriber", EVENTS_STREAM, subscriber.subscription_id),
                    f"the stream holds what is behind position {dropped}, and what it acknowledged ends at"
                    f" position {position}: what this subscriber wants between may not have reached it",
                    f"have it by kinora events export FILE --after {position} --until {dropped}, and make the"
                    f" subscription anew: kinora subscriptions add nats NAME --from {dropped}",
                    subscriber.organization_id,
                )

    async def _learn(self) -> None:
        try:
            async with connected(self._conninfo, connect_timeout=3) as connection:
                await self._findings.learn(connection)
        except psycopg.OperationalError as error:
            raise LogUnavailable(f"findings cannot be read: {error}") from error

    def _wanted_any(self, subscriber: Subscriber, after: int, until: int) -> bool:
        wanted = subscriber.wanted
        while page := self._log.read_all(
            after, PAGE, types=wanted.types or None, organization_id=subscriber.organization_id
        ):
            for event in page:
                if event.position > until:
                    return False
                if wanted.takes(event.type, event.stream_id, event.workspace_id):
                    return True
            after = page[-1].position
        return False
