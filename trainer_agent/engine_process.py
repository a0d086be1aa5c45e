"""The engine as a child process: a spec and control lines go in, typed updates come out on a private pipe.

It has a session of its own, so that it can be killed with everything it started, and a stdin that ends
with this agent; the engine also asks the kernel to be killed when its parent dies. Its output goes
straight into the attempt's log file. Updates are read as fast as they come and wait in memory, so that a
slow upload or broker never stalls a training.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import structlog
from pydantic import ValidationError

from qlora_engine.updates import UPDATE, Alive, EngineFailed, Start, Stop, Update
from schemas.training import EngineSpec
from trainer_agent.bounded_log import keep_bounded
from trainer_agent.errors import EngineDied, EngineSilent
from trainer_agent.silence import Silence
from trainer_agent.waiting import end

log = structlog.get_logger()

_READ_BYTES = 256 * 1024
_LAST_WORDS_BYTES = 2000
_SECRET = re.compile(
    r"^(KINORA|AWS|NATS|RCLONE|OTEL)_|^PG|(PASSWORD|PASSWD|SECRET|CREDENTIALS?|TOKEN|API_?KEY|PRIVATE_KEY)$",
    re.IGNORECASE,
)


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what the engine has no business with: it reads files that strangers made."""
    return {name: value for name, value in environment.items() if not _SECRET.search(name)}


class EngineProcess:
    """An async context manager; leaving it kills whatever is left of the engine."""

    def __init__(
        self, arguments: tuple[str, ...] = (), *, folder: Path, log_file: Path, spec: EngineSpec | None = None
    ) -> None:
        self._arguments = arguments
        self._folder = folder
        self._log_file = log_file
        self._spec = spec
        self._updates: asyncio.Queue[Update | None] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        readable, writable = os.pipe()
        # Read by chunk and split here: a line of StreamReader's has a length limit.
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(readable, "rb", buffering=0)
        )
        try:
            with self._log_file.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "qlora_engine", *self._arguments),
                    *("--updates-fd", str(writable), "--parent-pid", str(os.getpid())),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    cwd=self._folder,
                    env=engine_environment(os.environ),
                    pass_fds=(writable,),
                    start_new_session=True,
                )
        except BaseException:
            pipe.close()
            raise
        finally:
            os.close(writable)
        self._tasks = [
            asyncio.create_task(self._read(reader, pipe)),
            asyncio.create_task(self._bury(self._process)),
            asyncio.create_task(keep_bounded(self._log_file)),
        ]
        if self._spec is not None:
            await self._tell(Start(spec=self._spec))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            await self._process.wait()
        for task in self._tasks:
            await end(task)

    @property
    def pid(self) -> int:
        assert self._process is not None  # noqa: S101 - only asked of an entered context
        return self._process.pid

    async def updates(self, silence: Silence) -> AsyncIterator[Update]:
        """Every update that tells something, until the engine closes its pipe.

        Raises:
            EngineSilent: it says nothing for too long; leaving the context kills it.
        """
        while True:
            try:
                update = await asyncio.wait_for(self._updates.get(), silence.stretch_seconds)
            except TimeoutError:
                if silence.unheard():
                    raise _hung(silence) from None
                continue
            if update is None:
                return
            silence.heard(update)
            if not isinstance(update, Alive):
                yield update

    async def stop(self, mode: Literal["graceful", "immediate"]) -> None:
        """Ask for an end at the next optimizer step; the last update tells when that is done."""
        await self._tell(Stop(mode=mode))

    async def finish(self, seconds: float = 15.0) -> None:
        """Let an engine that has said its last word leave by itself, for `seconds` at most."""
        assert self._process is not None  # noqa: S101 - only asked of an entered context
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            log.warning("engine_lingers", seconds=seconds)

    def kill(self) -> None:
        """End the engine and everything it started, now."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return  # nothing of it is left

    async def death(self) -> EngineDied:
        """What to report when the updates ended without a last word."""
        assert self._process is not None  # noqa: S101 - only asked of an entered context
        try:
            code = await asyncio.wait_for(self._process.wait(), 5.0)
        except TimeoutError:
            return EngineDied("the engine closed its pipe and went on; it was killed")
        return EngineDied(f"the engine {describe_exit(code)} without a result: {await self.last_words()}")

    async def last_words(self) -> str:
        """The end of its output, for people."""
        text = await asyncio.to_thread(_tail, self._log_file)
        return text or "it wrote nothing to its log"

    async def _tell(self, line: Start | Stop) -> None:
        assert self._process is not None  # noqa: S101 - only asked of an entered context
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - it was started with a pipe
        try:
            stdin.write(line.model_dump_json().encode() + b"\n")
            await stdin.drain()
        except (ConnectionError, RuntimeError) as error:
            log.info("engine_not_listening", line=line.kind, error=str(error))  # its end says the rest

    async def _bury(self, process: asyncio.subprocess.Process) -> None:
        # What the engine started must not outlive it: it could hold the pipe, and with it this attempt, open.
        await process.wait()
        self.kill()

    async def _read(self, reader: asyncio.StreamReader, pipe: asyncio.ReadTransport) -> None:
        try:
            parts: list[bytes] = []
            while chunk := await reader.read(_READ_BYTES):
                *lines, rest = chunk.split(b"\n")
                for line in lines:
                    self._take(b"".join((*parts, line)))
                    parts.clear()
                parts.append(rest)
        finally:
            pipe.close()
            self._updates.put_nowait(None)

    def _take(self, line: bytes) -> None:
        try:
            self._updates.put_nowait(UPDATE.validate_json(line))
        except ValidationError as error:
            # Going on without it would train towards reports that nobody can place.
            log.warning(
                "engine_update_unreadable", line=line[:200].decode(errors="replace"), error=str(error)
            )
            message = (
                f"the engine sent an update that cannot be read here ({line[:60].decode(errors='replace')}…);"
                " agent and engine must be of the same version"
            )
            self._updates.put_nowait(EngineFailed(code="engine_misbehaved", message=message, retryable=False))


def _hung(silence: Silence) -> EngineSilent:
    return EngineSilent(
        f"the engine said nothing for {silence.allowed_seconds:.0f} s and was killed; when its steps really"
        " take so long, raise engine_silence_seconds of this agent"
    )


def describe_exit(code: int) -> str:
    """`code` as asyncio gives it: negative for a signal."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        return file.read().decode(errors="replace").strip()
