"""One filled installation that no test changes, and empty ones to restore into."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_api.backup.create import Keys, Source, back_up
from command_api.backup.folder import BackupFolder
from kinora.local.servers import EmbeddedServers
from tests.conftest import made_bucket, made_database
from tests.integration.backup.filled import KEYS, PASSPHRASE, Filled, fill


@pytest.fixture(scope="module")
def filled(servers: EmbeddedServers) -> Iterator[Filled]:
    with made_database(servers) as database, made_bucket(servers) as bucket:
        yield asyncio.run(fill(Source(database, bucket)))


@pytest.fixture
def empty(servers: EmbeddedServers) -> Iterator[Source]:
    with made_database(servers) as database, made_bucket(servers) as bucket:
        yield Source(database, bucket)


@pytest.fixture
def target(servers: EmbeddedServers) -> Iterator[Source]:
    """A second empty one."""
    with made_database(servers) as database, made_bucket(servers) as bucket:
        yield Source(database, bucket)


@pytest.fixture(scope="module")
def backup(filled: Filled, tmp_path_factory: pytest.TempPathFactory) -> BackupFolder:
    """Made once; a test that damages it takes a `copy`."""
    folder = BackupFolder(tmp_path_factory.mktemp("backup") / "target")
    asyncio.run(back_up(filled.source, folder, Keys(KEYS, PASSPHRASE)))
    return folder


@pytest.fixture
def copy(backup: BackupFolder, tmp_path: Path) -> Callable[[], BackupFolder]:
    def make() -> BackupFolder:
        return BackupFolder(Path(shutil.copytree(backup.root, tmp_path / "copy")))

    return make
