"""Sends a folder to the service: hash, register, put the parts that the store lacks, complete."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import httpx

from kinora.client import Client, Json
from schemas.api import CompleteUploadBody, RegisterBody, UploadedFile, UploadPart, UploadSession
from schemas.errors import KinoraError
from schemas.objects import FileEntry

Kind = Literal["datasets", "models"]
"""As the API's paths name them."""

Report = Callable[[str, int, int], None]
"""(what is going on, bytes done, bytes in all)"""


class UploadFailed(KinoraError):
    """The object store kept refusing a part."""

    code = "upload_failed"
    retryable = True


class NotUploadable(KinoraError):
    """The folder holds nothing that can be sent."""

    code = "not_uploadable"


def declare(folder: Path, paths: Sequence[str], report: Report) -> tuple[FileEntry, ...]:
    """Hash the files at `paths` inside `folder`.

    Raises:
        NotUploadable: when a file is missing or empty.
    """
    sizes = {}
    for path in paths:
        file = folder / path
        if not file.is_file():
            raise NotUploadable(f"{file} is not a file; check the path, or leave it out")
        sizes[path] = file.stat().st_size
        if sizes[path] == 0:
            raise NotUploadable(f"{file} is empty (0 bytes); replace it, or leave it out")
    total, done = sum(sizes.values()), 0
    entries = []
    for path in sorted(paths):
        digest = hashlib.sha256()
        with (folder / path).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                done += len(block)
                report("hashing", done, total)
        entries.append(FileEntry(path=path, size_bytes=sizes[path], sha256=digest.hexdigest()))
    return tuple(entries)


def upload_folder(
    client: Client,
    kind: Kind,
    folder: Path,
    paths: Sequence[str],
    *,
    name: str,
    description: str = "",
    report: Report = lambda what, done, total: None,
) -> Json:
    """Register the files of a folder and send those that the store does not hold yet.

    Returns the dataset or model, uploaded and waiting for validation.
    """
    files = declare(folder, paths, report)
    item = client.post(f"/{kind}", RegisterBody(name=name, description=description, files=files))
    by_hash = {file.sha256: folder / file.path for file in files}
    total = sum(file.size_bytes for file in {file.sha256: file for file in files}.values())
    done = 0
    with httpx.Client(timeout=300, trust_env=False) as store:
        while True:
            session = UploadSession.model_validate(client.post(f"/{kind}/{item['id']}/upload"))
            if not done:
                done = total - sum(part.size_bytes for file in session.files for part in file.parts)
            uploaded = []
            for file in session.files:
                parts = []
                with by_hash[file.sha256].open("rb") as stream:
                    for part in sorted(file.parts, key=lambda part: part.number):
                        block = stream.read(part.size_bytes)
                        parts.append(UploadPart(number=part.number, etag=_put(store, part.url, block)))
                        done += len(block)
                        report("uploading", min(done, total), total)
                uploaded.append(UploadedFile(sha256=file.sha256, parts=tuple(parts)))
            body = CompleteUploadBody(upload_id=session.upload_id, files=tuple(uploaded))
            item = client.post(f"/{kind}/{item['id']}/upload/complete", body)
            # A session answers a bounded number of files; the item stays `uploading` until all are there.
            if item["status"] != "uploading" or not session.files:
                return item


def _put(store: httpx.Client, url: str, block: bytes) -> str:
    for attempt in range(5):
        try:
            response = store.put(url, content=block)
            response.raise_for_status()
            return str(response.headers["ETag"])
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if attempt == 4:
                raise UploadFailed(
                    f"the object store did not take a part after 5 tries ({type(error).__name__}); try again:"
                    " what is stored already is not sent twice"
                ) from error
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")
