"""Reads EVENTS without a consumer, many messages per request, and compares them with the log's rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nats.aio.client import Client
from nats.js.errors import APIError

from command_api.messaging.epochs import before_first
from projections.reader import LogRow
from schemas.envelope import public_bytes
from schemas.subjects import (
    EPOCH_HEADER,
    EVENTS_STREAM,
    EVENTS_SUBJECTS,
    LOG_ID_HEADER,
    POSITION_HEADER,
    PREVIOUS_POSITION_HEADER,
    event_subject,
)

ANSWER_SECONDS = 5.0
_GET = f"$JS.API.DIRECT.GET.{EVENTS_STREAM}"
_END_OF_BATCH, _NOT_FOUND = "204", "404"


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message as it lies in the stream."""

    sequence: int
    subject: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def position(self) -> int:
        return _number(self.headers, POSITION_HEADER)


@dataclass(frozen=True, slots=True)
class Checked:
    """Up to where a stream agrees with the log."""

    epoch: int
    sequence: int
    position: int

    @classmethod
    def start_of(cls, epoch: int) -> "Checked":
        return cls(epoch, before_first(epoch), 0)


async def read_messages(client: Client, first: int, limit: int) -> list[StreamMessage]:
    """At most `limit` messages from sequence `first` on, in order; none behind the end.

    Raises:
        APIError: the stream is missing or cannot be read.
        TimeoutError: the server does not answer.
    """
    request = json.dumps({"seq": first, "batch": limit, "next_by_subj": EVENTS_SUBJECTS}).encode()
    inbox = await client.subscribe(client.new_inbox())
    found: list[StreamMessage] = []
    try:
        await client.publish(_GET, request, reply=inbox.subject)
        while True:
            message = await inbox.next_msg(ANSWER_SECONDS)
            headers = message.headers or {}
            status = headers.get("Status")
            if status in (_END_OF_BATCH, _NOT_FOUND):
                return found
            if status is not None:
                raise APIError(
                    code=int(status), description=str(headers.get("Description", "no such stream"))
                )
            found.append(
                StreamMessage(int(headers["Nats-Sequence"]), headers["Nats-Subject"], headers, message.data)
            )
    finally:
        await inbox.unsubscribe()


def fault_of(
    checked: Checked, messages: Sequence[StreamMessage], rows: Sequence[LogRow], log_id: str
) -> str | None:
    """The first difference between the messages behind `checked` and the log's rows of the same positions.

    `rows` are all of the log between `checked` and the last message. None when every one of them is there
    once, in order and byte for byte.
    """
    before = checked
    for message, row in zip(messages, rows, strict=False):
        fault = _fault(before, message, row, log_id)
        if fault is not None:
            return fault
        before = replace(before, sequence=message.sequence, position=row.position)
    if len(messages) > len(rows):
        return f"position {messages[len(rows)].position} stands in it and not in the log, or twice"
    if len(rows) > len(messages):
        return f"position {rows[len(messages)].position} is missing"
    return None


def _fault(before: Checked, message: StreamMessage, row: LogRow, log_id: str) -> str | None:
    headers, position = message.headers, message.position
    if headers.get(LOG_ID_HEADER) != log_id or headers.get(EPOCH_HEADER) != str(before.epoch):
        return f"the message at sequence {message.sequence} is of another log or epoch"
    if position > row.position:
        return f"position {row.position} is missing"
    if position < row.position:
        return f"position {position} stands in it twice, out of order, or is not in the log"
    if message.sequence != before.sequence + 1:
        return f"messages are missing between the positions {before.position} and {position}"
    if _number(headers, PREVIOUS_POSITION_HEADER) != before.position:
        return f"position {position} does not name {before.position} as the one before it"
    if headers.get("Nats-Msg-Id") != row.event_id:
        return f"position {position} has the id of another event"
    if message.subject != event_subject(row.organization_id, row.workspace_id, row.type):
        return f"position {position} lies under another event's subject"
    if message.body != public_bytes(position, log_id, row.state):
        return f"position {position} has other bytes than the log"
    return None


def _number(headers: Mapping[str, str], name: str) -> int:
    text = headers.get(name, "")
    return int(text) if text.isdigit() else -1
