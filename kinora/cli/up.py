"""`kinora up`: the whole service on this machine, until Ctrl-C."""

import asyncio
import signal

from rich.markup import escape

from kinora.cli.output import door, talk
from kinora.local.folder import DataFolder
from kinora.settings import data_folder, import_roots


@door
def up() -> None:
    """Run the whole service on this machine until Ctrl-C."""
    asyncio.run(_up())


async def _up() -> None:
    # Servers, roles and their clients, which no other command should pay.
    from kinora.supervisor import Supervisor

    supervisor = Supervisor(data_folder(), import_roots=import_roots(), on_event=_say)
    running = asyncio.current_task()
    assert running is not None  # noqa: S101 - we are in it
    stop = asyncio.Event()

    def stopping() -> None:
        if not stop.is_set():  # a second Ctrl-C must not cut the clean stop short
            stop.set()
            running.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping)
    try:
        async with supervisor:
            _show(supervisor.url, supervisor.folder, supervisor.credentials.username)
            await supervisor.until(stop)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


def _say(phase: str, message: str) -> None:
    colour = {"died": "yellow", "ready": "green", "stopped": "green"}.get(phase, "dim")
    talk.print(f"[{colour}]{escape(message)}[/]", highlight=False)


def _show(url: str, folder: DataFolder, owner: str) -> None:
    for name, value in (
        ("API", f"{url}/api/v1"),
        ("API reference", f"{url}/docs"),
        ("health", f"{url}/health"),
        ("live feed", f"{url.replace('http', 'ws', 1)}/api/v1/events/ws"),
        ("owner", owner),
        ("credentials", str(folder.credentials)),
        ("data folder", str(folder.root)),
        ("logs", str(folder.logs)),
    ):
        talk.print(f"  [bold]{name:14}[/]{escape(value)}", highlight=False, soft_wrap=True)
    talk.print("Ctrl-C stops it; everything is kept.", style="dim")
