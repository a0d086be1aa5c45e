"""Sends a folder to the service: hash, register, put the parts that the store lacks, complete."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import httpx
from pydantic import ValidationError

from kinora.client import ApiError, Client, Json, Unreachable, at
from schemas.api import CompleteUploadBody, UploadedFile, UploadPart, UploadSession
from schemas.errors import KinoraError
from schemas.ids import Prefix, new_id
from schemas.objects import FileEntry

Kind = Literal["datasets", "models"]
"""As the API's paths name them."""

Report = Callable[[str, int, int], None]
"""(what is going on, bytes done, bytes in all)"""


PATIENCE_SECONDS = 300.0
"""How long a service or store may be away during an upload."""
FORGOTTEN = "the object store was restarted and forgot parts: sending them anew"
_IDLE_SESSIONS = 5
_BEGIN_ANEW = frozenset({"upload_expired", "upload_unknown"})


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
        NotUploadable: when a file is missing or empty, or its name cannot be kept.
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
        try:
            entries.append(FileEntry(path=path, size_bytes=sizes[path], sha256=digest.hexdigest()))
        except ValidationError as error:
            raise NotUploadable(f"{folder / path}: {error.errors()[0]['msg']}") from error
    return tuple(entries)


def send_files(
    client: Client, kind: Kind, item_id: str, folder: Path, files: Sequence[FileEntry], report: Report
) -> Json:
    """Send what the store lacks of a registered dataset or model; what it holds is not sent again.

    Waits out a service or store that is away for a while, URLs that run out, and parts that are forgotten.

    Raises:
        NotUploadable: when the service asks for a file that the folder does not hold.
        UploadFailed: when it does not get on.
    """
    with httpx.Client(timeout=300, trust_env=False) as store:
        return _Sending(client, store, at(kind, item_id, "upload"), folder, files, report).send()


class _Sending:
    """One upload, session by session."""

    def __init__(
        self,
        client: Client,
        store: httpx.Client,
        path: str,
        folder: Path,
        files: Sequence[FileEntry],
        report: Report,
    ) -> None:
        self._client = client
        self._store = store
        self._path = path
        self._report = report
        self._files = {file.sha256: folder / file.path for file in files}
        self._total = sum(file.size_bytes for file in {file.sha256: file for file in files}.values())
        self._done = 0

    def send(self) -> Json:
        idle = 0
        while idle < _IDLE_SESSIONS:
            session = UploadSession.model_validate(self._ask(self._path))
            forgotten = self._total - session.remaining_bytes < self._done
            self._done = self._total - session.remaining_bytes
            if forgotten:
                self._tell(FORGOTTEN)
            sent, whole, refused = self._put_all(session)
            body = CompleteUploadBody(upload_id=session.upload_id, files=tuple(whole))
            try:
                item = self._ask(f"{self._path}/complete", body)
            except ApiError as error:
                if error.code not in _BEGIN_ANEW:
                    raise
                idle += 1
                continue
            # A session answers a bounded number of files; the item stays `uploading` until all are there.
            if item["status"] != "uploading" or not session.files:
                return item
            idle = 0 if sent or whole else idle + 1
        raise UploadFailed(
            f"the upload does not get on{f' (the store answers {refused})' if refused else ''};"
            " try again later, what is stored already is not sent twice"
        )

    def _put_all(self, session: UploadSession) -> tuple[int, list[UploadedFile], int]:
        """How many parts were put, the files that are whole now, and the status that ended it early."""
        sent = 0
        whole: list[UploadedFile] = []
        for file in session.files:
            source = self._files.get(file.sha256)
            if source is None:
                raise NotUploadable(f"the folder does not hold {file.path} as it was declared; add it anew")
            parts = []
            with source.open("rb") as stream:
                for part in sorted(file.parts, key=lambda part: part.number):
                    stream.seek((part.number - 1) * session.part_size_bytes)
                    answer = self._put(part.url, stream.read(part.size_bytes))
                    if isinstance(answer, int):
                        return sent, whole, answer
                    parts.append(UploadPart(number=part.number, etag=answer))
                    sent += 1
                    self._done += part.size_bytes
                    self._tell("uploading")
            whole.append(UploadedFile(sha256=file.sha256, parts=tuple(parts)))
        return sent, whole, 0

    def _put(self, url: str, block: bytes) -> str | int:
        """The part's etag, or the status of a refusal, which a renewed URL may change."""
        patience = _Patience()
        while True:
            try:
                response = self._store.put(url, content=block)
            except httpx.TransportError as error:
                why = type(error).__name__
            else:
                if response.is_success:
                    return str(response.headers["ETag"])
                if response.status_code < 500:
                    return response.status_code
                why = str(response.status_code)
            if not patience.wait():
                raise UploadFailed(
                    f"the object store did not take a part for {PATIENCE_SECONDS:.0f} s ({why}); try again:"
                    " what is stored already is not sent twice"
                )
            self._tell(f"waiting for the object store ({why})")

    def _ask(self, path: str, body: CompleteUploadBody | None = None) -> Json:
        patience, key = _Patience(), new_id(Prefix.COMMAND)
        while True:
            try:
                return self._client.post(path, body, key=key)
            except (ApiError, Unreachable) as error:
                verifying = error.code == "still_verifying"
                passes = isinstance(error, Unreachable) or error.status == 503
                if not verifying and not (passes and patience.wait()):
                    raise
                self._tell("verifying" if verifying else "waiting for the service")

    def _tell(self, doing: str) -> None:
        self._report(doing, min(self._done, self._total), self._total)


class _Patience:
    """Growing pauses, up to a time in all."""

    def __init__(self) -> None:
        self._pause = 0.5
        self._ends = time.monotonic() + PATIENCE_SECONDS

    def wait(self) -> bool:
        """Pause; False when there is no time left for it."""
        if time.monotonic() + self._pause > self._ends:
            return False
        time.sleep(self._pause)
        self._pause = min(5.0, 2 * self._pause)
        return True
