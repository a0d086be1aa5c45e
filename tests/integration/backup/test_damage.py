"""A backup that is not whole is refused, by name, before anything is restored of it."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from command_api.backup.create import Source
from command_api.backup.errors import BackupDamaged, BackupTooNew, KeysLocked
from command_api.backup.folder import BackupFolder, object_path
from command_api.backup.manifest import FORMAT, NAME
from command_api.backup.restore import restore
from command_api.backup.verify import check_rows, open_keys, verify
from tests.integration.backup.filled import Filled

Copy = Callable[[], BackupFolder]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(folder: BackupFolder, change: Callable[[list[bytes]], list[bytes]], kind: str = "events") -> None:
    """Change a part's lines and make every hash and count right again."""
    manifest = folder.manifest()
    (part,) = manifest.of_kind(kind)
    lines = change(gzip.decompress((folder.root / part.path).read_bytes()).splitlines(keepends=True))
    content = gzip.compress(b"".join(lines))
    (folder.root / part.path).write_bytes(content)
    new = part.model_copy(
        update={"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content), "rows": len(lines)}
    )
    parts = tuple(new if each == part else each for each in manifest.parts)
    events = len(lines) if kind == "events" else manifest.events
    changed = manifest.model_copy(update={"parts": parts, "events": events})
    (folder.root / NAME).write_bytes(changed.to_bytes())


@pytest.mark.parametrize("kind", ["events", "table", "objects", "keys"])
async def test_a_flipped_byte_in_a_part(copy: Copy, kind: str) -> None:
    folder = copy()
    part = folder.manifest().of_kind(kind)[-1]
    flip(folder.root / part.path, part.size_bytes // 2)
    with pytest.raises(BackupDamaged, match=part.path):
        await verify(folder)


async def test_a_part_that_is_cut_short_or_gone(copy: Copy) -> None:
    folder = copy()
    part = folder.manifest().of_kind("events")[0]
    content = (folder.root / part.path).read_bytes()
    (folder.root / part.path).write_bytes(content[:-20])
    with pytest.raises(BackupDamaged, match=f"{part.size_bytes - 20} bytes instead of {part.size_bytes}"):
        await verify(folder)
    (folder.root / part.path).unlink()
    with pytest.raises(BackupDamaged, match="missing"):
        await verify(folder)


async def test_objects_that_are_gone_or_cut_short_or_changed(
    copy: Copy, filled: Filled, empty: Source
) -> None:
    folder = copy()
    path = folder.root / object_path(filled.checkpoint.sha256)
    flip(path, 12345)
    checked = check_rows(folder)
    with pytest.raises(BackupDamaged, match=path.name):
        await verify(folder)
    with pytest.raises(BackupDamaged, match="after it was stored"):
        await restore(folder, checked, empty.postgres, empty.s3)
    with psycopg.connect(empty.postgres.conninfo()) as connection:
        assert connection.execute("SELECT 1 FROM kinora_events").fetchone() is None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BackupDamaged, match="cut short"):
        check_rows(folder)
    path.unlink()
    with pytest.raises(BackupDamaged, match="missing"):
        check_rows(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], *lines[2:]], "version 2 where 1 belongs"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "follows"),
        (lambda lines: lines[:-1], "the log ends at"),
        (lambda lines: [*lines, lines[-1].replace(b'"version":2', b'"version":3')], "follows"),
        (lambda lines: [line.replace(b"point-5", b"point-6") for line in lines], "knows nothing of"),
    ],
    ids=["hole in a stream", "order", "cut off", "repeated", "unknown object"],
)
async def test_a_log_that_hangs_together_wrongly(
    copy: Copy, change: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    folder = copy()
    rewrite(folder, change)
    with pytest.raises(BackupDamaged, match=message):
        check_rows(folder)


async def test_an_index_that_forgets_an_object(copy: Copy) -> None:
    folder = copy()
    rewrite(folder, lambda lines: lines[1:], "objects")
    with pytest.raises(BackupDamaged, match="knows nothing of"):
        check_rows(folder)


async def test_a_manifest_of_the_future_or_none(copy: Copy) -> None:
    folder = copy()
    future = json.loads((folder.root / NAME).read_bytes()) | {"format": FORMAT + 1}
    (folder.root / NAME).write_text(json.dumps(future))
    with pytest.raises(BackupTooNew, match="upgrade"):
        await verify(folder)
    (folder.root / NAME).unlink()
    with pytest.raises(BackupDamaged, match="never finished"):
        await verify(folder)
    with pytest.raises(BackupDamaged, match="there is no backup"):
        await verify(BackupFolder(folder.root / "nowhere"))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"columns": ("user_id", "hash", "pepper")}, "pepper"), ({"table": "kinora_badges"}, "kinora_badges")],
)
async def test_rows_that_do_not_fit_are_none_at_all(
    copy: Copy, empty: Source, change: dict[str, object], named: str
) -> None:
    folder = copy()
    manifest = folder.manifest()
    parts = [
        part.model_copy(update=change) if part.table == "kinora_passwords" else part
        for part in manifest.parts
    ]
    (folder.root / NAME).write_bytes(manifest.model_copy(update={"parts": tuple(parts)}).to_bytes())
    with pytest.raises(BackupDamaged, match=named):
        await restore(folder, check_rows(folder), empty.postgres, empty.s3)
    with psycopg.connect(empty.postgres.conninfo()) as connection:
        assert connection.execute("SELECT 1 FROM kinora_events").fetchone() is None


async def test_a_wrong_passphrase(backup: BackupFolder) -> None:
    with pytest.raises(KeysLocked, match="another"):
        open_keys(backup, backup.manifest(), "correct horse battery stable")
