"""Fetches what a job made, and proves that it is what the log says."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import httpx

from kinora.client import Client, Json, at
from schemas.errors import KinoraError


class DownloadRefused(KinoraError):
    """The target folder cannot take the files, or the store does not give them."""

    code = "download_refused"


class CorruptDownload(KinoraError):
    """The bytes that arrived are not the bytes that the log names."""

    code = "corrupt_download"
    retryable = True


_FRESH_SECONDS = 300.0
"""URLs expire while large files are fetched: older ones are asked for again."""


def download_adapter(client: Client, job_id: str, folder: Path, *, merged: bool = False) -> list[Path]:
    """Write the adapter's files below `folder`, or those of the model that it was merged into.

    A file is in place only when its hash is right.

    Raises:
        DownloadRefused: when there are none, `folder` is not empty, or the store does not answer.
        CorruptDownload: when a file's SHA-256 differs from the event's.
    """

    def listed() -> list[Json]:
        found = client.get(at("jobs", job_id, "adapter"))
        files: list[Json] = found["merged" if merged else "files"]
        if not files:
            raise DownloadRefused(
                f"job {job_id} has no merged model; its warnings say why if its export was merged. Merge the"
                " adapter yourself: kinora models merge"
            )
        return files

    return _download(listed, folder)


def download_model(client: Client, model_id: str, folder: Path) -> list[Path]:
    """Write a model's files below `folder`: a base's, or all that a job left.

    Raises:
        DownloadRefused, CorruptDownload: as `download_adapter`.
    """
    return _download(lambda: list(client.pages(at("models", model_id, "download"))), folder)


def _download(listed: Callable[[], list[Json]], folder: Path) -> list[Path]:
    if folder.is_dir() and any(folder.iterdir()):
        raise DownloadRefused(f"{folder} is not empty; name a new folder, so that nothing is replaced")
    written = []
    entries, asked_at = listed(), monotonic()
    with httpx.Client(timeout=300, trust_env=False) as store:
        for place in range(len(entries)):
            if monotonic() - asked_at > _FRESH_SECONDS:
                entries, asked_at = listed(), monotonic()
            entry = entries[place]
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
