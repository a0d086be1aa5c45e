"""A resource as its own stream tells it, so that a command's answer never waits for a projection."""

import asyncio
from functools import reduce
from typing import TypeVar

from command_api.domain.errors import NotFound
from command_api.handlers.bus import Outcome
from command_api.routes.parts import Parts
from projections.documents import Document, DocumentView

D = TypeVar("D", bound=Document)


async def show(parts: Parts, view: DocumentView[D], stream_id: str, outcome: Outcome | None = None) -> D:
    """Fold the stream with the view's own fold: the answer is what the table will say.

    An `outcome` that began the stream is all of it, as far as its command goes: nothing is read then.

    Raises:
        NotFound: when the stream is empty.
    """
    if outcome is not None and not outcome.replayed:
        events = [event for event in outcome.events if event.stream_id == stream_id]
        if events and events[0].version == 1:
            return reduce(view.fold, events[1:], view.fold(None, events[0]))
    # Off the loop: a long training's stream has thousands of events.
    document = await asyncio.to_thread(_fold, parts, view, stream_id)
    if document is None:
        raise NotFound(f"{stream_id} does not exist")
    return document


def _fold(parts: Parts, view: DocumentView[D], stream_id: str) -> D | None:
    document: D | None = None
    for recorded in parts.log.read_stream(stream_id):
        document = view.fold(document, recorded)
    return document
