"""A short private folder for PostgreSQL's socket: the system allows such a path 107 characters at most."""

import os
import stat
import tempfile
from pathlib import Path

from kinora.local.child import Account
from kinora.local.errors import HostUnsuitable
from kinora.local.private_file import write_private
from kinora.local.unprivileged import everybody_may_enter

_LIMIT = 103 if os.uname().sysname == "Darwin" else 107


def kept_socket_folder(memory: Path, file_name: str, account: Account | None) -> Path:
    """A folder that only `account` may enter; the one noted in `memory` if a crash left it.

    Raises:
        HostUnsuitable: when no temporary folder has a short enough path.
    """
    uid = os.geteuid() if account is None else account.uid
    if memory.exists() and _is_private(noted := Path(memory.read_text().strip()), uid):
        return noted
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp below
        if len(f"{parent}/kinora-xxxxxxxx/{file_name}".encode()) > _LIMIT or not os.access(parent, os.W_OK):
            continue
        if account is not None and not everybody_may_enter(Path(parent).resolve()):
            continue
        made = Path(tempfile.mkdtemp(prefix="kinora-", dir=parent))
        if account is not None:
            os.chown(made, account.uid, account.gid)
        write_private(memory, f"{made}\n")
        return made
    raise HostUnsuitable(
        f"no temporary folder can be written and has a path short enough for a socket ({_LIMIT} characters);"
        " set TMPDIR to one, such as /tmp"
    )


def forget_socket_folder(memory: Path, folder: Path) -> None:
    """Remove the folder after the server's end."""
    memory.unlink(missing_ok=True)
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def _is_private(folder: Path, uid: int) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and stat.S_IMODE(found.st_mode) == 0o700
