"""Runs the whole service inside the demo's own process, so that Ctrl-C and a kill end everything with it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from kinora.client import Credentials
from kinora.supervisor import Supervisor


class _Background:
    """The supervisor on an event loop in a thread of its own, which lives as long as its children."""

    def __init__(self, folder: Path, owner: str, console: Console) -> None:
        self._folder, self._owner, self._console = folder, owner, console
        self.ready: Future[Credentials] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="supervisor")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop everything and wait until it is stopped."""
        self._stopping = True
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._supervise())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 (the thread's door: the demo waits for this future)
            if not self.ready.done():
                self.ready.set_exception(error)
            else:
                self._console.print(f"[red]{escape(str(error))}[/]", highlight=False)

    async def _supervise(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._stopping:
            return
        async with Supervisor(self._folder, owner_username=self._owner, on_event=self._say) as supervisor:
            self.ready.set_result(supervisor.credentials)
            await supervisor.until(asyncio.Event())

    def _say(self, phase: str, message: str) -> None:
        if phase in ("died", "restarted"):
            self._console.print(f"[yellow]{escape(message)}[/]", highlight=False)


@contextmanager
def running_service(folder: Path, *, owner: str, console: Console) -> Iterator[Credentials]:
    """Start everything under `folder`, sign `owner` up, and stop everything in the end.

    Raises:
        KinoraError: when a part does not start.
    """
    background = _Background(folder, owner, console)
    began = time.monotonic()
    try:
        with console.status("starting PostgreSQL, NATS, S3, API, orchestrator, projections and an agent …"):
            background.start()
            credentials = background.ready.result()
        console.print(
            "[green]✓[/] PostgreSQL, NATS, S3, API, orchestrator, projections and an agent are running"
            f" [dim]({time.monotonic() - began:.1f} s)[/]",
            highlight=False,
        )
        yield credentials
    finally:
        with console.status("stopping everything …"):
            background.stop()
