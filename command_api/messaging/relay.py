"""Publishes the log to EVENTS, in order and without holes, however often either side restarts.

The stream itself remembers how far it got: the headers of its last message. Every batch is fenced by
the sequence of that message, so of two relays only one can ever append, and an answer that was lost
is found out by reading the last message again.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.errors import MaxPayloadError, OutboundBufferLimitError
from nats.js import JetStreamContext
from nats.js.api import Header, PubAck
from nats.js.errors import APIError, NotFoundError
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from command_api.eventlog.log import EventLog
from command_api.eventlog.reader import RawEvent
from command_api.messaging.connection import UNREACHABLE
from command_api.messaging.epochs import Epoch, Epochs, before_first, epoch_of
from command_api.messaging.stream_places import lost_its_beginning
from command_api.messaging.together import end
from command_api.messaging.topology import Topology
from command_api.metrics import EPOCH, RELAYED
from command_api.tracing import continued
from schemas.envelope import CONTENT_TYPE, public_bytes
from schemas.ids import Prefix, new_id
from schemas.subjects import (
    EPOCH_HEADER,
    EVENTS_STREAM,
    EVENTS_SUBJECTS,
    LOG_ID_HEADER,
    POSITION_HEADER,
    PREVIOUS_POSITION_HEADER,
    event_subject,
)

logger = logging.getLogger(__name__)
_tracer = trace.get_tracer(__name__)

PAGE_EVENTS = 2000
"""Read at once, one page ahead of what is being published."""
BATCH_EVENTS = 1000
"""The most that the server takes as one."""
BATCH_BYTES = 4 * 2**20
CHECK_SECONDS = 5.0
"""How often the relay makes sure that the stream ends where it left it, and that nobody found a fault."""
PUBLISH_TIMEOUT = 10.0

# Canonical JSON sorts its names: nothing follows but these two, so most of an event need not be read.
_TRACEPARENT = re.compile(rb',"traceparent":"([0-9a-f-]+)","type":"[a-z0-9_.]+"(?:,"workspace":"\w+")?\}\Z')
_TAIL_BYTES = 300

STALE_FENCE = 10071
DUPLICATE_IN_BATCH = 10201


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the stream ends: its last sequence, position and epoch."""

    sequence: int
    position: int
    epoch: int


class Superseded(Exception):
    """The stream does not end where this relay thought; read its last message again."""


class Relay:
    """Owns the end of EVENTS while its orchestrator is the active one."""

    def __init__(
        self, client: Client, topology: Topology, log: EventLog, epochs: Epochs, wake: asyncio.Event
    ) -> None:
        self._client = client
        self._js: JetStreamContext = topology.js
        self._topology = topology
        self._log = log
        self._epochs = epochs
        self._wake = wake
        self._recheck = False
        self.position = 0
        """The last position known to be in the stream."""

    def check_soon(self) -> None:
        """After a reconnect the server may be another one: compare before the next batch."""
        self._recheck = True
        self._wake.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                await self._follow(await self._resume())
            except Superseded as error:
                logger.info("relay: %s; reading the end of %s again", error, EVENTS_STREAM)
            except (*UNREACHABLE, OutboundBufferLimitError) as error:
                logger.warning(
                    "relay: NATS does not answer (%s); trying again", str(error) or type(error).__name__
                )
                await asyncio.sleep(0.5)
            except APIError as error:
                logger.warning("relay: %s; checking the streams and trying again", error)
                await asyncio.sleep(0.5)
                await self._repair()

    async def _follow(self, cursor: Cursor) -> None:
        clock = asyncio.get_running_loop().time
        checked, ahead = clock(), None
        EPOCH.set(cursor.epoch)
        try:
            while True:
                self._wake.clear()
                self.position = cursor.position
                page = await (ahead or self._read(cursor.position))
                # What was read ahead says nothing of what has been appended meanwhile.
                at_end = ahead is None and len(page) < PAGE_EVENTS
                more = len(page) == PAGE_EVENTS
                ahead = asyncio.create_task(self._read(page[-1].position)) if more else None
                if self._recheck or clock() - checked > CHECK_SECONDS:
                    self._recheck, checked = False, clock()
                    await self._check(cursor)
                for batch in _split(page):
                    began = time.time_ns()
                    cursor = await self._publish(batch, cursor)
                    RELAYED.inc(len(batch))
                    if at_end:  # what is published long after it happened is nobody's latency
                        _trace(batch, began)
                if at_end:
                    self.position = cursor.position
                    await self._wake.wait()
        finally:
            if ahead is not None:
                await end([ahead])

    async def _read(self, after: int) -> list[RawEvent]:
        return await asyncio.to_thread(self._log.read_all, after, PAGE_EVENTS)

    async def _resume(self) -> Cursor:
        """Where the stream ends, if it is what this log's relays made of it; else it begins anew."""
        known = await self._epochs.current()
        try:
            info = await self._js.stream_info(EVENTS_STREAM)
        except NotFoundError:
            return await self._begin_epoch("it is missing" if known else "it is made", known)
        if not info.state.messages:
            if known is not None and info.state.last_seq == known.sequence == before_first(known.epoch):
                return Cursor(info.state.last_seq, 0, known.epoch)  # begun, and nothing published yet
            return await self._begin_epoch("it is empty" if known else "it is made", known)
        try:
            last = await self._js.get_last_msg(EVENTS_STREAM, EVENTS_SUBJECTS)
        except NotFoundError as error:
            raise Superseded("it was emptied just now") from error
        sequence, headers = last.seq or 0, last.headers or {}
        fault = self._fault(known, sequence, headers, await asyncio.to_thread(self._log.head))
        if fault is None and lost_its_beginning(info):
            fault = f"its first message is {info.state.first_seq}: those before it were lost"
        if fault is not None or known is None:
            return await self._begin_epoch(fault or "nothing is known of it", known, epoch_of(sequence))
        return Cursor(sequence, int(headers[POSITION_HEADER]), known.epoch)

    def _fault(self, known: Epoch | None, sequence: int, headers: Mapping[str, str], head: int) -> str | None:
        """Why a stream with this last message cannot be gone on with."""
        log_id, position = headers.get(LOG_ID_HEADER), int(headers.get(POSITION_HEADER, "0"))
        if log_id != self._log.log_id:
            return f"it holds events of {log_id or 'no log'}, and this is {self._log.log_id}"
        if position > head:
            return f"it ends at position {position}, and the log at {head}"
        if known is None:
            return None
        if known.epoch != epoch_of(sequence) or headers.get(EPOCH_HEADER) != str(known.epoch):
            return f"it is of epoch {headers.get(EPOCH_HEADER)}, and {known.epoch} has begun"
        if sequence < known.sequence:
            return f"it ends at position {position}, and reached {known.position} before: its end was lost"
        return known.broken_because

    async def _begin_epoch(self, reason: str, known: Epoch | None, above: int = 0) -> Cursor:
        """Make the stream anew, and only then say so: until then it is not what the last epoch says."""
        number = max(above, known.epoch if known is not None else 0) + 1
        await self._topology.ensure_streams()
        async with self._epochs.alone():
            if await self._epochs.current() != known:
                raise Superseded("another relay began an epoch")
            await self._topology.recreate_events(before_first(number))
            begun = await self._epochs.begin(number, reason, seen=known)
        if begun is None:
            raise Superseded("another relay began an epoch")
        log = logger.error if known is not None else logger.info
        log("relay: filling %s from the log as epoch %d, because %s", EVENTS_STREAM, number, reason)
        return Cursor(begun.sequence, 0, number)

    async def _check(self, cursor: Cursor) -> None:
        """Compare the stream with what this relay made of it, and note how far that is.

        Raises:
            Superseded: they differ, or somebody found a fault.
        """
        await self._epochs.mark(cursor.epoch, cursor.sequence, cursor.position)
        known = await self._epochs.current()
        if known is None or known.epoch != cursor.epoch:
            raise Superseded(f"epoch {cursor.epoch} is over")
        if known.broken_because is not None:
            raise Superseded(f"a fault was found: {known.broken_because}")
        try:
            info = await self._js.stream_info(EVENTS_STREAM)
        except NotFoundError as error:
            raise Superseded("the stream is gone") from error
        emptied = cursor.position > 0 and info.state.messages == 0
        if lost_its_beginning(info):
            raise Superseded(f"it begins at {info.state.first_seq}: what was before is lost")
        if info.state.last_seq != cursor.sequence or emptied:
            raise Superseded(f"it ends at {info.state.last_seq} and not at {cursor.sequence}")

    async def _repair(self) -> None:
        try:
            await self._topology.ensure_streams()
        except (*UNREACHABLE, APIError) as error:
            logger.warning("relay: cannot check the streams (%s)", error)

    async def _publish(self, batch: Sequence[RawEvent], cursor: Cursor) -> Cursor:
        messages = []
        previous = cursor.position
        for event in batch:
            messages.append(
                (_subject(event), self._body(event), self._headers(event, previous, cursor.epoch))
            )
            previous = event.position
        messages[0][2][Header.EXPECTED_LAST_SEQUENCE] = str(cursor.sequence)
        try:
            ack = await (self._one(*messages[0]) if len(messages) == 1 else self._atomically(messages))
        except APIError as error:
            if error.err_code in (STALE_FENCE, DUPLICATE_IN_BATCH):
                raise Superseded(
                    f"the server refused a batch after {cursor.position} ({error.err_code})"
                ) from error
            raise
        except MaxPayloadError as error:
            # Events over 256 KiB are refused at append, so only a server set up otherwise says this.
            raise APIError(
                code=400, description=f"raise max_payload of nats-server to 1 MiB: {error}"
            ) from error
        if ack.duplicate:
            raise Superseded(f"position {batch[0].position} is there already")
        return Cursor(ack.seq, previous, cursor.epoch)

    async def _one(self, subject: str, body: bytes, headers: dict[str, str]) -> PubAck:
        return await self._js.publish(
            subject, body, stream=EVENTS_STREAM, headers=headers, timeout=PUBLISH_TIMEOUT
        )

    async def _atomically(self, messages: Sequence[tuple[str, bytes, dict[str, str]]]) -> PubAck:
        """All or none (ADR-50); only the commit is answered with the sequence."""
        batch_id = new_id(Prefix.COMMAND)
        answer: dict[str, Any] = {}
        for number, (subject, body, headers) in enumerate(messages, start=1):
            headers |= {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            if number == len(messages):
                headers["Nats-Batch-Commit"] = "1"
            elif number > 1:
                await self._client.publish(subject, body, headers=headers)
                continue
            reply = await self._client.request(subject, body, headers=headers, timeout=PUBLISH_TIMEOUT)
            if reply.data:
                answer = json.loads(reply.data)
                if "error" in answer:
                    raise APIError(**answer["error"])
        if "seq" not in answer:
            raise Superseded("the server did not answer a commit with its sequence")
        return PubAck.from_response(answer)

    def _body(self, event: RawEvent) -> bytes:
        return public_bytes(event.position, self._log.log_id, event.state)

    def _headers(self, event: RawEvent, previous: int, epoch: int) -> dict[str, str]:
        headers = {
            Header.MSG_ID: event.event_id,
            POSITION_HEADER: str(event.position),
            PREVIOUS_POSITION_HEADER: str(previous),
            LOG_ID_HEADER: self._log.log_id,
            EPOCH_HEADER: str(epoch),
            "content-type": CONTENT_TYPE,
        }
        if (traceparent := stored_traceparent(event.state)) is not None:
            headers["traceparent"] = traceparent
        return headers


def _trace(batch: Sequence[RawEvent], began_ns: int) -> None:
    """A span per event, in the trace that the event belongs to."""
    for event in batch:
        traceparent = stored_traceparent(event.state)
        if traceparent is None or not traceparent.endswith("1"):
            continue  # of no trace, or of one that nobody records
        span = _tracer.start_span(
            f"publish {event.type}",
            continued(traceparent),
            SpanKind.PRODUCER,
            {
                "messaging.system": "nats",
                "messaging.operation.type": "send",
                "messaging.destination.name": EVENTS_STREAM,
                "messaging.batch.message_count": len(batch),
                "kinora.position": event.position,
            },
            start_time=began_ns,
        )
        span.end()


def stored_traceparent(state: bytes) -> str | None:
    """The trace that a stored event belongs to, without reading all of it."""
    found = _TRACEPARENT.search(state, max(0, len(state) - _TAIL_BYTES))
    return found[1].decode() if found is not None else None


def _subject(event: RawEvent) -> str:
    return event_subject(event.organization_id, event.workspace_id, event.type)


def _split(page: Sequence[RawEvent]) -> list[list[RawEvent]]:
    """Batches that stay small enough for one publish, in order."""
    batches: list[list[RawEvent]] = []
    size = 0
    for event in page:
        full = batches and len(batches[-1]) == BATCH_EVENTS
        if not batches or full or size + len(event.state) > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(event)
        size += len(event.state)
    return batches
