"""Fetches what an organization needs to verify its events offline, and goes on where it left off."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from kinora.client import ApiError, Client, Json, Unreachable
from kinora.verification.verify import (
    EARLIER_FOLDER,
    EVENTS_FILE,
    HEAD_FILE,
    KEYS_FILE,
    LEAVES_FILE,
    read_keys,
)
from schemas.errors import KinoraError
from schemas.heads import AuditKeys, HeadOfOrganization

Report = Callable[[str, int, int], None]


class FetchBroken(KinoraError):
    """The download ended early."""

    code = "fetch_broken"
    retryable = True


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is in the folder now."""

    head: HeadOfOrganization
    new_keys: tuple[str, ...]
    """Ids of keys that the folder did not know yet, though it knew others."""


def fetch(client: Client, folder: Path, report: Report) -> Fetched:
    """Bring the folder up to the latest head; heads from before are kept beside it.

    Raises:
        FetchBroken: when a download ended early; what has arrived is gone on with at the next call.
        ApiError: when the service refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = HeadOfOrganization.model_validate(client.get("/audit/heads/latest", min_position=None))
    new_keys = _keep_keys(
        folder / KEYS_FILE, AuditKeys.model_validate(client.get("/audit/keys", min_position=None))
    )
    until = head.head.position
    for name, path in ((EVENTS_FILE, "/events/export"), (LEAVES_FILE, "/audit/leaves")):
        _continue(client, path, folder / name, until, report)
    _keep_former_head(folder)
    (folder / HEAD_FILE).write_bytes(head.model_dump_json(indent=2).encode() + b"\n")
    return Fetched(head, new_keys)


def _keep_keys(file: Path, served: AuditKeys) -> tuple[str, ...]:
    """Keys that were known stay as they are: what changed is for a person to judge."""
    known = set(read_keys(file)) if file.exists() else set()
    if not known:
        file.write_text(served.model_dump_json(indent=2) + "\n")
        return ()
    return tuple(key.key_id for key in served.data if key.key_id not in known)


def _keep_former_head(folder: Path) -> None:
    file = folder / HEAD_FILE
    if not file.exists():
        return
    former = HeadOfOrganization.model_validate_json(file.read_bytes())
    (folder / EARLIER_FOLDER).mkdir(exist_ok=True)
    file.replace(folder / EARLIER_FOLDER / f"{former.head.number:012d}.json")


def _continue(client: Client, path: str, file: Path, until: int, report: Report) -> None:
    """Append what the file lacks up to `until`; a half line at its end is of a download that broke off."""
    after = _last_position(file)
    if after >= until:
        return
    with file.open("ab") as target:
        for chunk in _chunks(client, path, {"after": after, "until": until}):
            target.write(chunk)
            report(file.name, target.tell(), 0)


def _last_position(file: Path) -> int:
    """The position of the last whole line; what follows it is cut off."""
    if not file.exists():
        return 0
    with file.open("r+b") as stream:
        size = stream.seek(0, 2)
        reach = 2**16
        while True:
            start = max(0, size - reach)
            stream.seek(start)
            tail = stream.read(size - start)
            end = tail.rfind(b"\n") + 1
            begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
            if start == 0 or begin > 0:
                break
            reach *= 4
        stream.truncate(start + end)
    line = tail[begin:end]
    digits = line.removeprefix(b'{"position":').split(b",")[0].split(b" ")[0]
    return int(digits) if digits.isdigit() else 0


def _chunks(client: Client, path: str, params: Json) -> Iterator[bytes]:
    url = client.credentials.url.rstrip("/") + f"/api/v1{path}"
    headers = {"Authorization": f"Bearer {client.token()}"}
    try:
        with httpx.stream("GET", url, params=params, headers=headers, timeout=60, trust_env=False) as answer:
            if not answer.is_success:
                answer.read()
                raise _refusal(answer)
            yield from answer.iter_bytes()
    except httpx.ConnectError as error:
        raise Unreachable(f"{client.credentials.url} does not answer ({error})") from error
    except httpx.TransportError as error:
        raise FetchBroken(
            f"the download of {path} broke off ({error}); repeat the command to go on"
        ) from error


def _refusal(answer: httpx.Response) -> ApiError:
    try:
        problem = dict(answer.json())
    except (ValueError, TypeError):
        problem = {"detail": f"the service answered {answer.status_code}"}
    return ApiError(answer.status_code, problem)
