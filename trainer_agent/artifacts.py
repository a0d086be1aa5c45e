"""An attempt's outputs, brought to the store: hashed, put by presigned URLs, named as they were stored."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import structlog
from opentelemetry import trace

from schemas.objects import FileEntry, StoredObject
from schemas.work import CheckpointStored, Purpose, UploadRequest, UploadTarget, Warned
from trainer_agent.errors import AgentError, ArtifactNotStored, TransferFailed
from trainer_agent.hashing import Digest, digest
from trainer_agent.metrics import STORED_BYTES
from trainer_agent.presign import BATCH, Presigner
from trainer_agent.reporter import Reporter
from trainer_agent.story import Line, Note, of_report
from trainer_agent.transfer import persist, upload
from trainer_agent.waiting import all_of, end

log = structlog.get_logger()
_tracer = trace.get_tracer(__name__)

_LONGEST_WARNING = 1000
_UPLOADS_AT_ONCE = 4
MOST_CHECKPOINTS_WAITING = 4
"""While the store is away, a training goes on: its newest checkpoints are enough to go on from."""
_PATIENCE_SECONDS = 3600.0
"""A finished training is worth waiting for a store that is down."""


class Artifacts:
    """Stores files under one attempt's own prefixes."""

    def __init__(self, client: httpx.AsyncClient, presigner: Presigner) -> None:
        self._client = client
        self._presigner = presigner
        self._places = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def store_folder(self, folder: Path, purpose: Purpose, step: int = 0) -> tuple[StoredObject, ...]:
        """Every file in `folder`, by its path inside it; whole or not at all.

        Raises:
            ArtifactNotStored: a file could not be stored.
        """
        return await self.store(await asyncio.to_thread(_regular_files, folder), folder, purpose, step)

    async def store(
        self, files: Sequence[Path], folder: Path, purpose: Purpose, step: int = 0
    ) -> tuple[StoredObject, ...]:
        """`files`, by their paths inside `folder`.

        Raises:
            ArtifactNotStored: a file could not be stored.
        """
        with _tracer.start_as_current_span(
            f"store {purpose}", attributes={"kinora.files": len(files), "kinora.step": step}
        ):
            stored = await self._store(files, folder, purpose, step)
        STORED_BYTES.labels(purpose).inc(sum(each.size_bytes for each in stored))
        return stored

    async def _store(
        self, files: Sequence[Path], folder: Path, purpose: Purpose, step: int
    ) -> tuple[StoredObject, ...]:
        try:
            contents = [await asyncio.to_thread(digest, file) for file in files]
            requests = [
                _request(file.relative_to(folder), content, purpose, step)
                for file, content in zip(files, contents, strict=True)
            ]
            stored: list[StoredObject] = []
            for start in range(0, len(files), BATCH):
                batch = slice(start, start + BATCH)
                stored += await self._store_batch(files[batch], contents[batch], requests[batch])
        except TransferFailed as error:
            raise ArtifactNotStored(error.message, retryable=error.retryable) from error
        except OSError as error:
            raise ArtifactNotStored(f"{purpose} cannot be read: {error}") from error
        return tuple(stored)

    async def _store_batch(
        self, files: Sequence[Path], contents: Sequence[Digest], requests: Sequence[UploadRequest]
    ) -> list[StoredObject]:
        targets = await persist(lambda: self._presigner.uploads(requests), patience_seconds=_PATIENCE_SECONDS)
        return await all_of(
            self._store_one(*one) for one in zip(files, contents, requests, targets, strict=True)
        )

    async def _store_one(
        self, file: Path, content: Digest, request: UploadRequest, target: UploadTarget
    ) -> StoredObject:
        targets = [target]

        async def attempt() -> StoredObject:
            current = targets.pop() if targets else (await self._presigner.uploads([request]))[0]
            await upload(self._client, current.url, file, content)
            return current.object

        async with self._places:
            return await persist(attempt, patience_seconds=_PATIENCE_SECONDS)


class CheckpointUploads:
    """Stores checkpoints one after the other beside the training, and reports each when it is whole.

    The engine keeps only its newest ones, however far the uploads are behind: so each is held by hard links
    of its own from the moment it is known until it is stored, or until too many newer ones wait with it.
    """

    def __init__(self, artifacts: Artifacts, reporter: Reporter, kept: Path, note: Note) -> None:
        self._artifacts = artifacts
        self._reporter = reporter
        self._kept = kept
        self._note = note
        self._waiting: asyncio.Queue[tuple[int, Path]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            await end(self._worker)

    async def add(self, step: int, folder: Path) -> None:
        held = self._kept / f"checkpoint-{step}"
        try:
            await asyncio.to_thread(_hold, folder, held)
        except OSError as error:
            await self._give_up(step, f"it cannot be kept for its upload: {error}")
        else:
            self._waiting.put_nowait((step, held))
            await self._forget_superseded()

    async def _forget_superseded(self) -> None:
        while self._waiting.qsize() > MOST_CHECKPOINTS_WAITING:
            step, folder = self._waiting.get_nowait()
            log.info("checkpoint_superseded", step=step)
            await self._note(
                Line(
                    "info", "checkpoint_superseded", f"Checkpoint of step {step} not stored: newer ones wait"
                )
            )
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            self._waiting.task_done()

    async def stored(self) -> None:
        """Wait until every checkpoint added so far is stored, or given up with a warning."""
        assert self._worker is not None  # noqa: S101 - only asked of an entered context
        emptied = asyncio.create_task(self._waiting.join())
        await asyncio.wait({emptied, self._worker}, return_when=asyncio.FIRST_COMPLETED)
        await end(emptied)
        if self._worker.done():
            self._worker.result()  # it never returns: this raises what broke it

    async def _work(self) -> None:
        while True:
            step, folder = await self._waiting.get()
            try:
                objects = await self._artifacts.store_folder(folder, "checkpoint", step)
                stored = CheckpointStored(step=step, objects=objects)
                await self._reporter.report(stored)
                for line in of_report(stored):
                    await self._note(line)
            except AgentError as error:
                await self._give_up(step, error.message)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                self._waiting.task_done()

    async def _give_up(self, step: int, why: str) -> None:
        # The training is worth more than one checkpoint; the next one may get through.
        log.warning("checkpoint_not_stored", step=step, error=why)
        message = f"checkpoint {step}: {why}"[:_LONGEST_WARNING]
        await self._reporter.report(Warned(code="checkpoint_not_stored", message=message))
        await self._note(Line("warning", "checkpoint_not_stored", message))


def _hold(folder: Path, held: Path) -> None:
    shutil.rmtree(held, ignore_errors=True)
    shutil.copytree(folder, held, symlinks=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _regular_files(folder: Path) -> list[Path]:
    # No links: what an engine leaves behind must not lead out of its folder.
    return sorted(
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if (Path(parent) / name).is_file() and not (Path(parent) / name).is_symlink()
    )


def _request(path: Path, content: Digest, purpose: Purpose, step: int) -> UploadRequest:
    entry = FileEntry(path=path.as_posix(), size_bytes=content.size_bytes, sha256=content.sha256)
    return UploadRequest(purpose=purpose, step=step, file=entry)
