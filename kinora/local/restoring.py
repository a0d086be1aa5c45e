"""Restores a backup into a new data folder. Until it is done, a marker keeps anybody from starting it."""

import json
import shutil

from command_api.backup.errors import NotEmpty
from command_api.backup.folder import BackupFolder
from command_api.backup.progress import Report
from command_api.backup.restore import Restored, restore
from command_api.backup.verify import Checked
from kinora.local.carried import Carried, settle
from kinora.local.folder import DataFolder
from kinora.local.lock import FolderLock
from kinora.local.private_file import write_private
from kinora.local.servers import EmbeddedServers


def refuse_used(folder: DataFolder) -> None:
    """Accept a folder that is absent or empty, or holds a restore that broke off.

    Raises:
        NotEmpty: naming what is there.
    """
    if folder.restoring.exists() or not folder.root.exists():
        return
    found = sorted(entry.name for entry in folder.root.iterdir())
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise NotEmpty(
            f"{folder.root} is not empty: it holds {', '.join(found[:5])}{more}; restore into a new folder"
            " with --home, because nothing is ever merged or overwritten"
        )


async def restore_home(
    folder: DataFolder, backup: BackupFolder, checked: Checked, carried: Carried, report: Report
) -> Restored:
    """Make the data folder's installation of a backup, with keys and servers of its own.

    Raises:
        NotEmpty: when the folder is in use.
        BackupError: when the backup is damaged.
        LocalError: when the servers cannot be started.
    """
    refuse_used(folder)
    folder.prepare(restoring=True)
    with FolderLock(folder):
        _clear(folder)
        note = {"backup_id": checked.manifest.backup_id, "from": str(backup.root)}
        write_private(folder.restoring, json.dumps(note) + "\n")
        settle(folder, carried)
    async with EmbeddedServers(folder.root, only=("postgres", "s3"), restoring=True) as servers:
        _readdress(folder, servers.api_url)
        done = await restore(backup, checked, servers.postgres, servers.s3, report)
    folder.restoring.unlink()
    return done


def _readdress(folder: DataFolder, url: str) -> None:
    """The former address may still be answered, by the installation that was backed up."""
    if folder.credentials.exists():
        credentials = json.loads(folder.credentials.read_text()) | {"url": url}
        write_private(folder.credentials, json.dumps(credentials, indent=2) + "\n")


def _clear(folder: DataFolder) -> None:
    """Remove what an earlier try left; the marker goes last, so that this may break off too."""
    for entry in folder.root.iterdir():
        if entry in (folder.lock, folder.restoring):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
