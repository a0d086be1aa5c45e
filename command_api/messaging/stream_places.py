"""Where a position of the log lies in EVENTS, for consumers that begin in the middle."""

from dataclasses import dataclass

from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from command_api.messaging.epochs import epoch_of
from schemas.subjects import EVENTS_STREAM, EVENTS_SUBJECTS, POSITION_HEADER


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """A place between two messages of EVENTS."""

    epoch: int
    """The sequence means something only in this filling of the stream."""
    sequence: int
    """Of the first message behind the place, which a consumer starts with; it may not be there yet."""


async def place_after(js: JetStreamContext, position: int) -> StreamPlace:
    """The place behind every message whose position is `position` or less.

    Found by halving, so it takes about twenty reads in a stream of a million messages.

    Raises:
        NotFoundError: the stream is missing; the relay makes it within seconds.
        TimeoutError: the server does not answer.
    """
    state = (await js.stream_info(EVENTS_STREAM)).state
    low, high = max(1, state.first_seq), state.last_seq + 1
    while low < high:
        middle = (low + high) // 2
        message = await _at_or_after(js, middle)
        if message is None or int((message.headers or {})[POSITION_HEADER]) > position:
            high = middle
        else:
            low = (message.seq or middle) + 1
    return StreamPlace(epoch_of(low), low)


async def _at_or_after(js: JetStreamContext, sequence: int) -> RawStreamMsg | None:
    try:
        return await js.get_msg(EVENTS_STREAM, sequence, subject=EVENTS_SUBJECTS, next=True)
    except NotFoundError:
        return None
