"""Carries one import out: fetch, unpack, choose, hash, store, and only then commit; leaves nothing behind."""

import asyncio
import base64
import hashlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import psycopg
from pydantic import ValidationError

from command_api.credentials.secrets import SecretPlace, Secrets
from command_api.domain.errors import Refused
from command_api.domain.import_sources import check_secret, folder_of
from command_api.handlers.bus import CommandBus
from command_api.imports import archives, buckets, folders, hub
from command_api.imports.errors import SourceFailed, disk_failure
from command_api.imports.layout import placed
from command_api.imports.progress import ProgressBoard
from command_api.imports.unpacker import unpacked
from command_api.imports.web import Credential, Web
from command_api.imports.work import BLOCK_BYTES, Fetched, Work
from command_api.keeping import keeping
from command_api.messaging.board import Item
from command_api.messaging.identity import item_context
from command_api.objects import ObjectStore
from command_api.settings import OrchestratorSettings
from command_api.uploads import Uploads
from schemas.api import SecretBody
from schemas.commands import Command
from schemas.commands.dataset import CompleteDatasetImport, FailDatasetImport
from schemas.commands.model import CompleteModelImport, FailModelImport
from schemas.errors import KinoraError
from schemas.ids import Prefix, derived_id, id_prefix
from schemas.imports import Collection, ImportSource
from schemas.objects import FileEntry, StoredObject, content_key

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
FOLDER_PREFIX = "import-"
_LONGEST_MESSAGE = 4000

P = ParamSpec("P")
R = TypeVar("R")


class Importer:
    """Does imports; several may run at once, each in a folder of its own."""

    def __init__(
        self,
        bus: CommandBus,
        store: ObjectStore,
        uploads: Uploads,
        secrets: Secrets,
        progress: ProgressBoard,
        settings: OrchestratorSettings,
        folder: Path,
    ) -> None:
        self._bus = bus
        self._store = store
        self._uploads = uploads
        self._secrets = secrets
        self._progress = progress
        self._own = settings.s3
        self._conninfo = settings.postgres.conninfo()
        self._settings = settings.imports
        self._roots = settings.import_roots
        self._folder = folder

    async def carry_out(self, item: Item) -> int | None:
        """Import an item and commit how that ended; the position of the end, None when it did not matter."""
        try:
            async with self._working(item) as work:
                async with asyncio.timeout(self._settings.max_seconds):
                    entries = await self._brought(item, work)
                return await self._until_answered(lambda: self._filed(item, entries, work))
        except TimeoutError:
            failure = SourceFailed(
                f"the import took more than {self._settings.max_seconds:.0f} s (imports.max_seconds)",
                code="import_too_slow",
                retryable=True,
            )
        except SourceFailed as error:
            failure = error
        except KinoraError as error:
            if error.code == "import_over":
                return None
            # Where fields are named, the first one's code says more than that of the whole.
            code = error.errors[0].code if error.errors else error.code
            failure = SourceFailed(error.message, code=code, retryable=error.retryable)
        except OSError as error:
            logger.warning("import of %s: %s", item.item_id, error)
            failure = disk_failure(error)
        except Exception:  # the policy's door: one import must not end the whole orchestrator
            logger.exception("import of %s failed", item.item_id)
            failure = SourceFailed(
                "the import failed here; the service's log says why", code="import_broken", retryable=True
            )
        return await self._until_answered(lambda: self._failed(item, failure))

    # ---- from the source to this disk ------------------------------------------------------------

    async def _brought(self, item: Item, work: Work) -> dict[Path, FileEntry]:
        request = item.import_of
        assert request is not None  # noqa: S101 - the board gives out only what is to be imported
        collection = collection_of(item)
        fetched = await self._fetched(item, request.source, collection, work)
        if request.source.kind == "url" or await in_thread(work, _is_one_archive, fetched):
            (packed,) = fetched
            work.begin("unpacking")
            fetched = await unpacked(packed.file, work)
            packed.file.unlink()
        names = placed((each.path for each in fetched), collection)
        work.begin("hashing", sum(each.file.stat().st_size for each in fetched if each.path in names))
        chosen = {each.file: names[each.path] for each in fetched if each.path in names}
        return await in_thread(work, _hashed, chosen, work)

    async def _fetched(
        self, item: Item, source: ImportSource, collection: Collection, work: Work
    ) -> list[Fetched]:
        work.begin("fetching")
        secret = await self._secret(item, source)
        match source.kind:
            case "folder":
                return await in_thread(work, folders.copied, folder_of(source), self._roots, work)
            case "s3":
                assert secret is not None  # noqa: S101 - such a source is not accepted without
                return await buckets.downloaded(source.uri, secret, self._own, work)
            case "url":
                target = work.new_file()
                async with Web(self._settings) as web:
                    await web.download(source.uri, target, work, _credential(secret))
                return [Fetched("archive", target)]
            case "hub":
                async with Web(self._settings) as web:
                    return await hub.downloaded(source.uri, collection, web, _credential(secret), work)

    async def _secret(self, item: Item, source: ImportSource) -> SecretBody | None:
        if source.secret is None:
            return None
        place = SecretPlace(item.organization_id, item.workspace_id or "", source.secret)
        secret = await self._until_answered(lambda: self._secrets.use(place))
        check_secret(source, secret.kind)
        return secret

    # ---- from this disk into the store and the log -----------------------------------------------

    async def _filed(self, item: Item, entries: dict[Path, FileEntry], work: Work) -> int:
        """Store what the store lacks and commit, while nobody may delete objects."""
        organization_id = item.organization_id
        work.begin("storing", sum(entry.size_bytes for entry in entries.values()))
        async with keeping(self._conninfo) as kept:
            listing = await self._uploads.declare(organization_id, list(entries.values()))
            stored: set[str] = set()
            for file, entry in entries.items():
                key = content_key(organization_id, entry.sha256)
                if entry.sha256 not in stored and await self._store.head(key) != entry.size_bytes:
                    await self._store.put_stream(key, _chunks(file), entry.size_bytes)
                stored.add(entry.sha256)
                work.took(entry.size_bytes)
            await kept.confirm()
            return await self._commit(item, "done", _completion(item, listing, list(entries.values())))

    async def _failed(self, item: Item, failure: SourceFailed) -> int | None:
        logger.info("import %d of %s failed: %s", item.attempt, item.item_id, failure.code)
        try:
            return await self._commit(item, "failed", _failure(item, failure))
        except Refused as error:
            logger.info("import of %s: %s", item.item_id, error)  # deleted meanwhile, for instance
            return None

    async def _commit(self, item: Item, name: str, command: Command) -> int:
        key = f"import:{item.item_id}:{item.attempt}:{name}"
        return (await self._bus.execute(command, item_context("imports", item, key))).position

    async def _until_answered(self, act: Callable[[], Awaitable[R]]) -> R:
        """Store and database may be away for a while; what was fetched is not fetched again for that."""
        while True:
            try:
                return await act()
            except psycopg.OperationalError as error:
                logger.warning("import: the database does not answer (%s); trying again", error)
            except KinoraError as error:
                if isinstance(error, SourceFailed) or not error.retryable:
                    raise
                logger.warning("import: %s; trying again", error)
            await asyncio.sleep(RETRY_SECONDS)

    @asynccontextmanager
    async def _working(self, item: Item) -> AsyncIterator[Work]:
        """A folder that is gone afterwards, and progress that others see."""
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=FOLDER_PREFIX, dir=self._folder))
        work = Work(self._settings, folder)
        try:
            async with self._progress.showing(item, work):
                yield work
        finally:
            work.ended.set()
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


async def in_thread(work: Work, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run blocking work; when cancelled, tell it to end and wait until it has, so that no file follows."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        work.ended.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen
        raise


def collection_of(item: Item) -> Collection:
    """Whether it will be a dataset or a model."""
    return "datasets" if id_prefix(item.item_id) == Prefix.DATASET else "models"


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(file.open, "rb") as stream:
        while block := await asyncio.to_thread(stream.read, BLOCK_BYTES):
            yield block


def _is_one_archive(fetched: Sequence[Fetched]) -> bool:
    return len(fetched) == 1 and archives.sniffed(fetched[0].file) is not None


def _hashed(files: dict[Path, str], work: Work) -> dict[Path, FileEntry]:
    entries = {}
    for file, path in files.items():
        digest, size = hashlib.sha256(), 0
        with file.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                work.took(len(block))
        try:
            entries[file] = FileEntry(path=path, size_bytes=size, sha256=digest.hexdigest())
        except ValidationError as error:
            reason = str(error.errors(include_url=False)[0]["msg"])
            raise SourceFailed(
                f"the source holds a file with an unusable name: {reason}", code="source_unusable"
            ) from None
    return entries


def _credential(secret: SecretBody | None) -> Credential:
    match secret:
        case SecretBody(kind="token", value=value):
            return Credential({"Authorization": f"Bearer {value}"})
        case SecretBody(kind="basic", username=username, value=value):
            pair = base64.b64encode(f"{username}:{value}".encode()).decode()
            return Credential({"Authorization": f"Basic {pair}"})
        case SecretBody(kind="query", value=value):
            return Credential(query=value.removeprefix("?"))
        case _:
            return Credential()


def _completion(item: Item, listing: StoredObject, entries: Sequence[FileEntry]) -> Command:
    fields = {
        "attempt": item.attempt,
        "listing": listing,
        "file_count": len(entries),
        "size_bytes": sum(entry.size_bytes for entry in entries),
        "upload_id": derived_id(Prefix.UPLOAD, item.item_id, f"import {item.attempt}"),
    }
    if collection_of(item) == "datasets":
        return CompleteDatasetImport.model_validate({"dataset_id": item.item_id, **fields})
    return CompleteModelImport.model_validate({"model_id": item.item_id, **fields})


def _failure(item: Item, failure: SourceFailed) -> Command:
    fields = {
        "attempt": item.attempt,
        "code": failure.code,
        # Names of files stand in it, which need not be text.
        "message": failure.message.encode(errors="replace").decode()[:_LONGEST_MESSAGE],
        "retryable": failure.retryable,
    }
    if collection_of(item) == "datasets":
        return FailDatasetImport.model_validate({"dataset_id": item.item_id, **fields})
    return FailModelImport.model_validate({"model_id": item.item_id, **fields})
