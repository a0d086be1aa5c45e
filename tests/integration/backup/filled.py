"""An installation with a bit of everything: events of several streams, credentials, commands, objects."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import psycopg
from pydantic import SecretStr

from command_api.backup.create import Source
from command_api.credentials.memberships import Membership
from command_api.credentials.operators import FirstOperatorRow
from command_api.credentials.passwords import PasswordRow
from command_api.credentials.refresh import Family, FamilyRow
from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.recorder import CommandRow
from command_api.messaging.epochs import Epochs
from command_api.objects import ObjectStore
from command_api.tables import KEPT, ensure_tables
from schemas.events import Event
from schemas.events.dataset import DatasetDeleted, DatasetRegistered, DatasetUploaded
from schemas.events.identity import UserRegistered
from schemas.events.job import CheckpointSaved, WarningRaised
from schemas.ids import Prefix, new_id
from schemas.objects import FileEntry, Listing, StoredObject, content_key
from tests.integration.eventlog.log_samples import logged
from tests.stories import BEGINNING

ORGANIZATION = new_id(Prefix.ORGANIZATION)
USER = new_id(Prefix.USER)
PASSPHRASE = SecretStr("correct horse battery staple")
KEYS = SecretStr(json.dumps({"secrets": {"personal_key_hex": "11"}}))
LARGE = bytes(range(256)) * 2**13
"""Two mebibytes."""


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Filled:
    """What stands where."""

    source: Source
    log_id: str
    checkpoint: StoredObject
    clip: str
    """Key of a file that a listing names."""
    rows: dict[str, list[Any]]


def rows_of(source: Source) -> dict[str, list[Any]]:
    """Every row of every table that a backup keeps."""
    with psycopg.connect(source.postgres.conninfo()) as connection:
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for name in sorted(KEPT)
        }


async def objects_of(source: Source) -> dict[str, bytes]:
    async with ObjectStore(source.s3) as store:
        return {key: await store.get_bytes(key) async for key, _ in store.iterate("")}


async def fill(source: Source) -> Filled:
    conninfo = source.postgres.conninfo()
    await ensure_tables(conninfo)
    await Epochs(conninfo).begin(1, "it is made", seen=None)
    async with ObjectStore(source.s3) as store:

        async def dataset(*contents: bytes, stored: bool = True) -> DatasetRegistered:
            files = [FileEntry(path=f"{sha(c)[:8]}.mp4", size_bytes=len(c), sha256=sha(c)) for c in contents]
            listing = Listing(files=tuple(files)).model_dump_json().encode()
            await store.put_bytes(content_key(ORGANIZATION, sha(listing)), listing)
            for content in contents if stored else ():
                await store.put_bytes(content_key(ORGANIZATION, sha(content)), content)
            return DatasetRegistered(
                name="clips",
                description="ünïcode \u2028 🎬",
                format="video_text",
                owner_id=USER,
                listing=StoredObject(
                    path="listing.json",
                    key=content_key(ORGANIZATION, sha(listing)),
                    size_bytes=len(listing),
                    sha256=sha(listing),
                ),
                file_count=len(files),
                size_bytes=sum(map(len, contents)),
            )

        key = f"{ORGANIZATION}/checkpoints/job-x/attempt-1/checkpoint-5/optimizer.safetensors"
        await store.put_bytes(key, LARGE)
        checkpoint = StoredObject(
            path="optimizer.safetensors", key=key, size_bytes=len(LARGE), sha256=sha(LARGE)
        )
        # The same content under two keys is kept once; what is below uploads is nobody's yet.
        kept = await dataset(b"first clip", LARGE)
        deleted, pending = await dataset(b"gone", stored=False), await dataset(b"not yet", stored=False)
        await store.put_bytes(f"{ORGANIZATION}/uploads/upl_1/x", b"half an upload")

    ids = [new_id(Prefix.DATASET) for _ in range(3)]
    uploaded = DatasetUploaded(upload_id="upl_1")
    stories: list[tuple[str, list[Event]]] = [
        (USER, [UserRegistered(username_ciphertext="p1.é", email_ciphertext="p1.x")]),
        (ids[0], [kept, uploaded]),
        (ids[1], [deleted, uploaded, DatasetDeleted()]),
        (ids[2], [pending]),
        (
            new_id(Prefix.JOB),
            [
                CheckpointSaved(attempt=1, step=5, objects=(checkpoint,)),
                WarningRaised(attempt=1, code="c", message="m"),
            ],
        ),
    ]
    family = Family.new(USER, ORGANIZATION, new_id(Prefix.WORKSPACE))
    sides = (
        PasswordRow(USER, "hash\twith\\odd\nsigns"),
        Membership(USER, ORGANIZATION, family.workspace_id, "owner"),
        FirstOperatorRow(USER),
        FamilyRow(family, "knr_rt_x", BEGINNING),
    )
    with EventLog.open(source.postgres) as log:
        for number, (stream_id, events) in enumerate(stories):
            # A refused append leaves a gap in the positions, as in every real log.
            with psycopg.connect(conninfo) as connection:
                connection.execute(
                    "SELECT nextval(pg_get_serial_sequence('kinora_events', 'notification_id'))"
                )
            log.append(
                [
                    Append(
                        tuple(
                            logged(stream_id, version, event, ORGANIZATION)
                            for version, event in enumerate(events, start=1)
                        ),
                        CommandRow(USER, f"key-{number}", b"\x00\\\xff", stream_id),
                        sides if number == 0 else (),
                    )
                ]
            )
        log_id = log.log_id
    with psycopg.connect(conninfo) as connection:
        connection.execute("INSERT INTO kinora_uploads VALUES ('upl_1', %s, %s, 100)", (ids[2], ORGANIZATION))
        connection.execute("INSERT INTO kinora_upload_files VALUES ('upl_1', %s, 'a', 7)", (sha(b"not yet"),))
        connection.execute("INSERT INTO kinora_report_cursors VALUES (%s, 1, 17)", (ids[0],))
    return Filled(source, log_id, checkpoint, content_key(ORGANIZATION, sha(b"first clip")), rows_of(source))
