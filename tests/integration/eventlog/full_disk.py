"""A PostgreSQL whose events lie on a tiny file system; run in a mount namespace of its own (`unshare -m`).

Fills the file system by appending, frees room, and appends the refused event again; prints what happened.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from command_api.eventlog.errors import LogFull
from command_api.eventlog.log import Append, EventLog
from command_api.eventlog.recorder import CommandRow
from kinora.local.folder import DataFolder
from kinora.local.postgres import PostgresServer
from kinora.local.secrets import kept_secrets
from kinora.local.unprivileged import account_for_servers
from schemas.events.job import WarningRaised
from schemas.ids import Prefix, new_id
from schemas.settings import PostgresSettings
from tests.integration.eventlog.log_samples import logged


def mount(*options: str, at: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(at)], check=True)


def append(number: int) -> Append:
    """One command with an event of about 100 KB that does not compress."""
    warning = WarningRaised(attempt=1, code="big", message=secrets.token_urlsafe(75_000))
    return Append((logged(new_id(Prefix.JOB), event=warning),), CommandRow("usr_1", str(number), b"", None))


def fill(settings: PostgresSettings, superuser: PostgresSettings, tiny: Path) -> dict[str, object]:
    with EventLog.open(settings) as log:
        log.append([Append((logged(),))])
        with psycopg.connect(
            superuser.model_copy(update={"dbname": settings.dbname}).conninfo(), autocommit=True
        ) as connection:
            connection.execute(f"CREATE TABLESPACE tiny LOCATION '{tiny}'")  # type: ignore[call-overload]
            connection.execute("ALTER TABLE kinora_events SET TABLESPACE tiny")
        stored, refusal = 0, ""
        for number in range(100):
            wanted = append(number)
            try:
                log.append([wanted])
            except LogFull as error:
                refusal = error.message
                break
            stored += 1
        head_when_full = log.head()
        read_when_full = len(log.read_all(0, 1000))
        command_when_full = log.find_command("usr_1", str(stored)) is not None
        subprocess.run(["mount", "-o", "remount,size=8m", str(tiny)], check=True)
        log.append([wanted])
        return {
            "stored": stored,
            "refusal": refusal,
            "head_when_full": head_when_full,
            "read_when_full": read_when_full,
            "command_when_full": command_when_full,
            "read_after": len(log.read_all(0, 1000)),
        }


@contextmanager
def tiny_file_system() -> Iterator[Path]:
    """Of the server's user, and not below the data folder, which that user may not enter."""
    account = account_for_servers()
    owner = (account.uid, account.gid) if account else (os.getuid(), os.getgid())
    tiny = Path(tempfile.mkdtemp(prefix="kinora-tiny-"))
    try:
        mount("size=1m", "mode=0700", f"uid={owner[0]}", f"gid={owner[1]}", at=tiny)
        yield tiny
    finally:
        subprocess.run(["umount", "-l", str(tiny)], check=False)
        tiny.rmdir()


async def main(folder: DataFolder, tiny: Path) -> None:
    folder.prepare()
    server = PostgresServer(folder, kept_secrets(folder))
    await server.start()
    try:
        print(json.dumps(await asyncio.to_thread(fill, server.settings, server.superuser_settings, tiny)))
    finally:
        await server.stop()
        server.release()


if __name__ == "__main__":
    with tiny_file_system() as place:
        asyncio.run(main(DataFolder(Path(sys.argv[1])), place))
