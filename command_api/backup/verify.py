"""Checks a backup as a restore would read it: hashes, order, versions, and every object that is named."""

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from command_api.backup import keys
from command_api.backup.errors import BackupDamaged
from command_api.backup.event_lines import EventLine, decode
from command_api.backup.folder import BackupFolder, hash_of, object_path
from command_api.backup.manifest import Manifest
from command_api.backup.progress import Report, silent
from command_api.backup.references import References
from command_api.backup.rows import expect, part_lines
from schemas.base import Message
from schemas.ids import Sha256
from schemas.objects import Listing

_REPORT_EVERY = 1000


class IndexEntry(Message):
    """An object that the log names; `missing` says why the backup does not hold it."""

    key: str
    sha256: Sha256
    size_bytes: int
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A backup whose rows are proven, and the objects that its log names."""

    manifest: Manifest
    objects: tuple[IndexEntry, ...]

    def contents(self) -> dict[str, int]:
        """Hash and size of every content that is here."""
        return {entry.sha256: entry.size_bytes for entry in self.objects if entry.missing is None}


async def verify(folder: BackupFolder, report: Report = silent) -> Checked:
    """Check everything, every byte of every object too.

    Raises:
        BackupError: at the first thing that is wrong.
    """
    checked = await asyncio.to_thread(check_rows, folder, report)
    await asyncio.to_thread(_check_contents, folder, checked, report)
    return checked


def check_rows(folder: BackupFolder, report: Report = silent) -> Checked:
    """Check all but the objects' content; that every object is there with its size is checked too."""
    manifest = folder.manifest()
    for part in manifest.of_kind("keys"):
        with folder.read(part.path) as file:
            expect(part, *hash_of(file))
    for part in manifest.of_kind("table"):
        for _ in part_lines(folder, part):
            pass
    objects = tuple(_index(folder, manifest))
    for entry in objects:
        if entry.missing is None and folder.size(object_path(entry.sha256)) != entry.size_bytes:
            raise BackupDamaged(
                f"the object {entry.key} is missing or cut short in {folder.root}; use another backup"
            )
    _check_log(folder, manifest, {entry.key: entry for entry in objects}, report)
    return Checked(manifest, objects)


def events_of(folder: BackupFolder, manifest: Manifest) -> Iterator[EventLine]:
    """Every event, in order; positions grow, and no stream has a hole.

    Raises:
        BackupDamaged: where that is not so.
    """
    versions: dict[str, int] = {}
    position = count = 0
    for part in manifest.of_kind("events"):
        for line in part_lines(folder, part):
            event = decode(line)
            if event.position <= position:
                raise BackupDamaged(f"{part.path}: position {event.position} follows {position}")
            expected = versions.get(event.stream_id, 0) + 1
            if event.version != expected:
                raise BackupDamaged(
                    f"{part.path}: {event.stream_id} has version {event.version} where {expected} belongs"
                )
            versions[event.stream_id] = expected
            position, count = event.position, count + 1
            yield event
    if (position, count) != (manifest.head, manifest.events):
        raise BackupDamaged(
            f"the log ends at {position} with {count} events instead of {manifest.head} with"
            f" {manifest.events}; use another backup"
        )


def open_keys(folder: BackupFolder, manifest: Manifest, passphrase: str) -> bytes | None:
    """The keys in the clear; None when the backup was made without them.

    Raises:
        KeysLocked: when it is not the passphrase.
    """
    for part in manifest.of_kind("keys"):
        with folder.read(part.path) as file:
            return keys.unseal(passphrase, file.read(part.size_bytes), manifest.backup_id)
    return None


def _index(folder: BackupFolder, manifest: Manifest) -> Iterator[IndexEntry]:
    for part in manifest.of_kind("objects"):
        for line in part_lines(folder, part):
            try:
                yield IndexEntry.model_validate_json(line)
            except ValidationError as error:
                raise BackupDamaged(f"{part.path} is damaged: {error}; use another backup") from None


def _check_log(
    folder: BackupFolder, manifest: Manifest, listed: Mapping[str, IndexEntry], report: Report
) -> None:
    references = References()
    report("checking events", 0, manifest.events)
    for done, event in enumerate(events_of(folder, manifest), start=1):
        references.apply(event)
        if done % _REPORT_EVERY == 0:
            report("checking events", done, manifest.events)
    report("checking events", manifest.events, manifest.events)
    for key in sorted(references.listings):
        if key in listed and listed[key].missing is not None:
            continue  # somebody else's may have the same bytes: these were not there when it was made
        path = object_path(references.named[key].sha256)
        if folder.size(path) is not None:
            with folder.read(path) as file:
                content = file.read()
            if hashlib.sha256(content).hexdigest() != references.named[key].sha256:
                raise BackupDamaged(f"{path} is damaged: its SHA-256 differs; use another backup")
            references.apply_listing(key, Listing.model_validate_json(content))
    forgotten = sorted(references.named.keys() - listed.keys())
    if forgotten:
        raise BackupDamaged(
            f"the log names {len(forgotten)} objects that the backup knows nothing of, such as"
            f" {forgotten[0]}; use another backup"
        )


def _check_contents(folder: BackupFolder, checked: Checked, report: Report) -> None:
    contents = checked.contents()
    total, done = sum(contents.values()), 0
    report("checking objects", 0, total)
    for sha256, size in contents.items():
        path = object_path(sha256)
        with folder.read(path) as file:
            if hash_of(file) != (sha256, size):
                raise BackupDamaged(f"{path} is damaged: its SHA-256 differs; use another backup")
        done += size
        report("checking objects", done, total)
