"""The object store: the only place that speaks S3, kept to what rclone, MinIO and AWS all understand."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from command_api.s3 import s3_client
from schemas.api import UploadPart
from schemas.errors import KinoraError
from schemas.settings import S3Settings

_CHUNK_BYTES = 4 * 2**20
_COPY_LIMIT_BYTES = 5 * 2**30
"""The largest object that S3 copies in one request."""
_COPY_PART_BYTES = 64 * 2**20
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})


class ObjectStoreUnavailable(KinoraError):
    """The object store does not answer, or answers with an error that is not ours."""

    code = "object_store_unavailable"
    retryable = True


class ObjectMissing(KinoraError):
    """Nothing is stored under a key."""

    code = "object_missing"


class UploadLost(KinoraError):
    """The store knows nothing of a multipart upload: it was completed, aborted or forgotten at a restart."""

    code = "upload_lost"


class PartsRefused(KinoraError):
    """The named parts are not the ones that the store holds."""

    code = "parts_refused"


@dataclass(frozen=True, slots=True)
class Entry:
    """An object that is there."""

    key: str
    size_bytes: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part of a multipart upload that is there."""

    etag: str
    size_bytes: int


class ObjectStore:
    """One bucket. Use as an async context manager; safe to share between tasks of one loop."""

    def __init__(self, settings: S3Settings, *, copy_limit_bytes: int = _COPY_LIMIT_BYTES) -> None:
        self._settings = settings
        self._copy_limit_bytes = copy_limit_bytes
        self._exit = AsyncExitStack()
        self._s3: Any = None

    async def __aenter__(self) -> Self:
        config = AioConfig(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # rclone refuses the checksum trailers that newer SDKs add by themselves.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"max_attempts": 4, "mode": "standard"},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=64,
            proxies={},
        )
        client = s3_client(
            self._settings.endpoint_url,
            region=self._settings.region,
            access_key=self._settings.access_key,
            secret_key=self._settings.secret_key.get_secret_value(),
            config=config,
        )
        self._s3 = await self._exit.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    @property
    def presign_seconds(self) -> int:
        """How long a presigned URL works."""
        return self._settings.presign_seconds

    async def ensure_bucket(self) -> None:
        """Make the bucket unless it is there."""
        try:
            await self._call("head_bucket")
        except ObjectMissing:
            await self._call("create_bucket")

    async def check(self) -> None:
        """One cheap request.

        Raises:
            ObjectStoreUnavailable: when the store or the bucket cannot be reached.
        """
        try:
            await self._call("head_bucket")
        except ObjectMissing as error:
            raise ObjectStoreUnavailable(f"the bucket {self._settings.bucket} does not exist") from error

    # ---- presigned URLs: made here, used by clients and agents -----------------------------------

    async def presign_get(self, key: str, *, filename: str | None = None) -> str:
        """A URL that reads one object until `presign_seconds` have passed."""
        extra = (
            {} if filename is None else {"ResponseContentDisposition": f'attachment; filename="{filename}"'}
        )
        return await self._presign("get_object", Key=key, **extra)

    async def presign_put(self, key: str, *, size_bytes: int | None = None) -> str:
        """A URL that writes one object; with `size_bytes`, only one of exactly that length."""
        extra = {} if size_bytes is None else {"ContentLength": size_bytes}
        return await self._presign("put_object", Key=key, **extra)

    async def presign_part(
        self, key: str, upload_id: str, number: int, *, size_bytes: int | None = None
    ) -> str:
        """A URL that writes one part of a multipart upload, of exactly `size_bytes` when given."""
        extra = {} if size_bytes is None else {"ContentLength": size_bytes}
        return await self._presign("upload_part", Key=key, UploadId=upload_id, PartNumber=number, **extra)

    async def _presign(self, operation: str, **params: Any) -> str:
        url: str = await self._s3.generate_presigned_url(
            operation,
            Params={"Bucket": self._settings.bucket, **params},
            ExpiresIn=self._settings.presign_seconds,
        )
        # Signing is pure computation: thousands of URLs in a row must not hold the loop.
        await asyncio.sleep(0)
        return url

    # ---- multipart uploads -----------------------------------------------------------------------

    async def create_multipart(self, key: str) -> str:
        """Begin a multipart upload and return the store's id of it."""
        return str((await self._call("create_multipart_upload", Key=key))["UploadId"])

    async def parts(self, key: str, upload_id: str) -> dict[int, "StoredPart"]:
        """The parts that the store holds, by number.

        Raises:
            UploadLost: when the store does not know the upload (any more); rclone forgets all at a restart.
        """
        found: dict[int, StoredPart] = {}
        marker: dict[str, int] = {}
        while True:
            try:
                page = await self._call("list_parts", Key=key, UploadId=upload_id, **marker)
            except ObjectMissing as error:
                raise UploadLost(f"the store knows no multipart upload {upload_id} of {key}") from error
            for part in page.get("Parts", ()):
                found[int(part["PartNumber"])] = StoredPart(str(part["ETag"]), int(part["Size"]))
            if not page.get("IsTruncated"):
                return found
            marker = {"PartNumberMarker": int(page["NextPartNumberMarker"])}

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[UploadPart]) -> None:
        """Join the parts in ascending order, the only one that rclone accepts.

        Raises:
            UploadLost: when the store does not know the upload (any more).
            PartsRefused: when a part is missing or its etag differs.
        """
        named = [
            {"PartNumber": part.number, "ETag": part.etag}
            for part in sorted(parts, key=lambda part: part.number)
        ]
        await self._call(
            "complete_multipart_upload", Key=key, UploadId=upload_id, MultipartUpload={"Parts": named}
        )

    async def abort(self, key: str, upload_id: str) -> None:
        """Forget a multipart upload; harmless when it is gone already."""
        try:
            await self._call("abort_multipart_upload", Key=key, UploadId=upload_id)
        except (UploadLost, ObjectMissing):
            return

    # ---- objects ---------------------------------------------------------------------------------

    async def head(self, key: str) -> int | None:
        """The object's size, or None when there is none."""
        try:
            return int((await self._call("head_object", Key=key))["ContentLength"])
        except ObjectMissing:
            return None

    async def hash(self, key: str) -> tuple[str, int]:
        """SHA-256 and size of the object as it is stored, read in chunks and hashed off the loop.

        Raises:
            ObjectMissing: when there is none.
        """
        digest, size = hashlib.sha256(), 0
        async for chunk in self.chunks(key):
            await asyncio.to_thread(digest.update, chunk)
            size += len(chunk)
        return digest.hexdigest(), size

    async def chunks(self, key: str) -> AsyncIterator[bytes]:
        """The object's bytes in pieces of bounded size."""
        answer = await self._call("get_object", Key=key)
        try:
            async with answer["Body"]:
                while chunk := await answer["Body"].read(_CHUNK_BYTES):
                    yield chunk
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise ObjectStoreUnavailable(f"reading {key} from the object store broke off: {error}") from error

    async def put_bytes(self, key: str, content: bytes, *, content_type: str = "application/json") -> None:
        """Store a small object."""
        await self._call("put_object", Key=key, Body=content, ContentType=content_type)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], size_bytes: int) -> None:
        """Store an object of a known size that may be larger than memory."""
        part_bytes = max(_COPY_PART_BYTES, -(-size_bytes // 10_000))
        parts = _regrouped(chunks, part_bytes)
        if size_bytes <= part_bytes:
            content = b"".join([part async for part in parts])
            await self.put_bytes(key, content, content_type="application/octet-stream")
            return
        upload_id = await self.create_multipart(key)
        try:
            done: list[UploadPart] = []
            async for content in parts:
                number = len(done) + 1
                answer = await self._call(
                    "upload_part", Key=key, UploadId=upload_id, PartNumber=number, Body=content
                )
                done.append(UploadPart(number=number, etag=answer["ETag"]))
            await self.complete_multipart(key, upload_id, done)
        except BaseException:
            await self.abort(key, upload_id)
            raise

    async def get_bytes(self, key: str, *, limit: int = 256 * 2**20) -> bytes:
        """A small object's content.

        Raises:
            ObjectMissing: when there is none.
            ObjectStoreUnavailable: when it is larger than `limit` bytes or the store is away.
        """
        pieces, size = [], 0
        async for chunk in self.chunks(key):
            size += len(chunk)
            if size > limit:
                raise ObjectStoreUnavailable(f"{key} is larger than {limit} bytes; read it in chunks")
            pieces.append(chunk)
        return b"".join(pieces)

    async def copy(self, source: str, target: str) -> None:
        """Copy an object inside the bucket.

        Raises:
            ObjectMissing: when there is no `source`.
        """
        size = await self.head(source)
        if size is None:
            raise ObjectMissing(f"there is no object {source}")
        if size > self._copy_limit_bytes:
            await self._copy_in_parts(source, target, size)
            return
        await self._call(
            "copy_object", Key=target, CopySource={"Bucket": self._settings.bucket, "Key": source}
        )

    async def _copy_in_parts(self, source: str, target: str, size: int) -> None:
        # Through this process, because rclone has no server-side copy of ranges.
        part_bytes = max(_COPY_PART_BYTES, -(-size // 10_000))
        upload_id = await self.create_multipart(target)
        try:
            parts = []
            for number, start in enumerate(range(0, size, part_bytes), start=1):
                last = min(size, start + part_bytes) - 1
                answer = await self._call("get_object", Key=source, Range=f"bytes={start}-{last}")
                async with answer["Body"]:
                    content = await answer["Body"].read()
                done = await self._call(
                    "upload_part", Key=target, UploadId=upload_id, PartNumber=number, Body=content
                )
                parts.append(UploadPart(number=number, etag=done["ETag"]))
            await self.complete_multipart(target, upload_id, parts)
        except BaseException:
            await self.abort(target, upload_id)
            raise

    async def delete(self, key: str) -> None:
        """Delete an object; harmless when there is none."""
        try:
            await self._call("delete_object", Key=key)
        except ObjectMissing:
            return

    async def iterate(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """Key and size of every object below `prefix`, in key order."""
        async for entry in self.entries(prefix):
            yield entry.key, entry.size_bytes

    async def entries(self, prefix: str) -> AsyncIterator["Entry"]:
        """Every object below `prefix`, in key order."""
        async for page in self._listed(Prefix=prefix):
            for entry in page.get("Contents", ()):
                yield Entry(str(entry["Key"]), int(entry["Size"]), entry["LastModified"])

    async def entry(self, key: str) -> "Entry | None":
        """The object as it stands, or None when there is none. Its time is in whole seconds."""
        try:
            answer = await self._call("head_object", Key=key)
        except ObjectMissing:
            return None
        return Entry(key, int(answer["ContentLength"]), answer["LastModified"])

    async def top_folders(self) -> list[str]:
        """The first segments of all keys, without their slash."""
        return [
            str(folder["Prefix"]).removesuffix("/")
            async for page in self._listed(Delimiter="/")
            for folder in page.get("CommonPrefixes", ())
        ]

    async def _listed(self, **params: str) -> AsyncIterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = await self._call("list_objects_v2", **params, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    async def _call(self, operation: str, **params: Any) -> Any:
        try:
            return await getattr(self._s3, operation)(Bucket=self._settings.bucket, **params)
        except ClientError as error:
            raise _translate(operation, params, error) from error
        except (BotoCoreError, OSError, TimeoutError) as error:
            raise ObjectStoreUnavailable(
                f"the object store at {self._settings.endpoint_url} did not answer {operation}: {error}"
            ) from error


async def _regrouped(chunks: AsyncIterator[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `size`; only the last one is smaller."""
    kept = bytearray()
    async for chunk in chunks:
        kept += chunk
        while len(kept) >= size:
            yield bytes(kept[:size])
            del kept[:size]
    if kept:
        yield bytes(kept)


def _translate(operation: str, params: dict[str, Any], error: ClientError) -> KinoraError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    key = params.get("Key", "")
    if code == "NoSuchUpload":
        return UploadLost(f"the store knows no multipart upload {params.get('UploadId')} of {key}")
    if code in ("InvalidPart", "InvalidPartOrder", "EntityTooSmall", "MalformedXML"):
        return PartsRefused(f"the store refused the parts of {key}: {code}")
    if code in _ABSENT or code == "NoSuchBucket":
        return ObjectMissing(f"there is no object {key}" if key else "the bucket does not exist")
    return ObjectStoreUnavailable(f"the object store refused {operation} of {key or 'the bucket'}: {code}")
