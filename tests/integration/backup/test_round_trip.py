"""What is backed up is what is restored, to the byte; only the log's name is new."""

import resource
import shutil
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from command_api.backup.create import Keys, Source, back_up
from command_api.backup.errors import InstallationAway, KeysLocked, NotEmpty, TargetRefused
from command_api.backup.folder import BackupFolder, object_path
from command_api.backup.restore import restore
from command_api.backup.verify import check_rows, open_keys, verify
from command_api.eventlog.log import Append, EventLog
from command_api.keeping import LOCK, deleting
from command_api.messaging.epochs import Epochs
from command_api.objects import ObjectStore
from schemas.events import Event
from schemas.events.dataset import DatasetDeleted, DatasetRegistered, DatasetUploaded
from schemas.ids import Prefix, new_id
from schemas.objects import Listing, content_key
from tests.integration.backup.filled import KEYS, PASSPHRASE, Filled, fill, objects_of, rows_of
from tests.integration.eventlog.log_samples import logged, one

RENAMED = ("kinora_log", "kinora_log_predecessors")
FILLED = {
    "kinora_commands",
    "kinora_events",
    "kinora_log",
    "kinora_memberships",
    "kinora_operators",
    "kinora_passwords",
    "kinora_refresh_families",
    "kinora_refresh_tokens",
    "kinora_relay_epochs",
    "kinora_report_cursors",
    "kinora_upload_files",
    "kinora_uploads",
}


async def test_everything_comes_back(filled: Filled, backup: BackupFolder, empty: Source) -> None:
    checked = await verify(backup)
    done = await restore(backup, checked, empty.postgres, empty.s3)

    before, after = filled.rows, rows_of(empty)
    assert {name: rows for name, rows in after.items() if name not in RENAMED} == {
        name: rows for name, rows in before.items() if name not in RENAMED
    }
    assert {name for name in before if before[name]} == FILLED
    objects = await objects_of(filled.source)
    restored = await objects_of(empty)
    assert {key for key in objects if key not in restored} == {key for key in objects if "/uploads/" in key}
    assert restored == {key: objects[key] for key in restored}
    assert (done.events, done.objects) == (len(before["kinora_events"]), len(restored))


async def test_the_restored_log_has_a_name_of_its_own_and_goes_on(
    filled: Filled, backup: BackupFolder, empty: Source
) -> None:
    done = await restore(backup, check_rows(backup), empty.postgres, empty.s3)
    with EventLog.open(empty.postgres) as log:
        assert log.log_id == done.log_id != filled.log_id
        assert log.foreign(filled.log_id) == "log_restored"
        assert log.foreign("log_other") == "log_changed"
        assert log.head() == done.head
        assert log.append([one(logged(new_id(Prefix.USER)))]) == [(done.head + 1,)]
        command = log.find_command(filled.rows["kinora_commands"][0][0], "key-1")
        assert command is not None
        assert len(log.events_of(command)) == command.event_count == 2
    epochs = Epochs(empty.postgres.conninfo())
    kept = await epochs.current()
    assert kept is not None
    assert (kept.epoch, kept.reason) == (1, "it is made")


async def test_the_manifest_counts_what_is_there_and_what_is_rightly_not(
    filled: Filled, backup: BackupFolder
) -> None:
    manifest = backup.manifest()

    assert (manifest.log_id, manifest.events) == (filled.log_id, len(filled.rows["kinora_events"]))
    assert (manifest.objects.absent, manifest.objects.lost) == (2, 0)
    assert manifest.objects.names == manifest.objects.contents + 1, "the same bytes are kept once"
    assert manifest.left_out_tables == ()
    assert open_keys(backup, manifest, PASSPHRASE.get_secret_value()) == KEYS.get_secret_value().encode()


async def test_files_are_their_owners_only(backup: BackupFolder) -> None:
    modes = {path.stat().st_mode & 0o777 for path in backup.root.rglob("*") if path.is_file()}

    assert modes == {0o600}
    assert backup.root.stat().st_mode & 0o777 == 0o700


async def test_nothing_is_merged(filled: Filled, backup: BackupFolder, empty: Source) -> None:
    checked = check_rows(backup)
    with pytest.raises(NotEmpty, match="kinora_commands"):
        await restore(backup, checked, filled.source.postgres, empty.s3)
    with pytest.raises(NotEmpty, match=filled.source.s3.bucket):
        await restore(backup, checked, empty.postgres, filled.source.s3)
    with psycopg.connect(empty.postgres.conninfo()) as connection:
        (count,) = connection.execute("SELECT count(*) FROM kinora_events").fetchone() or (None,)
    assert count == 0


async def test_a_second_backup_copies_only_what_is_new(empty: Source, tmp_path: Path) -> None:
    filled, folder = await fill(empty), BackupFolder(tmp_path / "target")
    first = await back_up(filled.source, folder, None)
    path = folder.root / object_path(filled.checkpoint.sha256)
    inode, old_parts = path.stat().st_ino, {part.path for part in first.parts}
    (folder.root / object_path("0" * 64)).parent.mkdir()
    (folder.root / object_path("0" * 64)).write_bytes(b"of a backup that was broken off")
    with EventLog.open(empty.postgres) as log:
        log.append([one(logged(new_id(Prefix.USER)))])
    second = await back_up(filled.source, folder, None)

    assert second.events == first.events + 1
    assert path.stat().st_ino == inode
    assert not any((folder.root / part).exists() for part in old_parts)
    assert not (folder.root / object_path("0" * 64)).exists()
    assert (await verify(folder)).manifest == second


async def test_objects_that_are_lost_or_changed_are_counted_and_not_passed_on(
    empty: Source, tmp_path: Path
) -> None:
    filled, folder = await fill(empty), BackupFolder(tmp_path / "target")
    async with ObjectStore(empty.s3) as store:
        await store.put_bytes(filled.clip, b"First clip")
        await store.delete(filled.checkpoint.key)
    manifest = await back_up(filled.source, folder, None)

    assert manifest.objects.lost == 1, "the checkpoint's bytes are there under another key"
    checked = await verify(folder)
    assert [entry.key for entry in checked.objects if entry.missing == "lost"] == [filled.clip]


async def same_elsewhere(source: Source, *later: Event) -> DatasetRegistered:
    """Another organization registers what the first one did; what its objects are is up to the test."""
    other = new_id(Prefix.ORGANIZATION)
    with EventLog.open(source.postgres) as log:
        events = [raw.recorded().event for raw in log.read_all(0, 100)]
        first = next(event for event in events if isinstance(event, DatasetRegistered))
        listing = first.listing.model_copy(update={"key": content_key(other, first.listing.sha256)})
        again = first.model_copy(update={"listing": listing})
        story = (again, DatasetUploaded(upload_id="upl_2"), *later)
        dataset_id = new_id(Prefix.DATASET)
        told = [logged(dataset_id, version, event, other) for version, event in enumerate(story, start=1)]
        log.append([Append(tuple(told))])
    return again


async def test_what_was_deleted_stays_away_though_somebody_else_has_the_same(
    empty: Source, target: Source, tmp_path: Path
) -> None:
    filled, folder = await fill(empty), BackupFolder(tmp_path / "target")
    deleted = await same_elsewhere(empty, DatasetDeleted())  # and its objects were collected
    manifest = await back_up(filled.source, folder, None)
    assert manifest.objects.lost == 0
    checked = await verify(folder)
    assert deleted.listing.key in {entry.key for entry in checked.objects if entry.missing == "absent"}
    await restore(folder, checked, target.postgres, target.s3)
    restored = await objects_of(target)
    assert deleted.listing.key not in restored
    assert filled.clip in restored


async def test_a_list_that_was_lost_is_restored_from_somebody_elses(
    empty: Source, target: Source, tmp_path: Path
) -> None:
    filled, folder = await fill(empty), BackupFolder(tmp_path / "target")
    needed = await same_elsewhere(empty)  # whose objects the store has lost
    manifest = await back_up(filled.source, folder, None)
    assert manifest.objects.lost == 0
    await restore(folder, await verify(folder), target.postgres, target.s3)
    restored = await objects_of(target)
    organization = needed.listing.key.partition("/")[0]
    files = Listing.model_validate_json(restored[needed.listing.key]).files
    assert {content_key(organization, file.sha256) for file in files} < restored.keys()


async def test_a_backup_of_another_installation_is_not_replaced(backup: BackupFolder, empty: Source) -> None:
    before = backup.manifest()
    await fill(empty)
    with pytest.raises(TargetRefused, match="another installation"):
        await back_up(empty, backup, None)
    assert (await verify(backup)).manifest == before
    assert [path.name for path in (backup.root / "parts").iterdir()] == [before.backup_id]


async def test_a_restored_installation_continues_its_former_backup(
    backup: BackupFolder, empty: Source, tmp_path: Path
) -> None:
    await restore(backup, check_rows(backup), empty.postgres, empty.s3)
    folder = BackupFolder(Path(shutil.copytree(backup.root, tmp_path / "target")))
    again = await back_up(empty, folder, Keys(KEYS, PASSPHRASE))
    assert again.events == backup.manifest().events


async def test_targets_that_cannot_be(filled: Filled, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").touch()
    with pytest.raises(TargetRefused, match=r"thesis\.txt"):
        await back_up(filled.source, BackupFolder(strange), None)
    with pytest.raises(TargetRefused, match="cannot be written"):
        await back_up(filled.source, BackupFolder(strange / "thesis.txt" / "x"), None)
    folder = BackupFolder(tmp_path / "busy")
    with folder.writing(), pytest.raises(TargetRefused, match="another backup"):
        await back_up(filled.source, folder, None)
    with pytest.raises(KeysLocked, match="characters"):
        await back_up(filled.source, BackupFolder(tmp_path / "short"), Keys(KEYS, SecretStr("short")))


async def test_a_full_disk_leaves_the_former_backup(filled: Filled, empty: Source, tmp_path: Path) -> None:
    mine, folder = await fill(empty), BackupFolder(tmp_path / "target")
    former = await back_up(mine.source, folder, None)
    for path in (folder.root / "objects").rglob("*"):
        if path.is_file() and path.stat().st_size > 2**20:
            path.unlink()  # so that it has to be copied again
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(TargetRefused, match="untouched"):
            await back_up(mine.source, folder, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert folder.manifest() == former
    assert [path.name for path in (folder.root / "parts").iterdir()] == [former.backup_id]
    assert not list(folder.root.rglob("*.partial"))


async def test_an_empty_database_is_told(empty: Source, tmp_path: Path) -> None:
    with pytest.raises(InstallationAway, match="no log"):
        await back_up(empty, BackupFolder(tmp_path / "target"), None)


async def test_nobody_deletes_while_a_backup_copies(filled: Filled, tmp_path: Path) -> None:
    allowed: dict[str, bool] = {}

    def ask(phase: str, done: int, total: int) -> None:
        with psycopg.connect(filled.source.postgres.conninfo()) as connection:
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
        allowed[phase] = bool(row and row[0])

    await back_up(filled.source, BackupFolder(tmp_path / "target"), None, ask)
    assert allowed == dict.fromkeys(("events", "credentials", "listings", "objects"), False)
    async with deleting(filled.source.postgres.conninfo()) as again:
        assert again
