"""Reads prefixes of foreign S3 buckets with the workspace's own keys, never Kinora's bucket."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from command_api.imports.errors import SourceFailed, import_guard
from command_api.imports.work import BLOCK_BYTES, Fetched, Work
from command_api.network.guard import GuardedResolver
from command_api.s3 import s3_client
from schemas.api import SecretBody
from schemas.settings import S3Settings

_MISSING = frozenset({"NoSuchBucket", "NoSuchKey", "404"})
_REFUSED = frozenset({"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "401"})


async def downloaded(uri: str, secret: SecretBody, own: S3Settings, work: Work) -> list[Fetched]:
    """Every object below ``s3://bucket/prefix``, or the one object that it names.

    Raises:
        SourceFailed: what went wrong, in the user's terms.
    """
    parts = urlsplit(uri)
    bucket, prefix = parts.netloc, parts.path.lstrip("/")
    endpoint = urlsplit(secret.endpoint_url)
    _refuse_own(endpoint.geturl(), bucket, own)
    guard = import_guard(work.settings)
    # The client asks its resolver for names only, and tries for long what cannot be.
    await guard.addresses(endpoint.hostname or "", endpoint.port or 443)
    config = AioConfig(
        connector_args={"resolver": GuardedResolver(guard), "use_dns_cache": False},
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"max_attempts": 4, "mode": "standard"},
        connect_timeout=10,
        read_timeout=30,
        proxies={},
    )
    foreign = s3_client(
        secret.endpoint_url,
        region=secret.region,
        access_key=secret.access_key,
        secret_key=secret.value,
        config=config,
    )
    try:
        async with foreign as client:
            listed = await _listed(client, bucket, prefix, work)
            if not listed:
                raise SourceFailed(
                    f"there is nothing at {uri}; check bucket and prefix", code="source_missing"
                )
            work.begin("fetching", sum(size for _, size in listed))
            work.expect(work.bytes_total or 0)
            return [
                Fetched(_relative(key, prefix), await _fetched(client, bucket, key, work))
                for key, _ in listed
            ]
    except ClientError as error:
        raise _translated(uri, error) from None
    except (BotoCoreError, OSError, TimeoutError) as error:
        if isinstance(cause := error.__cause__ or error.__context__, SourceFailed):
            raise cause from None
        if isinstance(cause, Exception) and isinstance(cause.__cause__, SourceFailed):
            raise cause.__cause__ from None
        raise SourceFailed(
            f"{endpoint.hostname} does not answer ({type(error).__name__}); check the secret's endpoint_url,"
            " or try later",
            code="source_unreachable",
            retryable=True,
        ) from None


async def _listed(client: object, bucket: str, prefix: str, work: Work) -> list[tuple[str, int]]:
    listed: list[tuple[str, int]] = []
    pages = client.get_paginator("list_objects_v2")  # type: ignore[attr-defined]
    async for page in pages.paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            key = str(entry["Key"])
            inside = key == prefix or not prefix or prefix.endswith("/") or key[len(prefix)] == "/"
            if inside and not key.endswith("/"):
                listed.append((key, int(entry["Size"])))
        if len(listed) > work.settings.max_files:
            raise SourceFailed(
                f"there are more than {work.settings.max_files} objects below {prefix or bucket}",
                code="too_many_files",
            )
    return listed


async def _fetched(client: object, bucket: str, key: str, work: Work) -> Path:
    target = work.new_file()
    answer = await client.get_object(Bucket=bucket, Key=key)  # type: ignore[attr-defined]
    with target.open("xb") as file:
        async with answer["Body"]:
            while block := await answer["Body"].read(BLOCK_BYTES):
                work.took(len(block))
                await asyncio.to_thread(file.write, block)
    return target


def _relative(key: str, prefix: str) -> str:
    if key == prefix:
        return key.rsplit("/", 1)[-1]
    return key[len(prefix) :].lstrip("/")


def _refuse_own(endpoint_url: str, bucket: str, own: S3Settings) -> None:
    if bucket == own.bucket and _place(endpoint_url) == _place(own.endpoint_url):
        raise SourceFailed(
            f"{bucket} is the bucket of this service; export what you need from it and import that",
            code="own_store_refused",
        )


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)


def _translated(uri: str, error: ClientError) -> SourceFailed:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _MISSING:
        return SourceFailed(f"there is nothing at {uri}; check bucket and prefix", code="source_missing")
    if code in _REFUSED:
        return SourceFailed(
            f"{uri} refuses access ({code}); check the secret's keys and their rights", code="source_refused"
        )
    return SourceFailed(
        f"{uri} answers {code or 'an error'}; try later", code="source_unreachable", retryable=True
    )
