"""How files come into the store: declared, put by presigned URLs, verified, then filed under their hash.

Clients write below `<organization>/uploads/<upload>/` only. Nothing is copied to its content address before
its bytes were hashed here, and no URL for a content address is ever given out for writing.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from command_api.domain.errors import Conflict, Invalid, NotFound
from command_api.keeping import kept_meanwhile, pass_deletions
from command_api.objects import ObjectMissing, ObjectStore, PartsRefused, StoredPart, UploadLost
from schemas.api import UploadedFile, UploadPart, UploadSession, UploadTargetFile, UploadTargetPart
from schemas.errors import FieldError, KinoraError
from schemas.ids import Prefix, new_id
from schemas.objects import FileEntry, Listing, StoredObject, content_key

PAGE_FILES = 500
"""Files per session answer; the client completes them and asks again."""
PAGE_PARTS = 2000
PAGE_MULTIPARTS = 64
"""Multipart uploads that one answer may leave open: rclone keeps a file open for each."""
_MAX_PARTS = 10_000
_LOOKUPS = 32
_TRANSFERS = 8
COMPLETE_SECONDS = 20.0
"""How long one request waits for the verification of the files that it names."""
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

TABLES = """
CREATE TABLE IF NOT EXISTS kinora_uploads (
    upload_id text PRIMARY KEY,
    item_id text NOT NULL,
    organization_id text NOT NULL,
    part_bytes bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    active_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz
);
ALTER TABLE kinora_uploads DROP CONSTRAINT IF EXISTS kinora_uploads_item_id_key;
ALTER TABLE kinora_uploads ADD COLUMN IF NOT EXISTS active_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE kinora_uploads ADD COLUMN IF NOT EXISTS closed_at timestamptz;
CREATE UNIQUE INDEX IF NOT EXISTS kinora_uploads_open ON kinora_uploads (item_id) WHERE closed_at IS NULL;
CREATE INDEX IF NOT EXISTS kinora_uploads_organization ON kinora_uploads (organization_id);
CREATE TABLE IF NOT EXISTS kinora_upload_files (
    upload_id text NOT NULL REFERENCES kinora_uploads,
    sha256 text NOT NULL,
    path text NOT NULL,
    size_bytes bigint NOT NULL,
    multipart_id text,
    stored boolean NOT NULL DEFAULT false,
    PRIMARY KEY (upload_id, sha256)
);
CREATE INDEX IF NOT EXISTS kinora_upload_files_missing
    ON kinora_upload_files (upload_id, path) WHERE NOT stored;
"""

Pool = AsyncConnectionPool[AsyncConnection]


@dataclass(frozen=True, slots=True)
class _Upload:
    upload_id: str
    item_id: str
    organization_id: str
    part_bytes: int


@dataclass(frozen=True, slots=True)
class _File:
    upload_id: str
    sha256: str
    path: str
    size_bytes: int
    multipart_id: str | None
    stored: bool


class StillVerifying(KinoraError):
    """The files are all here and are being hashed; it takes a while."""

    code = "still_verifying"
    retryable = True


class Uploads:
    """Upload sessions of datasets and models; every step may be repeated."""

    def __init__(self, store: ObjectStore, pool: Pool, *, part_bytes: int, max_bytes: int) -> None:
        self._store = store
        self._pool = pool
        self._part_bytes = part_bytes
        self._max_bytes = max_bytes
        self._turns = asyncio.Semaphore(_TRANSFERS)
        self._filing: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is cut off here is done again by the next request that asks for it.
        running = list(self._filing.values())
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def declare(self, organization_id: str, files: Sequence[FileEntry]) -> StoredObject:
        """Check a declaration and file it as an object of its own.

        Raises:
            Invalid: naming every file that cannot be.
        """
        _check(files, self._max_bytes)
        listing = Listing(files=tuple(sorted(files, key=lambda file: file.path)))
        content = listing.model_dump_json().encode()
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        key = content_key(organization_id, sha256)
        async with self._pool.connection() as connection, kept_meanwhile(connection):
            # Fresh from now on, so that it outlasts the time until the log names it.
            await self._store.put_bytes(key, content)
        return StoredObject(path="listing.json", key=key, size_bytes=len(content), sha256=sha256)

    async def begin(self, organization_id: str, item_id: str, listing: StoredObject) -> str:
        """The id of the item's one upload, begun now or before."""
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                "SELECT upload_id FROM kinora_uploads WHERE item_id = %s AND closed_at IS NULL", (item_id,)
            )
            known = await cursor.fetchone()
        if known is not None:
            return str(known[0])
        content = await self._store.get_bytes(listing.key)
        files = (await asyncio.to_thread(Listing.model_validate_json, content)).files
        upload = _Upload(new_id(Prefix.UPLOAD), item_id, organization_id, _part_size(files, self._part_bytes))
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                "INSERT INTO kinora_uploads (upload_id, item_id, organization_id, part_bytes)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT (item_id) WHERE closed_at IS NULL DO NOTHING",
                (upload.upload_id, upload.item_id, upload.organization_id, upload.part_bytes),
            )
            if cursor.rowcount == 1:
                unique = {file.sha256: file for file in reversed(files)}
                copy = "COPY kinora_upload_files (upload_id, sha256, path, size_bytes) FROM STDIN"
                async with cursor.copy(copy) as rows:
                    for file in unique.values():
                        await rows.write_row((upload.upload_id, file.sha256, file.path, file.size_bytes))
                return upload.upload_id
        return await self.begin(organization_id, item_id, listing)

    async def session(self, upload_id: str, organization_id: str) -> UploadSession:
        """URLs for the next files that the store lacks; no files when it has them all."""
        upload = await self._upload(upload_id, organization_id)
        wanted = await self._missing_page(upload)
        gate = asyncio.Semaphore(_LOOKUPS)

        async def target(file: _File) -> UploadTargetFile:
            async with gate:
                return await self._target(upload, file)

        targets = await asyncio.gather(*(target(file) for file in wanted))
        asked = sum(part.size_bytes for file in targets for part in file.parts)
        there = sum(file.size_bytes for file in wanted) - asked
        return UploadSession(
            upload_id=upload_id,
            part_size_bytes=upload.part_bytes,
            files=tuple(targets),
            remaining_bytes=max(0, await self._missing_bytes(upload_id) - there),
            expires_in_seconds=self._store.presign_seconds,
        )

    async def complete(
        self, upload_id: str, item_id: str, organization_id: str, files: Sequence[UploadedFile]
    ) -> int:
        """Verify the files that the client says are put, and file them. Returns how many are still missing.

        Raises:
            NotFound: when the item has no such upload.
            Invalid: naming every file that is not what was declared; the others are kept.
            Conflict: code ``upload_expired`` when the store forgot an upload; the others are kept.
            StillVerifying: when it takes longer than a request should; it goes on meanwhile.
        """
        upload = await self._upload(upload_id, organization_id)
        if upload.item_id != item_id:
            raise _unknown(upload_id)
        known = await self._files(upload_id, [file.sha256 for file in files])
        problems: list[FieldError] = []
        expired: list[str] = []
        works: list[tuple[int, _File, asyncio.Task[None]]] = []
        for index, given in enumerate(files):
            file = known.get(given.sha256)
            if file is None:
                message = f"{given.sha256} is not a file of upload {upload_id}; leave it out"
                problems.append(
                    FieldError(pointer=f"/files/{index}/sha256", code="unknown_file", message=message)
                )
            elif not file.stored:
                works.append((index, file, self._begin_filing(upload, file, given.parts)))
        if works:
            await asyncio.wait({work for _, _, work in works}, timeout=COMPLETE_SECONDS)
        for index, file, work in works:
            if not work.done():
                continue
            try:
                work.result()
            except _Unusable as error:
                problems.append(FieldError(pointer=f"/files/{index}", code=error.code, message=error.message))
            except UploadLost:
                expired.append(file.path)
        if problems:
            problems.sort(key=lambda problem: problem.pointer)
            raise Invalid(problems[0].message, code=problems[0].code, errors=tuple(problems))
        if expired:
            raise Conflict(
                f"the store no longer knows the parts of {', '.join(sorted(expired)[:5])}"
                f" ({len(expired)} files); open the session again and send them anew",
                code="upload_expired",
            )
        if unfinished := sum(not work.done() for _, _, work in works):
            raise StillVerifying(
                f"{unfinished} of {len(works)} files are still being verified; send the same request again"
            )
        return await self._count_missing(upload_id)

    def _begin_filing(
        self, upload: _Upload, file: _File, parts: Sequence[UploadPart]
    ) -> "asyncio.Task[None]":
        """Verify and file one file, beyond the request if that is shorter; a repeat joins what runs."""
        place = upload.upload_id, file.sha256
        work = self._filing.get(place)
        if work is None:
            work = self._filing[place] = asyncio.create_task(self._file_in_turn(upload, file, parts))
            work.add_done_callback(lambda done: self._filed(place, done))
        return work

    async def _file_in_turn(self, upload: _Upload, file: _File, parts: Sequence[UploadPart]) -> None:
        async with self._turns:
            await self._file_away(upload, file, parts)

    def _filed(self, place: tuple[str, str], work: "asyncio.Task[None]") -> None:
        del self._filing[place]
        if not work.cancelled():
            work.exception()  # seen, also when nobody asks again

    # ---- what is missing -------------------------------------------------------------------------

    async def _missing_page(self, upload: _Upload) -> list[_File]:
        wanted: list[_File] = []
        parts = multiparts = 0
        after = ""
        while True:
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(_File))
                await cursor.execute(
                    "SELECT upload_id, sha256, path, size_bytes, multipart_id, stored"
                    " FROM kinora_upload_files WHERE upload_id = %s AND NOT stored AND path > %s"
                    " ORDER BY path LIMIT %s",
                    (upload.upload_id, after, PAGE_FILES),
                )
                rows = await cursor.fetchall()
            for file, present in zip(rows, await self._present(upload, rows), strict=True):
                if present or (upload.upload_id, file.sha256) in self._filing:
                    continue
                count = _part_count(file, upload)
                many = count > 1
                full = len(wanted) >= PAGE_FILES or parts + count > PAGE_PARTS
                if wanted and (full or (many and multiparts >= PAGE_MULTIPARTS)):
                    return wanted
                wanted.append(file)
                parts += count
                multiparts += many
            if len(rows) < PAGE_FILES:
                return wanted
            after = rows[-1].path

    async def _present(self, upload: _Upload, files: Sequence[_File]) -> list[bool]:
        gate = asyncio.Semaphore(_LOOKUPS)

        async def present(file: _File) -> bool:
            key = content_key(upload.organization_id, file.sha256)
            async with gate:
                if file.size_bytes == 0:
                    await self._store.put_bytes(key, b"", content_type="application/octet-stream")
                    return True
                return await self._store.head(key) == file.size_bytes

        found = await asyncio.gather(*(present(file) for file in files))
        stored = [file.sha256 for file, there in zip(files, found, strict=True) if there]
        if stored:
            await self._mark_stored(upload.upload_id, stored)
        return found

    async def _target(self, upload: _Upload, file: _File) -> UploadTargetFile:
        key, count = _temporary_key(upload, file), _part_count(file, upload)
        if count == 1:
            url = await self._store.presign_put(key, size_bytes=file.size_bytes)
            parts = [UploadTargetPart(number=1, url=url, size_bytes=file.size_bytes)]
        else:
            multipart_id, there = await self._multipart(upload, file, key)
            parts = []
            for number in range(1, count + 1):
                size = _part_bytes(upload, file, number)
                if number in there and there[number].size_bytes == size:
                    continue
                url = await self._store.presign_part(key, multipart_id, number, size_bytes=size)
                parts.append(UploadTargetPart(number=number, url=url, size_bytes=size))
        return UploadTargetFile(path=file.path, sha256=file.sha256, parts=tuple(parts))

    async def _multipart(self, upload: _Upload, file: _File, key: str) -> tuple[str, dict[int, StoredPart]]:
        """The file's multipart upload, begun now if need be, and what the store holds of it."""
        if file.multipart_id is not None:
            with suppress(UploadLost):
                return file.multipart_id, await self._store.parts(key, file.multipart_id)
        fresh = await self._store.create_multipart(key)
        async with self._pool.connection() as connection:
            # Of two sessions opened at once, the first to write wins and both hand out the same upload.
            cursor = await connection.execute(
                "UPDATE kinora_upload_files SET multipart_id = %s"
                " WHERE upload_id = %s AND sha256 = %s AND multipart_id IS NOT DISTINCT FROM %s",
                (fresh, upload.upload_id, file.sha256, file.multipart_id),
            )
            if cursor.rowcount == 1:
                return fresh, {}
        await self._store.abort(key, fresh)
        current = (await self._files(upload.upload_id, [file.sha256]))[file.sha256]
        return await self._multipart(upload, current, key)

    # ---- from a temporary key to the content address ---------------------------------------------

    async def _file_away(self, upload: _Upload, file: _File, parts: Sequence[UploadPart]) -> None:
        target, temporary = content_key(upload.organization_id, file.sha256), _temporary_key(upload, file)
        if not file.stored and await self._store.head(target) != file.size_bytes:
            if _part_count(file, upload) == 1:
                await self._file_small(file, temporary, target)
            else:
                await self._file_large(upload, file, parts, temporary, target)
        await self._store.delete(temporary)
        await self._mark_stored(upload.upload_id, [file.sha256])

    async def _file_small(self, file: _File, temporary: str, target: str) -> None:
        # The bytes that were hashed are the bytes that are stored: the client's URL still works meanwhile.
        try:
            content = await self._store.get_bytes(temporary)
        except ObjectMissing:
            raise _Unusable(
                f"{file.path} was not put to its URL; put it, then complete", "file_missing"
            ) from None
        actual = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        await self._expect(file, temporary, actual, len(content))
        await self._store.put_bytes(target, content, content_type="application/octet-stream")

    async def _file_large(
        self, upload: _Upload, file: _File, parts: Sequence[UploadPart], temporary: str, target: str
    ) -> None:
        try:
            named = await self._all_parts(upload, file, parts, temporary)
            await self._store.complete_multipart(temporary, file.multipart_id or "none", named)
        except PartsRefused as error:
            raise _Unusable(f"{file.path}: {error.message}; send its parts anew", "parts_refused") from error
        except UploadLost:
            # Joined by an earlier try that broke off after it, or lost for good.
            if await self._store.head(temporary) is None:
                raise
        # Nobody can write here any more: a completed upload takes no parts.
        actual, size = await self._store.hash(temporary)
        await self._expect(file, temporary, actual, size)
        await self._store.copy(temporary, target)

    async def _all_parts(
        self, upload: _Upload, file: _File, given: Sequence[UploadPart], key: str
    ) -> list[UploadPart]:
        """The parts that the client names, and for the rest those that an earlier session left."""
        count, numbers = _part_count(file, upload), [part.number for part in given]
        if sorted(set(numbers)) != numbers or (numbers and numbers[-1] > count):
            raise _Unusable(
                f"{file.path} has parts 1 to {count}; name each that you put once, in order", "parts_refused"
            )
        if len(numbers) == count:
            return list(given)
        named = {part.number: part for part in given}
        for number, part in (await self._store.parts(key, file.multipart_id or "none")).items():
            if part.size_bytes == _part_bytes(upload, file, number):
                named.setdefault(number, UploadPart(number=number, etag=part.etag))
        missing = [str(number) for number in range(1, count + 1) if number not in named]
        if missing:
            raise _Unusable(
                f"{file.path} lacks its parts {', '.join(missing[:10])} of {count}; open the session again"
                " and put what it asks for",
                "parts_refused",
            )
        return [named[number] for number in sorted(named)]

    async def _expect(self, file: _File, temporary: str, actual: str, size: int) -> None:
        if actual == file.sha256 and size == file.size_bytes:
            return
        await self._store.delete(temporary)
        raise _Unusable(
            f"{file.path} was declared as {file.size_bytes} bytes with sha256 {file.sha256}, but {size} bytes"
            f" with sha256 {actual} arrived; send the declared file",
            "hash_mismatch",
        )

    # ---- rows ------------------------------------------------------------------------------------

    async def _upload(self, upload_id: str, organization_id: str) -> _Upload:
        """The open session, which is in use again; what the store holds of its files can be believed."""
        async with self._pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(_Upload))
            await cursor.execute(
                "UPDATE kinora_uploads SET active_at = now()"
                " WHERE upload_id = %s AND organization_id = %s AND closed_at IS NULL"
                " RETURNING upload_id, item_id, organization_id, part_bytes",
                (upload_id, organization_id),
            )
            upload = await cursor.fetchone()
            if upload is None:
                raise _unknown(upload_id)
            await pass_deletions(connection)
        return upload

    async def _files(self, upload_id: str, hashes: Sequence[str]) -> dict[str, _File]:
        async with self._pool.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(_File))
            await cursor.execute(
                "SELECT upload_id, sha256, path, size_bytes, multipart_id, stored FROM kinora_upload_files"
                " WHERE upload_id = %s AND sha256 = ANY(%s)",
                (upload_id, list(hashes)),
            )
            return {file.sha256: file for file in await cursor.fetchall()}

    async def _mark_stored(self, upload_id: str, hashes: Sequence[str]) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(
                "UPDATE kinora_upload_files SET stored = true, multipart_id = NULL"
                " WHERE upload_id = %s AND sha256 = ANY(%s)",
                (upload_id, list(hashes)),
            )

    async def _count_missing(self, upload_id: str) -> int:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM kinora_upload_files WHERE upload_id = %s AND NOT stored", (upload_id,)
            )
            row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def _missing_bytes(self, upload_id: str) -> int:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT coalesce(sum(size_bytes), 0) FROM kinora_upload_files"
                " WHERE upload_id = %s AND NOT stored",
                (upload_id,),
            )
            row = await cursor.fetchone()
        return int(row[0]) if row else 0


class _Unusable(Exception):
    """One file that cannot be filed; the others go on."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def _unknown(upload_id: str) -> NotFound:
    return NotFound(
        f"there is no upload {upload_id}; open a session with POST …/upload", code="upload_unknown"
    )


def _temporary_key(upload: _Upload, file: _File) -> str:
    return f"{upload.organization_id}/uploads/{upload.upload_id}/{file.sha256}"


def _part_size(files: Iterable[FileEntry], least: int) -> int:
    largest = max(file.size_bytes for file in files)
    mebibytes = -(-largest // (_MAX_PARTS * 2**20))
    return max(least, mebibytes * 2**20)


def _part_bytes(upload: _Upload, file: _File, number: int) -> int:
    return min(upload.part_bytes, file.size_bytes - (number - 1) * upload.part_bytes)


def _part_count(file: _File, upload: _Upload) -> int:
    return max(1, -(-file.size_bytes // upload.part_bytes))


def _check(files: Sequence[FileEntry], max_bytes: int) -> None:
    errors: list[FieldError] = []

    def refuse(index: int, field: str, code: str, message: str) -> None:
        errors.append(FieldError(pointer=f"/files/{index}/{field}", code=code, message=message))

    paths = {file.path for file in files}
    seen: set[str] = set()
    sizes: dict[str, int] = {}
    for index, file in enumerate(files):
        if file.path in seen:
            refuse(index, "path", "duplicate_path", f"path {file.path} is declared twice; leave one out")
        seen.add(file.path)
        folders = file.path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            if folder in paths:
                refuse(index, "path", "path_conflict", f"{folder} is declared as a file and as a folder")
        if sizes.setdefault(file.sha256, file.size_bytes) != file.size_bytes:
            refuse(
                index,
                "size_bytes",
                "size_conflict",
                f"{file.path} has another file's sha256 but not its size",
            )
        if (file.size_bytes == 0) != (file.sha256 == _EMPTY_SHA256):
            refuse(index, "sha256", "size_conflict", f"{file.path}: size and sha256 contradict one another")
    total = sum(file.size_bytes for file in files)
    if total < 1 or total > max_bytes:
        message = f"the files have {total} bytes together; 1 to {max_bytes} are possible"
        errors.append(FieldError(pointer="/files", code="size_limit", message=message))
    if errors:
        raise Invalid(errors[0].message, code="invalid_request", errors=tuple(errors[:100]))
