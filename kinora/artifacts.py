"""Fetches what a job made, and proves that it is what the log says."""

import hashlib
from pathlib import Path

import httpx

from kinora.client import Client, at
from schemas.errors import KinoraError


class DownloadRefused(KinoraError):
    """The target folder cannot take the files, or the store does not give them."""

    code = "download_refused"


class CorruptDownload(KinoraError):
    """The bytes that arrived are not the bytes that the log names."""

    code = "corrupt_download"
    retryable = True


def download_adapter(client: Client, job_id: str, folder: Path) -> list[Path]:
    """Write the adapter's files below `folder`; a file is in place only when its hash is right.

    Raises:
        DownloadRefused: when `folder` is not empty or the store does not answer.
        CorruptDownload: when a file's SHA-256 differs from the event's.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DownloadRefused(f"{folder} is not empty; name a new folder, so that nothing is replaced")
    written = []
    with httpx.Client(timeout=300, trust_env=False) as store:
        for entry in client.get(at("jobs", job_id, "adapter"))["files"]:
            target = folder / entry["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(target.name + ".part")
            digest = hashlib.sha256()
            try:
                with store.stream("GET", entry["url"]) as response, part.open("wb") as stream:
                    response.raise_for_status()
                    for block in response.iter_bytes():
                        digest.update(block)
                        stream.write(block)
            except httpx.HTTPError as error:
                raise DownloadRefused(
                    f"{entry['path']} could not be fetched ({_reason(error)}); try again"
                ) from error
            if digest.hexdigest() != entry["sha256"]:
                part.unlink()
                raise CorruptDownload(
                    f"{entry['path']} arrived with another SHA-256 than the log names; try again"
                )
            part.replace(target)
            written.append(target)
    return written


def _reason(error: httpx.HTTPError) -> str:
    # Not httpx's own text: it names the URL, and whoever has that may read the object.
    if isinstance(error, httpx.HTTPStatusError):
        return f"the object store answered {error.response.status_code}"
    return type(error).__name__
