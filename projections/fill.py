"""Filling slice after slice: in a thread, or in processes of their own where that is worth it."""

import asyncio
import json
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Protocol, Self

import psycopg

from projections.errors import ProjectionError
from projections.fill_worker import Refused, Task
from projections.filling import Target, fill_slice
from projections.registry import VIEWS
from projections.runner import NO_FSYNC
from projections.slices import Slice

SLICES_PER_PROCESS = 2
"""Fewer are not worth the second that a process takes to start."""


class Worker(Protocol):
    """Fills one slice at a time."""

    async def fill(self, part: Slice) -> None: ...


async def fill_all(
    conninfo: str,
    targets: Sequence[Target],
    fill: int,
    until: int,
    slices: Sequence[Slice],
    *,
    processes: int,
    on_slice: Callable[[], Awaitable[None]],
) -> None:
    """Fill every slice; `on_slice` is told of each, one at a time.

    Raises:
        psycopg.OperationalError: the server is away; the slices that are done stay done.
        ProjectionError: a process ended before its time.
    """
    waiting, telling = deque(slices), asyncio.Lock()
    count = min(processes, len(slices) // SLICES_PER_PROCESS)
    # A process knows views by name: those of the registry.
    apart = count > 1 and all(target.view in VIEWS for target in targets)

    async def work(worker: Worker) -> None:
        while waiting:
            await worker.fill(waiting.popleft())
            async with telling:
                await on_slice()

    async with AsyncExitStack() as stack:
        workers: list[Worker] = [
            await stack.enter_async_context(
                _Process(conninfo, targets, fill, until) if apart else _Thread(conninfo, targets, fill, until)
            )
            for _ in range(count if apart else 1)
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker in workers:
                    tasks.create_task(work(worker), name="rebuild-slices")
        except BaseExceptionGroup as group:
            # The first tells why; the others were cancelled or suffer from the same.
            raise group.exceptions[0] from None


class _Thread:
    def __init__(self, conninfo: str, targets: Sequence[Target], fill: int, until: int) -> None:
        self._conninfo = conninfo
        self._task = (targets, fill, until)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def fill(self, part: Slice) -> None:
        await asyncio.to_thread(self._fill, part)

    def _fill(self, part: Slice) -> None:
        with _connect(self._conninfo) as connection:
            fill_slice(connection, *self._task, part)


class _Process:
    def __init__(self, conninfo: str, targets: Sequence[Target], fill: int, until: int) -> None:
        generations = {target.view.name: target.generation for target in targets}
        conninfo = psycopg.conninfo.make_conninfo(conninfo, options=NO_FSYNC)
        self._task = Task(conninfo=conninfo, fill=fill, until=until, generations=generations)
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        # The password goes through the pipe; everybody on the machine could read arguments.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "projections.fill_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        await self._send(self._task.model_dump_json())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._process.returncode is None:
            self._process.kill()
        elif self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    async def fill(self, part: Slice) -> None:
        await self._send(
            json.dumps({"number": part.number, "after": str(part.after), "last": str(part.last)})
        )
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        answer = await self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            code = await self._process.wait()
            raise ProjectionError(
                f"a process that fills tables ended with code {code}; see its messages above, free memory if"
                " the system ran out of it, and ask for the rebuild again"
            )
        if answer != b"\n":
            refused = Refused.model_validate_json(answer)
            if refused.connection_lost:
                raise psycopg.OperationalError(refused.error)
            raise ProjectionError(f"slice {part.number} cannot be filled: {refused.error}")

    async def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.write(line.encode() + b"\n")
        # Were it gone, reading its answer would say how.
        with suppress(ConnectionError):
            await self._process.stdin.drain()


def _connect(conninfo: str) -> psycopg.Connection[Any]:
    return psycopg.connect(
        conninfo, autocommit=True, options=NO_FSYNC, application_name="kinora-projections", connect_timeout=5
    )
