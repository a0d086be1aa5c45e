"""Fetches what an organization needs to verify its events offline, and goes on where it left off."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kinora.client import Client
from kinora.event_export import export
from kinora.verification.verify import (
    EARLIER_FOLDER,
    EVENTS_FILE,
    HEAD_FILE,
    KEYS_FILE,
    LEAVES_FILE,
    read_keys,
)
from schemas.heads import AuditKeys, HeadOfOrganization

Report = Callable[[str, int, int], None]


_TAIL_BYTES = 4096
"""More than a line of a leaf file."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is in the folder now."""

    head: HeadOfOrganization
    new_keys: tuple[str, ...]
    """Ids of keys that the folder did not know yet, though it knew others."""


def fetch(client: Client, folder: Path, report: Report) -> Fetched:
    """Bring the folder up to the latest head; heads from before are kept beside it.

    Raises:
        NotAnExport: when the folder holds other events.
        ApiError: when the service refuses; with 409 where its log is another one now.
        Unreachable: when a download ended early; the next call goes on with what has arrived.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = HeadOfOrganization.model_validate(client.get("/audit/heads/latest", min_position=None))
    new_keys = _keep_keys(
        folder / KEYS_FILE, AuditKeys.model_validate(client.get("/audit/keys", min_position=None))
    )
    until = head.head.position
    export(client, folder / EVENTS_FILE, after=None, until=until, report=report)
    _continue_leaves(client, folder / LEAVES_FILE, until, report)
    _keep_head(folder, head)
    return Fetched(head, new_keys)


def _keep_keys(file: Path, served: AuditKeys) -> tuple[str, ...]:
    """Keys that were known stay as they are: what changed is for a person to judge."""
    known = set(read_keys(file)) if file.exists() else set()
    if not known:
        file.write_text(served.model_dump_json(indent=2) + "\n")
        return ()
    return tuple(key.key_id for key in served.data if key.key_id not in known)


def _keep_head(folder: Path, head: HeadOfOrganization) -> None:
    """Beside all former ones, never over one: two heads of one number are what proves that history forked."""
    file, former = folder / HEAD_FILE, folder / EARLIER_FOLDER
    if file.exists():
        kept = HeadOfOrganization.model_validate_json(file.read_bytes())
        if kept.head == head.head:
            return
        former.mkdir(exist_ok=True)
        file.replace(former / f"{kept.head.number:012d}-{kept.signature[:12]}.json")
    arriving = file.with_suffix(".part")
    arriving.write_bytes(head.model_dump_json(indent=2).encode() + b"\n")
    arriving.replace(file)


def _continue_leaves(client: Client, file: Path, until: int, report: Report) -> None:
    """Append the leaves that the file lacks up to `until`; a half line is of a download that broke off."""
    after = _cut_to_whole_lines(file)
    if after >= until:
        return
    with file.open("ab") as target, client.download("/audit/leaves", after=after, until=until) as answer:
        for chunk in answer.iter_raw(2**18):
            target.write(chunk)
            report(file.name, after, until)


def _cut_to_whole_lines(file: Path) -> int:
    """The position of the last whole line; 0 where there is none."""
    if not file.exists():
        return 0
    with file.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        begin = stream.seek(max(0, size - _TAIL_BYTES))
        tail = stream.read()
        end = tail.rfind(b"\n") + 1
        stream.truncate(begin + end)
    position, _, _ = tail[tail.rfind(b"\n", 0, max(0, end - 1)) + 1 : end].partition(b" ")
    return int(position) if position.isdigit() else 0
