"""A training's log as NDJSON segments in the store: its story (`story`), and whatever the engine printed.

A segment is due after ten seconds at first and less and less often as the training grows old, so that a
week of training makes about a thousand of them; or when enough has gathered.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from schemas.work import LogStored
from trainer_agent.artifacts import Artifacts
from trainer_agent.bounded_log import next_data
from trainer_agent.errors import ArtifactNotStored
from trainer_agent.reporter import Reporter
from trainer_agent.story import Line, Printed

log = structlog.get_logger()

LiveLines = Callable[[tuple[str, ...]], Awaitable[None]]

_SEGMENT_BYTES = 512 * 1024
_POLL_SECONDS = 1.0
ATTEMPT_BYTES = 32 * 2**20
"""What is stored of one attempt's output; its story goes on behind that."""
_LINES_LIVE = 50
_LINE_BYTES = 8192


def segment_due_seconds(age_seconds: float) -> float:
    """How long lines may wait in a training that is `age_seconds` old."""
    return min(max(10.0, age_seconds / 50), 600.0)


class Tail:
    """Whole lines that another process appended to a file since the last look; synchronous."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""
        self._lost = 0
        self._skipping = False

    def read(self, most_bytes: int) -> list[str]:
        """The next lines, about `most_bytes` of them; a line that is not finished waits."""
        try:
            with self._path.open("rb") as file:
                begin = next_data(file.fileno(), self._position)
                skipped, self._skipping = begin - self._position, self._skipping or begin > self._position
                file.seek(begin)
                chunk = file.read(most_bytes)
                self._position = file.tell()
        except OSError:
            return []
        if skipped:
            self._rest = b""
            self._lost += skipped
        if self._skipping:
            _, newline, chunk = chunk.partition(b"\n")  # what is left of a line whose beginning is gone
            if not newline:
                return []
            self._skipping = False
            notice = f"[{self._lost} bytes of output came too fast to be kept]\n"
            chunk, self._lost = notice.encode() + chunk, 0
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [text for line in lines if (text := _printable(line))]

    def remainder(self) -> list[str]:
        """The unfinished last line, when no more will come."""
        rest, self._rest = self._rest, b""
        return [text] if (text := _printable(rest)) else []


def _printable(line: bytes) -> str:
    # A progress bar rewrites its line: only its last state is worth a line of a log.
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1][:_LINE_BYTES].decode(errors="replace").rstrip()


class LogSegments:
    """Gathers one attempt's log lines and stores them."""

    def __init__(
        self, artifacts: Artifacts, reporter: Reporter, folder: Path, printed: Path, live: LiveLines
    ) -> None:
        self._artifacts = artifacts
        self._reporter = reporter
        self._folder = folder
        self._tail = Tail(printed)
        self._levels = Printed()
        self._tailing = asyncio.Lock()
        self._live = live
        self._lines: list[bytes] = []
        self._bytes = 0
        self._printed_bytes = 0
        self._segment = 0
        self._storing = asyncio.Lock()
        self._began = asyncio.get_running_loop().time()
        self._stored_at = self._began

    async def add(self, line: Line) -> None:
        """Take a line, behind whatever was printed before it."""
        await self._take_printed()
        await self._live((self._keep(line),))

    async def run(self) -> None:
        """Look for printed lines and store segments as they become due, for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._run(group)
        except BaseExceptionGroup as broken:
            raise broken.exceptions[0] from None

    async def _run(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await self._take_printed()
            waited = loop.time() - self._stored_at
            due = self._bytes >= _SEGMENT_BYTES or waited >= segment_due_seconds(loop.time() - self._began)
            if due and not self._storing.locked():
                # Beside the reading, which must go on while the store is away.
                group.create_task(self._store())

    async def finish(self) -> None:
        """Store everything that is left."""
        while await self._take_printed():
            if self._bytes >= _SEGMENT_BYTES:
                await self._store()
        for text in self._tail.remainder():
            self._keep_printed(text)
        await self._store()

    async def store_series(self, file: Path) -> None:
        """Store the full-resolution series that the engine wrote."""
        try:
            lines = await asyncio.to_thread(_count_lines, file)
            (stored,) = await self._artifacts.store([file], file.parent, "log")
        except (ArtifactNotStored, OSError) as error:
            log.warning("series_not_stored", error=str(error))
            return
        await self._reporter.report(LogStored(segment=1, content="series", lines=lines, object=stored))

    async def _take_printed(self) -> bool:
        async with self._tailing:  # a tail has one place in its file
            texts = await asyncio.to_thread(self._tail.read, _SEGMENT_BYTES)
            shown = [shown for text in texts if (shown := self._keep_printed(text)) is not None]
        if shown:
            await self._live(tuple(shown[-_LINES_LIVE:]))
        return bool(texts)

    def _keep_printed(self, text: str) -> str | None:
        """As `_keep`, until too much has been printed."""
        if self._printed_bytes > ATTEMPT_BYTES:
            return None
        self._printed_bytes += len(text)
        if self._printed_bytes > ATTEMPT_BYTES:
            text = f"[more than {ATTEMPT_BYTES >> 20} MiB were printed; what follows is not kept]"
        return self._keep(self._levels.line(text))

    def _keep(self, line: Line) -> str:
        """Returns the line as a terminal shows it."""
        now = datetime.now(UTC)
        entry = {
            "time": now.isoformat(),
            "source": line.source,
            "level": line.level,
            "code": line.code,
            "message": line.message,
        }
        content = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        self._lines.append(content)
        self._bytes += len(content)
        return f"{now:%Y-%m-%dT%H:%M:%S} {line.level:<7} {line.message}"[:_LINE_BYTES]

    async def _store(self) -> None:
        async with self._storing:
            self._stored_at = asyncio.get_running_loop().time()
            lines, self._lines, self._bytes = self._lines, [], 0
            if not lines:
                return
            self._segment += 1
            file = self._folder / f"log-{self._segment:05d}.ndjson"
            try:
                await asyncio.to_thread(file.write_bytes, b"".join(lines))
                (stored,) = await self._artifacts.store([file], self._folder, "log")
            except (ArtifactNotStored, OSError) as error:
                log.warning("log_segment_not_stored", segment=self._segment, error=str(error))
                lost = f"[{len(lines)} lines of this log could not be stored: {str(error)[:300]}]"
                self._keep(Line("warning", "log_lines_lost", lost))
                return
            finally:
                file.unlink(missing_ok=True)
            await self._reporter.report(
                LogStored(segment=self._segment, content="log", lines=len(lines), object=stored)
            )


def _count_lines(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))
