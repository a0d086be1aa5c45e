"""A process that owns embedded servers until it is ended; prints their process ids when they are ready."""

import asyncio
import json
import sys
from pathlib import Path
from typing import get_args

from kinora.local.servers import EmbeddedServers, ServerName


async def own(folder: Path) -> None:
    async with EmbeddedServers(folder) as servers:
        pids = {name: servers.child(name).pid for name in get_args(ServerName)}
        print(json.dumps(pids), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(own(Path(sys.argv[1])))
