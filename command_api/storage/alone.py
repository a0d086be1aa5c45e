"""Waits a while for the right to delete objects."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from command_api.keeping import deleting
from schemas.errors import KinoraError

PATIENCE_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 0.1


class ObjectsBusy(KinoraError):
    """Objects are being copied, so none may be deleted."""

    code = "objects_busy"
    retryable = True


@asynccontextmanager
async def alone(conninfo: str) -> AsyncIterator[None]:
    """Nobody copies objects inside, nobody else deletes any, and uploads wait: keep it short.

    Raises:
        ObjectsBusy: when they are being copied for longer than anybody would wait.
    """
    give_up = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        async with deleting(conninfo) as allowed:
            if allowed:
                yield
                return
        if asyncio.get_running_loop().time() > give_up:
            raise ObjectsBusy("objects are being copied, by a backup for instance; collect again afterwards")
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
