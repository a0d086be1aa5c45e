"""Compares EVENTS with the log, message by message, and has the relay fill it anew where they differ.

Two walks go on side by side: one keeps at the end of the stream, one begins at its start again and again.
After a refill the second one proves that the fault is gone.
"""

import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamInfo
from nats.js.errors import NotFoundError
from psycopg import AsyncConnection

from command_api import metrics
from command_api.audit import sweeps
from command_api.audit.findings import Findings, Subject
from command_api.audit.messages import Checked, fault_of, read_messages
from command_api.messaging.epochs import Epoch, Epochs, before_first
from projections.reader import read_head, read_page
from schemas.subjects import EVENTS_STREAM, PREVIOUS_POSITION_HEADER

logger = logging.getLogger(__name__)

BATCH = 500
WINDOW = 1000
"""Messages at the end with which a walk begins that has just started."""
STALLED_SECONDS, STALLED_LOOKS = 30.0, 6
"""For how long, and at how many looks in a row, a stream is behind and has not moved before that is told.

Looks follow one another quickly while there is much to compare, and not at all while the auditor is frozen.
"""

REMEDY = "the relay fills it anew under the next epoch; see logs/orchestrator.log while this stays open"


@dataclass(frozen=True, slots=True)
class Behind:
    """Where the stream stands, since when, and how often it was seen there."""

    position: int
    since: float
    looks: int = 1


@dataclass
class StreamAudit:
    """One look per call; whoever calls paces it."""

    client: Client
    connection: AsyncConnection[Any]
    epochs: Epochs
    findings: Findings
    log_id: str
    _tail: Checked | None = field(default=None, init=False)
    _sweep: Checked | None = field(default=None, init=False)
    _target: int | None = field(default=None, init=False)
    """The log's head when its walk began."""
    _behind: Behind | None = field(default=None, init=False)
    _goal: int | None = field(default=None, init=False)
    """What a stream that stood still has to reach: the log's head when that was found."""

    @property
    def subject(self) -> Subject:
        return Subject("stream", EVENTS_STREAM, self.log_id)

    @property
    def _js(self) -> JetStreamContext:
        return self.client.jetstream()

    async def round(self) -> bool:
        """Compare what is new at the end, and a piece of the walk; true when more should follow at once."""
        known = await self.epochs.current()
        if known is None or known.broken_because is not None:
            return False  # being filled: there is nothing to compare yet
        try:
            info = await self._js.stream_info(EVENTS_STREAM)
        except NotFoundError:
            await self._judge_progress(0)
            return False
        await self._adopt(known, info)
        fault = await self._fault_of_ends(known, info)
        if fault is None:
            fault = await self._follow() or await self._walk()
        if fault is not None and await self._still(known, info):
            await self._declare(known, fault)
            return False
        assert self._tail is not None  # noqa: S101 - adopted above
        await self._judge_progress(self._tail.position)
        return self._tail.sequence < info.state.last_seq or self.subject in self.findings.open

    async def _adopt(self, known: Epoch, info: StreamInfo) -> None:
        """Begin at a new epoch's start, or where the last auditor was."""
        start = Checked.start_of(known.epoch)
        if self._tail is None or self._tail.epoch != known.epoch:
            newest = max(info.state.first_seq, info.state.last_seq - WINDOW + 1)
            self._tail = await self._from(known.epoch, newest) or start
        if self._sweep is None:
            epoch, sequence, position = _read(await sweeps.cursor_of(self.connection, sweeps.STREAM))
            self._sweep = Checked(epoch, sequence, position)
        if self._sweep.epoch != known.epoch:
            self._sweep, self._target = start, None
            await sweeps.restart(self.connection, sweeps.STREAM)
        if self._sweep.sequence < info.state.first_seq - 1:
            # What came before was discarded to make room.
            self._sweep = await self._from(known.epoch, info.state.first_seq) or start
        if self._target is None:
            self._target = await read_head(self.connection)

    async def _from(self, epoch: int, sequence: int) -> Checked | None:
        """The place before a message, as far as it says itself."""
        found = await read_messages(self.client, sequence, 1)
        if not found:
            return None
        previous = found[0].headers.get(PREVIOUS_POSITION_HEADER, "")
        return Checked(epoch, found[0].sequence - 1, int(previous) if previous.isdigit() else 0)

    async def _fault_of_ends(self, known: Epoch, info: StreamInfo) -> str | None:
        state = info.state
        if state.last_seq < max(known.sequence, self._tail.sequence if self._tail else 0):
            return "its end was lost"
        discarded = state.first_seq > before_first(known.epoch) + 1
        # The server makes just as much room as it needs.
        if discarded and state.bytes < (info.config.max_bytes or 0) // 2:
            return "its beginning was lost"
        return None

    async def _follow(self) -> str | None:
        assert self._tail is not None  # noqa: S101 - adopted before
        self._tail, fault = await self._compare(self._tail)
        return fault

    async def _walk(self) -> str | None:
        assert self._sweep is not None and self._target is not None  # noqa: S101, PT018 - adopted before
        before = self._sweep
        self._sweep, fault = await self._compare(before)
        if fault is not None:
            return fault
        sweep = self._sweep
        if sweep.position >= self._target:
            await sweeps.finish(self.connection, sweeps.STREAM)
            detail = f"epoch {sweep.epoch} was compared up to position {sweep.position}"
            await self.findings.healed(self.subject, detail)
            self._sweep, self._target = Checked.start_of(sweep.epoch), None
        else:
            cursor = f"{sweep.epoch}:{sweep.sequence}:{sweep.position}"
            await sweeps.go_on(self.connection, sweeps.STREAM, cursor, sweep.sequence - before.sequence)
        return None

    async def _compare(self, checked: Checked) -> tuple[Checked, str | None]:
        messages = await read_messages(self.client, checked.sequence + 1, BATCH)
        if not messages:
            return checked, None
        last = max(message.position for message in messages)
        rows = await read_page(self.connection, checked.position, BATCH + 1, until=last)
        fault = fault_of(checked, messages, rows, self.log_id)
        if fault is not None:
            return checked, fault
        metrics.AUDITED_MESSAGES.inc(len(messages))
        return Checked(checked.epoch, messages[-1].sequence, messages[-1].position), None

    async def _still(self, known: Epoch, info: StreamInfo) -> bool:
        """Whether this is the stream that was looked at: it may have been begun anew meanwhile."""
        try:
            now = await self._js.stream_info(EVENTS_STREAM)
        except NotFoundError:
            return False
        same = now.created == info.created and now.state.first_seq == info.state.first_seq
        current = await self.epochs.current()
        return same and current is not None and current.epoch == known.epoch

    async def _declare(self, known: Epoch, fault: str) -> None:
        detail = f"in epoch {known.epoch}, {fault}"
        await self.findings.found(self.subject, detail, REMEDY, None)
        await self.epochs.declare_broken(known.epoch, fault)

    async def _judge_progress(self, position: int) -> None:
        """A stream that stays behind the log is none that anybody fills."""
        head = await read_head(self.connection)
        metrics.AUDIT_LAG.set(max(0, head - position))
        stalled = Subject("stream", f"{EVENTS_STREAM} relay", self.log_id)
        if self._stands_still(position, head):
            self._goal = head
            detail = f"it stays at position {position} while the log is at {head}"
            await self.findings.found(stalled, detail, "start the orchestrator, or see its log", None)
        elif stalled in self.findings.open:
            # Not the head of now, which a busy log keeps out of reach.
            self._goal = head if self._goal is None else self._goal
            if position >= self._goal:
                await self.findings.healed(stalled, f"it reached position {position}")
                self._goal = None

    def _stands_still(self, position: int, head: int) -> bool:
        now, before = time.monotonic(), self._behind
        if position >= head:
            self._behind = None
        elif before is None or before.position != position:
            self._behind = Behind(position, now)
        else:
            self._behind = replace(before, looks=before.looks + 1)
            return self._behind.looks > STALLED_LOOKS and now - before.since > STALLED_SECONDS
        return False


def _read(cursor: str) -> tuple[int, int, int]:
    parts = cursor.split(":")
    return (int(parts[0]), int(parts[1]), int(parts[2])) if len(parts) == 3 else (0, 0, 0)
