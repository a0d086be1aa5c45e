"""Fetches what a job made, and proves that it is what the log says."""

import hashlib
from pathlib import Path

import httpx

from kinora.client import Client
from schemas.errors import KinoraError


class CorruptDownload(KinoraError):
    """The bytes that arrived are not the bytes that the log names."""

    code = "corrupt_download"
    retryable = True


def download_adapter(client: Client, job_id: str, folder: Path) -> list[Path]:
    """Write the adapter's files below `folder`; a file is in place only when its hash is right.

    Raises:
        CorruptDownload: when a file's SHA-256 differs from the event's.
    """
    written = []
    with httpx.Client(timeout=300, trust_env=False) as store:
        for entry in client.get(f"/jobs/{job_id}/adapter")["files"]:
            target = folder / entry["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(target.name + ".part")
            digest = hashlib.sha256()
            with store.stream("GET", entry["url"]) as response, part.open("wb") as stream:
                response.raise_for_status()
                for block in response.iter_bytes():
                    digest.update(block)
                    stream.write(block)
            if digest.hexdigest() != entry["sha256"]:
                part.unlink()
                raise CorruptDownload(
                    f"{entry['path']} arrived with another SHA-256 than the log names; try again"
                )
            part.replace(target)
            written.append(target)
    return written
