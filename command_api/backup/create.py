"""Makes a backup of an installation that may be running."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

from pydantic import SecretStr, ValidationError

from command_api.backup import keys
from command_api.backup.folder import BackupFolder, object_path, part_path
from command_api.backup.manifest import Manifest, ObjectTotals, Part
from command_api.backup.parallel import in_parallel
from command_api.backup.progress import Report, silent
from command_api.backup.references import Named, References
from command_api.backup.rows import part_writer
from command_api.backup.snapshot import write_snapshot
from command_api.keeping import keeping
from command_api.objects import ObjectMissing, ObjectStore
from schemas.ids import uuid7
from schemas.objects import Listing
from schemas.settings import PostgresSettings, S3Settings

_TRANSFERS = 4


@dataclass(frozen=True, slots=True)
class Source:
    """The installation that is backed up."""

    postgres: PostgresSettings
    s3: S3Settings


@dataclass(frozen=True, slots=True)
class Keys:
    """The installation's keys, and what seals them."""

    content: SecretStr
    passphrase: SecretStr


async def back_up(
    source: Source, folder: BackupFolder, keys_and_passphrase: Keys | None, report: Report = silent
) -> Manifest:
    """Write a whole backup, or leave what was there.

    Raises:
        BackupError: naming what is in the way.
        ObjectStoreUnavailable: when the object store does not answer.
        ObjectsUnguarded: when objects may have been deleted before they were copied.
    """
    backup_id = f"backup_{uuid7().hex}"
    with folder.writing(), folder.parts_of(backup_id):
        parts: list[Part] = []
        if keys_and_passphrase is not None:
            # First of all: a passphrase that is too short is told before the long work.
            parts.append(await asyncio.to_thread(_write_keys, folder, backup_id, keys_and_passphrase))
        conninfo = source.postgres.conninfo()
        # From before the snapshot on, so that everything that it names can still be copied.
        async with keeping(conninfo) as kept, ObjectStore(source.s3) as store:
            snapshot = await write_snapshot(conninfo, folder, backup_id, report)
            copying = _Copying(store, folder, snapshot.references, report)
            await copying.run()
            await kept.confirm()
        parts += snapshot.parts
        with part_writer(folder, backup_id, "objects.ndjson.gz", parts, kind="objects") as part:
            for entry in copying.index():
                part.line(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        manifest = Manifest(
            kinora_version=version("kinora"),
            backup_id=backup_id,
            created_at=datetime.now(UTC),
            log_id=snapshot.log_id,
            head=snapshot.head,
            events=snapshot.events,
            parts=tuple(parts),
            objects=copying.totals(),
            left_out_tables=tuple(snapshot.left_out),
        )
        folder.commit(manifest, set(copying.contents))
        return manifest


def _write_keys(folder: BackupFolder, backup_id: str, given: Keys) -> Part:
    path = part_path(backup_id, "keys.json")
    sealed = keys.seal(
        given.passphrase.get_secret_value(), given.content.get_secret_value().encode(), backup_id
    )
    with folder.write(path) as file:
        file.write(sealed)
    return Part(path=path, kind="keys", sha256=file.sha256, size_bytes=file.size)


class _NotThere(Exception):
    """The store lacks an object, or holds other bytes under its key."""


@dataclass
class _Copying:
    """Copies every object that the references name: each content once, and only the bytes that were meant."""

    store: ObjectStore
    folder: BackupFolder
    references: References
    report: Report
    contents: dict[str, int] = field(default_factory=dict)
    """Hash and size of what the backup holds."""
    _required: frozenset[str] = frozenset()
    _absent: set[str] = field(default_factory=set)
    """Names that nothing needs and that the store has no object for, whatever holds the same bytes."""
    _done: int = 0
    _total: int = 0

    async def run(self) -> None:
        await self._read_listings()
        self._required = await asyncio.to_thread(self.references.required)
        wanted: defaultdict[tuple[str, int], list[Named]] = defaultdict(list)
        for named in self.references.named.values():
            wanted[named.sha256, named.size_bytes].append(named)
        self._total = sum(size for _, size in wanted)
        self.report("objects", 0, self._total)
        queue = iter(wanted.items())

        async def copier() -> None:
            for (sha256, size), same in queue:
                if await self._copy(sha256, size, same):
                    self.contents[sha256] = size
                self._done += size
                self.report("objects", self._done, self._total)

        await in_parallel(copier, _TRANSFERS)

    def index(self) -> Iterable[dict[str, object]]:
        """One entry per object that the log names, by key."""
        for key, named in sorted(self.references.named.items()):
            entry: dict[str, object] = {"key": key, "sha256": named.sha256, "size_bytes": named.size_bytes}
            if named.sha256 not in self.contents or key in self._absent:
                entry["missing"] = "lost" if key in self._required else "absent"
            yield entry

    def totals(self) -> ObjectTotals:
        missing = [entry.get("missing") for entry in self.index()]
        return ObjectTotals(
            names=len(missing) - missing.count("lost") - missing.count("absent"),
            contents=len(self.contents),
            size_bytes=sum(self.contents.values()),
            absent=missing.count("absent"),
            lost=missing.count("lost"),
        )

    async def _read_listings(self) -> None:
        listings = sorted(self.references.listings)
        required = await asyncio.to_thread(self.references.required)
        for done, key in enumerate(listings):
            self.report("listings", done, len(listings))
            # A required one may be restored from the same bytes of somebody else, and its files with it.
            for same in self._same_as(key) if key in required else [key]:
                try:
                    listing = Listing.model_validate_json(await self.store.get_bytes(same))
                except (ObjectMissing, ValidationError):
                    continue  # it is told as a lost object below
                self.references.apply_listing(key, listing)
                break
        self.report("listings", len(listings), len(listings))

    def _same_as(self, key: str) -> list[str]:
        sha256 = self.references.named[key].sha256
        return [key, *(each.key for each in self.references.named.values() if each.sha256 == sha256)]

    async def _copy(self, sha256: str, size: int, same: list[Named]) -> bool:
        there = []
        for named in same:
            if named.key in self._required or await self.store.head(named.key) is not None:
                there.append(named)
            else:  # what was deleted from the store is to be deleted from the backup too
                self._absent.add(named.key)
        path = object_path(sha256)
        if there and self.folder.size(path) == size:
            return True
        for named in there:
            try:
                await self._fetch(named, path)
            except (_NotThere, ObjectMissing):
                continue
            return True
        return False

    async def _fetch(self, named: Named, path: str) -> None:
        with self.folder.write(path) as file:
            async for chunk in self.store.chunks(named.key):
                await asyncio.to_thread(file.write, chunk)
            if (file.sha256, file.size) != (named.sha256, named.size_bytes):
                raise _NotThere
