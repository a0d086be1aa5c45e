"""A resource as its own stream tells it, so that a command's answer never waits for a projection."""

import asyncio
from typing import TypeVar

from command_api.domain.errors import NotFound
from command_api.routes.parts import Parts
from projections.documents import Document, DocumentView

D = TypeVar("D", bound=Document)


async def show(parts: Parts, view: DocumentView[D], stream_id: str) -> D:
    """Fold the stream with the view's own fold: the answer is what the table will say.

    Raises:
        NotFound: when the stream is empty.
    """
    recorded = await asyncio.to_thread(parts.log.read_stream, stream_id)
    document: D | None = None
    for each in recorded:
        document = view.fold(document, each)
    if document is None:
        raise NotFound(f"{stream_id} does not exist")
    return document
