"""A real projections process for tests that kill one: reads its settings from standard input."""

import asyncio
import signal
import sys

from projections.run import run
from projections.settings import ProjectionsSettings
from tests.integration.projections.world import Tally


async def main() -> None:
    settings = ProjectionsSettings.model_validate_json(sys.stdin.readline())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run(settings, stop, ready=lambda: print("ready", flush=True), views=[Tally()])


asyncio.run(main())
